"""Bytes per parameter of one step, counted: by the CUDA kernels' own loads and stores as they run on a CPU (see
tests/emulated/), and for what is written in plain PyTorch by the operands and results of every operation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import adamp
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import onepass

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests/support"))  # counting.py

SHAPES = [(1024, 1024)]
# What was counted, in what, and bytes per parameter: of p, g and the moments, and of all.
TrafficRow = tuple[str, str, float, float]


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


@dataclass(frozen=True)
class Line:
    """A step whose bytes are counted: the loads and stores of the kernels, or else the operands of its operations."""

    title: str
    make: type[torch.optim.Optimizer]
    arguments: dict[str, Any] = field(default_factory=dict)
    kernels: bool = True

    def count(self) -> TrafficRow:
        if not self.kernels:
            count = of_operations(self.make, SHAPES, **self.arguments)
            return self.title, "operations", count, count
        from counting import traffic_of

        traffic = traffic_of(self.make, SHAPES, **self.arguments)
        return self.title, "kernels", traffic.streams, traffic.total


EXACT = dict(dtype=torch.bfloat16, master_weights=True)

LINES = (
    Line("AdamW", onepass.AdamW),
    Line("AdamP, not projected, as predicted", onepass.AdamP),
    Line("AdamP, projected, as predicted", onepass.AdamP, dict(gate="channel", predicted="channel")),
    Line("AdamP, mispredicted", onepass.AdamP, dict(gate="channel", predicted="none")),
    Line("AdamP, `speculate=False`", onepass.AdamP, dict(speculate=False)),
    Line("AdamW and `clip_grad_norm_`", onepass.AdamW, dict(clips=True)),
    Line("AdamP and `clip_grad_norm_`", onepass.AdamP, dict(clips=True)),
    Line("SGDP, momentum", onepass.SGDP, dict(momentum=0.9)),
    Line("AdamW, bfloat16 p and g, float32 moments", onepass.AdamW, dict(dtype=torch.bfloat16)),
    Line("AdamP, the same", onepass.AdamP, dict(dtype=torch.bfloat16)),
    Line("AdamW, bfloat16 and `master_weights`", onepass.AdamW, EXACT),
    Line("AdamP, the same, projected, as predicted", onepass.AdamP, EXACT | dict(gate="channel", predicted="channel")),
    Line("torch's AdamW, `foreach=False`", torch.optim.AdamW, dict(foreach=False), kernels=False),
    Line("`adamp`'s AdamP", adamp.AdamP, kernels=False),
    Line("`adamp`'s SGDP, momentum", adamp.SGDP, dict(momentum=0.9), kernels=False),
)


def traffic_rows() -> list[TrafficRow]:
    return [line.count() for line in LINES]
