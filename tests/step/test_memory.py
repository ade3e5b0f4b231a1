"""A step allocates almost no memory beside parameters, gradients and state, and leaks none."""

from __future__ import annotations

import sys

import pytest
import torch

import onepass
from paths import BENCH

sys.path.append(str(BENCH))
from peak import peak


def _peak_of_steps(name: str, backend: str) -> float:
    """Peak of four steps beyond what is allocated between steps, as a share of the 6 MB of parameters.

    One thread: each allocates a buffer for pieces of strided tensors with its first one, and keeps it.
    """
    torch.set_num_threads(1)
    # Rows, one row, no rows, and a gradient of another layout.
    params = [torch.ones(512, 1024), torch.ones(1, 500_000), torch.ones(200_000), torch.ones(300, 1000)]
    for p in params:
        p.grad = torch.ones_like(p).uniform_(-1, 1)
    params[3].grad = params[3].grad.T.contiguous().T
    opt = getattr(onepass, name)(params, lr=1e-3, weight_decay=0.1, backend=backend)
    for _ in range(2):
        opt.step()
    return peak(lambda: [opt.step() for _ in range(4)]) / sum(p.nbytes for p in params)


@pytest.mark.parametrize("name", ["AdamW", "AdamP"])
def test_peak_of_a_step(name: str) -> None:
    assert _peak_of_steps(name, "cpu") <= 0.001


def test_peak_includes_temporaries() -> None:
    size = 1 << 20
    assert size <= peak(lambda: torch.ones(size, dtype=torch.uint8)) <= 1.05 * size
    assert _peak_of_steps("AdamW", "reference") > 0.1
