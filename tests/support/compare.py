"""Comparisons as strict as the arithmetic allows, with messages that show where they fail."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.uint8: torch.uint8,
    torch.int16: torch.int16,
    torch.int64: torch.int64,
}
# Half of the distance from 1 to the next larger number.
UNIT = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
# Half of the smallest positive number.
TINY = {torch.float64: 0.0, torch.float32: 2.0**-150, torch.float16: 2.0**-25, torch.bfloat16: 0.0}


def bits(t: Tensor) -> Tensor:
    """The bits of every element as integers; payloads of NaN, which no rule defines, are dropped."""
    t = t.detach().resolve_neg().contiguous()
    if t.is_floating_point() and t.isnan().any():
        t = torch.where(t.isnan(), torch.nan, t)
    return t.view(_BITS[t.dtype])


def assert_same_bits(got: Tensor, want: Tensor, what: str) -> None:
    """Raises unless both have the same bits: -0 differs from 0, any NaN equals any NaN."""
    assert got.dtype == want.dtype and got.shape == want.shape, (
        f"{what}: got {got.dtype} {tuple(got.shape)}, want {want.dtype} {tuple(want.shape)}"
    )
    a, b = bits(got), bits(want)
    if not torch.equal(a, b):
        _report(a != b, got, want, what)


def assert_within(got: Tensor, want: Any, size: Any, units: float, what: str) -> None:
    """Raises unless |got - want| <= units * 2^-24 * size (2^-53 for float64).

    size: the magnitude of the terms that make up `want`. A 16-bit `got` may also be off by its last rounding.
    """
    exact = _wide(want)
    error = np.abs(_wide(got) - exact)
    work = torch.float64 if got.dtype == torch.float64 else torch.float32
    allowed = units * UNIT[work] * _wide(size)
    if got.dtype != work:
        allowed = allowed + UNIT[got.dtype] * np.abs(exact) + TINY[got.dtype]
    bad = torch.as_tensor(np.asarray(~(error <= allowed)))
    largest = float((error / np.maximum(allowed, 1e-300)).max()) if error.size else 0.0
    _report(bad, got, torch.as_tensor(exact.astype(np.float64)), f"{what} ({largest:.3g} x allowed)")


def _wide(x: Any) -> np.ndarray:
    if isinstance(x, Tensor):
        x = x.detach().double().numpy()
    return np.asarray(x, dtype=np.longdouble)


def _report(bad: Tensor, got: Tensor, want: Tensor, what: str) -> None:
    if not bad.any():
        return
    where = bad.nonzero()[:5].tolist()
    shown = ", ".join(f"{at}: got {got[tuple(at)].item()!r}, want {want[tuple(at)].item()!r}" for at in where)
    raise AssertionError(
        f"{what}, shape {tuple(got.shape)}, {got.dtype}: {int(bad.sum())} of {bad.numel()} elements differ; at {shown}"
    )


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every state tensor, named by group, parameter and key."""
    return {
        f"group {g} parameter {i} state {key}": value
        for g, group in enumerate(optimizer.param_groups)
        for i, p in enumerate(group["params"])
        for key, value in _items(optimizer.state.get(p))
        if isinstance(value, Tensor)
    }


def _items(own: Any) -> Any:
    return own.items() if isinstance(own, dict) else ()


def everything(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every parameter, gradient and state tensor by name."""
    named = state_tensors(optimizer)
    for g, group in enumerate(optimizer.param_groups):
        for i, p in enumerate(group["params"]):
            named[f"group {g} parameter {i}"] = p
            if p.grad is not None:
                named[f"group {g} parameter {i} gradient"] = p.grad
    return named


def assert_same_state(got: torch.optim.Optimizer, want: torch.optim.Optimizer) -> None:
    """Raises unless parameters, gradients and state of two optimizers have the same bits."""
    a, b = everything(got), everything(want)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert_same_bits(tensor, b[name], name)


class Snapshot:
    """A copy of all that an optimizer can write."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        # A step can write by mistake only to tensors that it accepts, which can be read here.
        named = {name: t for name, t in everything(optimizer).items() if t.layout == torch.strided}
        self.kept = {
            name: (t, t.detach().clone())
            for name, t in named.items()
            if t.dtype in _BITS and not t.is_meta and not isinstance(t, FakeTensor)
        }
        self.state = {*state_tensors(optimizer)}

    def assert_unchanged(self) -> None:
        for name, (tensor, before) in self.kept.items():
            assert_same_bits(tensor, before, name)
        assert self.state == {*state_tensors(self.optimizer)}


def digest(opt: Any) -> str:
    """A hash of parameters, gradients and state."""
    sums = hashlib.sha256()
    for tensor in everything(opt).values():
        sums.update(bits(tensor).numpy().tobytes())
    return sums.hexdigest()
