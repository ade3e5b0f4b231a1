"""The reference's square root is correctly rounded, even where torch's is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compare import assert_same_bits
from onepass.rounding import square_root
from tensors import generator

INTERESTING = [
    *(0.0, math.inf, math.nan, 5e-324, 1e-310, 2.0**-1022, 1.7976931348623157e308, 1.0, 2.0, 4.0, 0.25),
    *(math.nextafter(1.0, 2.0), math.nextafter(1.0, 0.0), math.nextafter(4.0, 0.0), 2.0**500, 2.0**-500),
]


def _doubles() -> Tensor:
    """Numbers of every exponent, and squares with their neighbours, whose roots are exact or close to a tie."""
    fraction = 1 + torch.rand(40_000, generator=generator(1), dtype=torch.float64)
    exponent = torch.randint(-1070, 1023, fraction.shape, generator=generator(2)).tolist()
    anywhere = [math.ldexp(x, e) for x, e in zip(fraction.tolist(), exponent, strict=True)]
    squares = torch.randint(1, 2**26, (10_000,), generator=generator(3)).double().square()
    infinity = torch.tensor(math.inf, dtype=torch.float64)
    near = [squares, squares.nextafter(infinity), squares.nextafter(-infinity)]
    return torch.cat([torch.tensor([*INTERESTING, *anywhere], dtype=torch.float64), *near])


def test_float64_root_is_correctly_rounded() -> None:
    """Equals C's sqrt, which IEEE 754 requires to be correctly rounded."""
    x = _doubles()
    assert_same_bits(square_root(x), torch.tensor([math.sqrt(y) for y in x.tolist()], dtype=torch.float64), "root")
    assert square_root(torch.tensor([-1.0], dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize("off", [-1, 0, 1])
def test_float64_root_from_an_inexact_root(monkeypatch: pytest.MonkeyPatch, off: int) -> None:
    """torch's root may be off by a unit in the last place, depending on its build."""
    x = torch.rand(10_000, generator=generator(4), dtype=torch.float64)
    nearest = torch.tensor([math.sqrt(y) for y in x.tolist()], dtype=torch.float64)
    moved = nearest if off == 0 else nearest.nextafter(torch.full_like(x, off * math.inf))
    monkeypatch.setattr(Tensor, "sqrt", lambda _: moved)
    assert_same_bits(square_root(x), nearest, "root")


def test_float32_root_is_correctly_rounded() -> None:
    x = torch.cat([_doubles().float().abs(), torch.tensor([1e-45, 1.2e-38])])
    assert_same_bits(square_root(x), torch.tensor([math.sqrt(y) for y in x.tolist()], dtype=torch.float32), "root")
