"""The host's time, the collectives and the bytes of a step of sharded parameters on many ranks: Llama 3 8B and 70B on torch's fake process
group, whose collectives do nothing, so that one process is one rank of them. Nothing is timed but the host.

    checks      the host's time for a look at every tensor
    exchange    the host's time between the update and the decision, without the network's
    collectives, sent: of a rank in a step
    predicted   the network's time by a model: 15 us between the 8 GPUs of a node, else 20 us and 14 us for each doubling of the nodes,
                and what the bytes take at 45 GB/s; and what it is of a step that moves 28 bytes a parameter at 2.85 TB/s. Not measured.
"""

from __future__ import annotations

import argparse
import math
import time
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

# torch's own, for its tests: there is no public one.
from torch.testing._internal.distributed.fake_pg import FakeStore

import onepass
from program import say
from report import Columns, table
from shapes import Shape, llama_shapes, numel_of

VOCABULARY = 128256
# Those of llama_shapes, and output weights of their own.
SIZES: dict[str, tuple[Shape, ...]] = {
    "8B": (*llama_shapes(4096, 14336, 1024, VOCABULARY, 32), (VOCABULARY, 4096)),
    "70B": (*llama_shapes(8192, 28672, 1024, VOCABULARY, 80), (VOCABULARY, 8192)),
}
OF_BLOCK, ROW_WISE = 9, (3, 6)  # tensors of a block; of them those whose rows tensor parallelism splits: o and down
STEPS = 9
OF_NODE = 8  # GPUs


class Counted:
    """Collectives of torch.distributed, and the bytes that this rank gives to them."""

    def __init__(self) -> None:
        self.calls, self.sent, self.us = 0, 0, 0.0
        for name in ("all_gather_single", "all_gather_into_tensor", "all_reduce"):
            if hasattr(dist, name):
                setattr(dist, name, self.counting(getattr(dist, name)))

    def counting(self, function: Any) -> Any:
        def call(*tensors: torch.Tensor, **more: Any) -> Any:
            ranks, own = dist.get_world_size(more["group"]), tensors[-1].nbytes
            self.calls += 1
            self.sent += own
            received = own * (ranks if len(tensors) > 1 else 2)  # gathered, or in a ring
            self.us += (15 if ranks <= OF_NODE else 20 + 14 * math.log2(ranks / OF_NODE)) + received / 45e3
            return function(*tensors, **more)

        return call


def sharded(number: int, shape: Shape, mesh: Any) -> torch.Tensor:
    """A parameter with its gradient."""
    placements: list[Any] = [Shard(0)]
    if mesh.ndim > 1:
        row_wise = (number - 1) % OF_BLOCK in ROW_WISE
        placements.append(Replicate() if len(shape) == 1 else Shard(1) if row_wise else Shard(0))
    local = torch.zeros(
        [-(-size // parts) for size, parts in zip(shape, parts_of(shape, placements, mesh), strict=True)]
    )
    stride = torch.empty(shape, device="meta").stride()
    how: dict[str, Any] = {"run_check": False, "shape": torch.Size(shape), "stride": stride}
    p = torch.nn.Parameter(DTensor.from_local(local, mesh, placements, **how))
    p.grad = DTensor(torch.zeros_like(local), p._spec, requires_grad=False)  # which FSDP2 gives to it too
    return p


def parts_of(shape: Shape, placements: list[Any], mesh: Any) -> list[int]:
    return [
        math.prod(mesh.size(i) for i, placement in enumerate(placements) if getattr(placement, "dim", None) == dim)
        for dim in range(len(shape))
    ]


def measured(model: str, ranks: int, tensor: int, cls: Any) -> dict[str, Any]:
    shapes = SIZES[model]
    names, sizes = (("data", "tensor"), (ranks // tensor, tensor)) if tensor > 1 else (("data",), (ranks,))
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=names)
    params = [sharded(number, shape, mesh) for number, shape in enumerate(shapes)]
    opt = cls(params, lr=1e-3)
    begin = time.perf_counter()
    opt.step()
    first = time.perf_counter() - begin
    execution, counted = opt._execution, COUNTED
    (backend,) = execution.backends
    hypers = opt._hypers()
    checks, exchanges = [], []
    for _ in range(STEPS):
        begin = time.perf_counter()
        backend.ready(opt.param_groups, hypers, True)
        checks.append(time.perf_counter() - begin)
        calls, sent, us = counted.calls, counted.sent, counted.us
        begin = time.perf_counter()
        execution.exchange([backend])
        exchanges.append(time.perf_counter() - begin)
    calls, sent, network = counted.calls - calls, counted.sent - sent, counted.us - us
    step = 28 * numel_of(shapes) / ranks / 2.85e6
    return {
        "model": model, "optimizer": cls.__name__, "ranks": ranks, "tensor": tensor, "tensors": len(shapes),
        "first": first, "checks": median(checks), "exchange": median(exchanges), "calls": calls, "sent": sent,
        "network": network, "step": step,
    }  # fmt: skip


SHOWN: Columns = {
    "model": lambda row: row["model"],
    "optimizer": lambda row: row["optimizer"],
    "ranks": lambda row: f"{row['ranks']:,}" + (f", {row['tensor']} tensor parallel" if row["tensor"] > 1 else ""),
    "tensors": lambda row: f"{row['tensors']}",
    "first step, s": lambda row: f"{row['first']:.2f}",
    "checks, ms": lambda row: f"{1e3 * row['checks']:.2f}",
    "exchange, ms": lambda row: f"{1e3 * row['exchange']:.2f}",
    "collectives": lambda row: f"{row['calls']}",
    "sent, kB": lambda row: f"{row['sent'] / 1e3:.1f}",
    "predicted, us": lambda row: f"{row['network']:.0f}",
    "of a step": lambda row: f"{100 * row['network'] / row['step']:.1f}%",
}


def small_tensors(cls: Any, mesh: Any) -> float:
    """The time of a step of 200 DTensors, of which this rank has 4 x 4 elements each, over that of 200 tensors of 4 x 4."""
    whole = [sharded(1, (4 * mesh.size(), 4), mesh) for _ in range(200)]
    plain = [torch.nn.Parameter(torch.zeros(4, 4)) for _ in range(200)]
    for p in plain:
        p.grad = torch.zeros(4, 4)
    opts, ratios = [cls(params, lr=1e-3) for params in (whole, plain)], []
    for _ in range(200):
        times = []
        for opt in opts:
            begin = time.perf_counter()
            opt.step()
            times.append(time.perf_counter() - begin)
        ratios.append(times[0] / times[1])
    return median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8B alone")
    args = parser.parse_args()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1024)
    rows = []
    for model in ("8B",) if args.quick else ("8B", "70B"):
        for cls, tensor in ((onepass.AdamW, 1), (onepass.AdamP, 1), (onepass.AdamP, 8)):
            rows.append(measured(model, 1024, tensor, cls))
    say(f"{__doc__}\n{table(SHOWN, rows)}\n")
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (1024,))
    for cls in (onepass.AdamW, onepass.AdamP):
        say(f"{cls.__name__}, 200 DTensors of 4 x 4 here over 200 tensors: {small_tensors(cls, mesh):.2f} of the time")


if __name__ == "__main__":
    COUNTED = Counted()
    main()
