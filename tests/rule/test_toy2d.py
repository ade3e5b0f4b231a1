"""The two-dimensional problem of the AdamP paper, whose minimum is a direction: |w| shows what the projection removes.

f(w) = (1 - cos(w, w*))^2 from a w0 of norm 1 that points 0.001 rad away from -w*, 499 steps of lr 0.01.

Triton, which is interpreted, takes 60 of the steps, from where w begins to turn; the reference takes the others.
"""

from __future__ import annotations

import math
from typing import Any

import adamp
import pytest
import torch
from torch import Tensor

import onepass
from records import each_backend

TARGET = torch.tensor([[0.0, 1.0]], dtype=torch.float64)


def _loss(w: Tensor) -> Tensor:
    return (1 - (w * TARGET).sum() / w.norm()) ** 2


def _run(make: Any, backend: str | None, **arguments: Any) -> tuple[float, float]:
    """Final norm of the weight, and loss. backend=None: an optimizer of another package."""
    if backend is not None:
        arguments["backend"] = backend
    angle = 0.001
    w = torch.tensor([[math.sin(angle), -math.cos(angle)]], dtype=torch.float64, requires_grad=True)
    opt = make([w], lr=0.01, **arguments)
    left, turns = 60 if backend == "triton" else 0, False
    for _ in range(499):
        if backend == "triton":
            turns = turns or bool(w[0, 1] > -0.95 * w.norm())
            opt.param_groups[0]["backend"] = "triton" if turns and left else "reference"
            left -= bool(turns and left)
        opt.zero_grad()
        _loss(w).backward()
        opt.step()
    assert left == 0
    return float(w.detach().norm()), float(_loss(w).detach())


@each_backend
@pytest.mark.parametrize("make", [onepass.SGD, onepass.SGDP], ids=["SGD", "SGDP"])
def test_gradient_descent(backend: str, make: Any) -> None:
    """Without momentum the update has no radial part, projected or not."""
    assert _run(make, backend)[0] == pytest.approx(1.019763, abs=2e-6)


@each_backend
def test_momentum_increases_the_norm(backend: str) -> None:
    assert _run(onepass.SGD, backend, momentum=0.9)[0] == pytest.approx(2.932619, abs=2e-6)


@each_backend
def test_sgdp_of_the_paper(backend: str) -> None:
    norm, loss = _run(onepass.SGDP, backend, momentum=0.9)
    assert norm == pytest.approx(1.122110, abs=2e-6)
    assert loss == pytest.approx(3.547e-5, abs=2e-8)


@each_backend
def test_sgdp_of_the_adamp_package(backend: str) -> None:
    """Projection of the buffer too gives another norm, which distinguishes the two variants."""
    norm, _ = _run(onepass.SGDP, backend, momentum=0.9, project_momentum=True)
    assert norm == pytest.approx(1.173, abs=1e-3)


@each_backend
@pytest.mark.parametrize("name", ["AdamP", "SGDP"])
def test_matches_the_adamp_package(backend: str, name: str) -> None:
    ours = {"project_momentum": True} if name == "SGDP" else {}
    momentum = {"momentum": 0.9} if name == "SGDP" else {}
    got = _run(getattr(onepass, name), backend, **momentum, **ours)
    assert got == pytest.approx(_run(getattr(adamp, name), None, **momentum), rel=1e-9)
