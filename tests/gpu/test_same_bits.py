"""Determinism: the same bits from run to run, for any order of blocks and any stream."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import bits, everything
from drive import gradient_at
from gpu.target import BACKEND, ON_CUDA, pick, to_device
from records import Record, each_optimizer
from tensors import values

# Rows cut into pieces, long rows that fit the row cache, many short rows, one long vector, and small tensors.
SHAPES: list[tuple[int, ...]] = pick(
    [(2, 70_000), (40, 1500), (4000, 9), (400_001,), *[(8, 8)] * 40],
    [(1, 30_000), (40, 150), (400, 9), (4001,), *[(8, 8)] * 5],
)
RUNS = pick(10, 3)


class Surroundings:
    """Puts every other run on a side stream, and concurrent work on the GPU beside some runs."""

    def __init__(self) -> None:
        self.streams = [torch.cuda.Stream() for _ in range(3)] if ON_CUDA else []
        self.noise = torch.randn(1024, 1024, device="cuda") if ON_CUDA else None

    def enter(self, run: int) -> Any:
        if not ON_CUDA:
            import emulated_backend

            emulated_backend.emulated.reset(run)  # seed of the order of threads and blocks
            return nullcontext()
        torch.cuda.synchronize()
        if run % 3:
            with torch.cuda.stream(self.streams[0]):
                for _ in range(run):
                    self.noise @ self.noise
        return torch.cuda.stream(self.streams[1 + run % 2]) if run % 2 else nullcontext()


@each_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_from_run_to_run(dtype: torch.dtype, record: Record) -> None:
    starts = [values(shape, dtype, seed) for seed, shape in enumerate(SHAPES)]
    gradients = [[to_device(gradient_at(p, time)) for p in starts] for time in range(3)]
    surroundings, first = Surroundings(), None
    for run in range(RUNS):
        params = [to_device(p) for p in starts]
        with surroundings.enter(run):
            found = _written(record, params, gradients)
            if ON_CUDA:
                torch.cuda.current_stream().synchronize()
        first = first or found
        assert found.keys() == first.keys()
        differ = [name for name, tensor in found.items() if not torch.equal(tensor, first[name])]
        assert not differ, f"run {run}: {differ}"


def _written(record: Record, params: list[Tensor], gradients: list[list[Tensor]]) -> dict[str, Tensor]:
    """The bits of everything that a few steps write."""
    opt = record.make(params, backend=BACKEND, **record.typical)
    for own in gradients:
        for p, g in zip(params, own, strict=True):
            p.grad = g
        opt.step()
    return {name: bits(tensor) for name, tensor in everything(opt).items()}
