"""Publication of statistics: the thread group that decides on a tensor sees those of all its items, of this step.

A wrong order in memory shows only now and then, so many tensors of many items are stepped many times. Gradients grow by
powers of two, by which every sum and norm grows exactly: a statistic of an earlier step makes a norm differ.
"""

from __future__ import annotations

import pytest
import torch

import onepass
from gpu.target import BACKEND, pick, to_device
from tensors import values

TENSORS, STEPS = pick((150, 200), (6, 4))
SHAPES = {"rows": (40, 1200), "long rows": (12, 9000), "pieces": (1, 90_000), "items of warps": (2, 500)}


@pytest.mark.parametrize("speculate", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_norms_are_those_of_this_step(shape: tuple[int, int], speculate: bool) -> None:
    params = [to_device(values(shape, torch.float32, seed)) for seed in range(TENSORS)]
    gradients = [to_device(values(shape, torch.float32, 1000 + seed)) for seed in range(TENSORS)]
    opt = onepass.AdamP(params, lr=0.0, weight_decay=0.0, speculate=speculate, backend=BACKEND)
    first = None
    for step in range(STEPS):
        power = (0, 3, 1, 4, 2)[step % 5]
        for p, g in zip(params, gradients, strict=True):
            p.grad = g * 2.0**power
        opt.step()
        last = opt.last_step()
        found = torch.stack([last.g_norm / 2.0**power, last.p_norm, last.cosine])
        first = found if first is None else first
        assert torch.equal(found, first), f"step {step}: {(found != first).sum()} differ"
