"""Scale-freeness: at eps=0 a constant factor on each coordinate's gradients does not change the iterates.

With powers of two as factors every operation of a scale-free rule scales exactly, so even the bits are the same.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compare import assert_same_bits
from records import RECORDS, each_backend, each_dtype
from tensors import values

SIZE, STEPS = 200, 50


def _trajectory(name: str, backend: str, dtype: torch.dtype, factors: Tensor, **changed: Any) -> list[Tensor]:
    p = values((SIZE,), dtype, 1)
    arguments: dict[str, Any] = dict(lr=1e-2, weight_decay=0.3, eps=0.0, backend=backend)
    opt = RECORDS[name].make([p], **{**arguments, **changed})
    path = []
    for seed in range(STEPS):
        p.grad = (values((SIZE,), dtype, seed) * factors).to(dtype)
        opt.step()
        path.append(p.clone())
    return path


def _powers_of_two() -> Tensor:
    return 2.0 ** ((torch.arange(SIZE) % 17) - 8)


@each_backend
@each_dtype
@pytest.mark.parametrize("name", ["AdamW", "AdamProx"])
def test_scale_free_bit_for_bit(backend: str, dtype: torch.dtype, name: str) -> None:
    one = _trajectory(name, backend, dtype, torch.ones(SIZE))
    other = _trajectory(name, backend, dtype, _powers_of_two())
    for i, (p, q) in enumerate(zip(one, other, strict=True)):
        assert_same_bits(q, p, f"step {i}")


@each_backend
@pytest.mark.parametrize("name", ["AdamW", "AdamProx"])
def test_scale_free_by_ten(backend: str, name: str) -> None:
    one = _trajectory(name, backend, torch.float64, torch.ones(SIZE))
    other = _trajectory(name, backend, torch.float64, torch.full((SIZE,), 10.0))
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-13, atol=1e-14)


@each_backend
@pytest.mark.parametrize(("name", "weight_decay"), [("Adam", 0.3), ("AdamProxL2", 1.0)])
def test_not_scale_free(backend: str, name: str, weight_decay: float) -> None:
    """l2 decay and AdamProxL2's decay depend on the scale: the tests above can fail."""
    rest = (backend, torch.float32)
    one = _trajectory(name, *rest, torch.ones(SIZE), weight_decay=weight_decay)[-1]
    other = _trajectory(name, *rest, _powers_of_two(), weight_decay=weight_decay)[-1]
    assert float((one - other).abs().max()) > 0.03


@each_backend
@each_dtype
def test_adam_without_decay_is_scale_free(backend: str, dtype: torch.dtype) -> None:
    one = _trajectory("Adam", backend, dtype, torch.ones(SIZE), weight_decay=0)
    other = _trajectory("Adam", backend, dtype, _powers_of_two(), weight_decay=0)
    assert_same_bits(other[-1], one[-1], "last step")


@each_backend
@each_dtype
@pytest.mark.parametrize("name", [name for name in RECORDS if name.startswith("Adam")])
def test_zero_gradients_without_eps(backend: str, dtype: torch.dtype, name: str) -> None:
    """0/0 := 0: with eps=0 a coordinate with v = 0 keeps its value, without NaN; the others step."""
    p = values((SIZE,), dtype, 1)
    start = p.clone()
    opt = RECORDS[name].make([p], lr=0.1, eps=0.0, weight_decay=0, backend=backend)
    dead = torch.arange(SIZE) % 3 == 0
    for seed in range(3):
        p.grad = values((SIZE,), dtype, seed).masked_fill(dead, 0)
        opt.step()
    assert p.isfinite().all()
    assert_same_bits(p[dead], start[dead], "without a gradient")
    assert float((p[~dead] != start[~dead]).double().mean()) > 0.9


@each_backend
@pytest.mark.parametrize("name", ["AdamW", "AdamProx", "AdamProxL2", "AdamP"])
def test_decay_with_zero_gradients(backend: str, name: str) -> None:
    """A zero gradient still decays p, except in AdamProxL2, whose metric is undefined at v = 0."""
    p = values((SIZE,), torch.float32, 1)
    start = p.clone()
    opt = RECORDS[name].make([p], lr=1e-2, eps=0.0, weight_decay=10.0, backend=backend)
    p.grad = torch.zeros_like(p)
    opt.step()
    kept = {"AdamW": 0.9, "AdamP": 0.9, "AdamProx": 1 / 1.1, "AdamProxL2": 1.0}[name]
    torch.testing.assert_close(p, kept * start)
