"""16-bit numbers in and out, exhaustively: every pattern that can be read, and float32 numbers around every rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import onepass
from compare import assert_same_bits
from records import each_backend

HALVES = [torch.bfloat16, torch.float16]
each_half = pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])


def every_pattern(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def every_rounding() -> Tensor:
    """float32 numbers with every sign, exponent and upper mantissa, below which the bits lie on either side of a tie.

    A tie is at bit 15 for bfloat16 and at bit 12 for float16, or further up where that is subnormal.
    """
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    ties = torch.tensor([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF], dtype=torch.int32)
    lower = (torch.arange(8, dtype=torch.int32)[:, None] << 13) + ties
    return (upper[:, None] + lower.flatten()).view(torch.float32).flatten()


def check_reading(backend: str, dtype: torch.dtype) -> None:
    """Through the gradient into a float32 buffer, and through a parameter that is left as it is."""
    patterns = every_pattern(dtype)
    p = torch.zeros_like(patterns)
    opt = onepass.SGD([p], lr=0.0, momentum=0.5, backend=backend)
    p.grad = patterns
    opt.step()
    assert_same_bits(opt.state[p]["momentum_buffer"], 0.0 + patterns.float(), "gradient")  # -0 becomes 0

    p = patterns.clone()
    opt = onepass.SGD([p], lr=0.0, backend=backend)
    p.grad = torch.zeros_like(p)
    opt.step()
    assert_same_bits(p, patterns, "parameter")


def check_writing(backend: str, dtype: torch.dtype) -> None:
    """p = 0 - buffer, rounded to the nearest and at a tie to the even one."""
    numbers = every_rounding()
    p = torch.zeros(numbers.shape, dtype=dtype)
    opt = onepass.SGD([p], lr=1.0, momentum=1.0, backend=backend)
    opt.state[p]["momentum_buffer"] = numbers.clone()
    p.grad = torch.zeros_like(p)
    opt.step()
    # 0 - 0 and 0 - -0 are 0, and what a NaN carries is nobody's business.
    assert_same_bits(p, (0.0 - numbers).to(dtype), "parameter")


def check_all(backend: str) -> None:
    for dtype in HALVES:
        check_reading(backend, dtype)
        check_writing(backend, dtype)


@each_backend
@each_half
def test_reading(backend: str, dtype: torch.dtype) -> None:
    check_reading(backend, dtype)


@each_backend
@each_half
def test_writing(backend: str, dtype: torch.dtype) -> None:
    check_writing(backend, dtype)
