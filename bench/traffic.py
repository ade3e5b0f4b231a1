"""Bytes per parameter of one step, counted: by the CUDA kernels' own loads and stores as they run on a CPU (see
tests/emulated/), and for what is written in plain PyTorch by the operands and results of every operation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import adamp
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import onepass

SHAPES = [(1024, 1024)]


class Operations(TorchDispatchMode):
    """Adds up the bytes of the tensors that go into every operation and come out of it. Views move nothing."""

    VIEWS = ("view", "_unsafe_view", "reshape", "expand", "detach", "alias", "as_strided", "t", "transpose", "permute")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in self.VIEWS:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor) and x.numel() > 1]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


def of_operations(make: type[torch.optim.Optimizer], shapes: Sequence[tuple[int, ...]], **arguments: Any) -> float:
    """Bytes per parameter of a step of an optimizer that consists of torch operations."""
    from counting import gradient_of

    params = [torch.randn(shape) for shape in shapes]
    for seed, p in enumerate(params):
        p.grad = gradient_of("none", p, seed)
    opt = make(params, lr=1e-3, weight_decay=1e-2, **arguments)
    opt.step()
    with Operations() as operations:
        opt.step()
    return operations.bytes / sum(p.numel() for p in params)


def traffic_rows() -> list[tuple[str, str, float, float]]:
    """What is counted, how, and bytes per parameter: of p, g and the moments, and of all."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from counting import traffic_of

    bf16 = dict(dtype=torch.bfloat16)
    ours: list[tuple[str, Any, dict[str, Any]]] = [
        ("AdamW", onepass.AdamW, {}),
        ("AdamP, not projected as predicted", onepass.AdamP, {}),
        ("AdamP, projected as predicted", onepass.AdamP, dict(gate="channel", predicted="channel")),
        ("AdamP, mispredicted", onepass.AdamP, dict(gate="channel", predicted="none")),
        ("AdamP, speculate=False", onepass.AdamP, dict(speculate=False)),
        ("AdamW and clip", onepass.AdamW, dict(clips=True)),
        ("AdamP and clip", onepass.AdamP, dict(clips=True)),
        ("SGDP, momentum", onepass.SGDP, dict(momentum=0.9)),
        ("AdamW, bfloat16 p and g", onepass.AdamW, bf16),
        ("AdamP, bfloat16 p and g", onepass.AdamP, bf16),
    ]
    counted = [(name, traffic_of(make, SHAPES, **options)) for name, make, options in ours]
    rows = [(f"onepass {name}", "kernels", traffic.streams, traffic.total) for name, traffic in counted]
    eager: list[tuple[str, Any, dict[str, Any]]] = [
        ("torch AdamW, foreach=False", torch.optim.AdamW, dict(foreach=False)),
        ("adamp AdamP", adamp.AdamP, {}),
        ("adamp SGDP, momentum", adamp.SGDP, dict(momentum=0.9)),
        ("onepass AdamP, reference", onepass.AdamP, dict(backend="reference")),
    ]
    for name, make, options in eager:
        count = of_operations(make, SHAPES, **options)
        rows.append((name, "operations", count, count))
    return rows


def traffic_table() -> Any:
    from rich.table import Table

    table = Table(title="Bytes per parameter of a step, counted (matrix of 1,024 x 1,024)", title_justify="left")
    for heading in ("optimizer", "counted in"):
        table.add_column(heading)
    for heading in ("p, g, moments", "all"):
        table.add_column(heading, justify="right")
    for name, how, streams, total in traffic_rows():
        table.add_row(name, how, f"{streams:.1f}", f"{total:.2f}")
    return table


if __name__ == "__main__":
    from rich.console import Console

    Console().print(traffic_table())
