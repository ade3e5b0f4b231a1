"""Conversions of 16-bit floats, exhaustively: reads of every bit pattern, and float32 numbers around every rounding."""

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
    """float32 numbers of every sign, exponent and upper mantissa, with lower bits on both sides of a tie.

    A tie is at bit 15 for bfloat16 and at bit 12 for float16, higher where float16 is subnormal.
    """
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    ties = torch.tensor([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF], dtype=torch.int32)
    lower = (torch.arange(8, dtype=torch.int32)[:, None] << 13) + ties
    return (upper[:, None] + lower.flatten()).view(torch.float32).flatten()


def check_reading(backend: str, dtype: torch.dtype) -> None:
    """Reads every pattern as a gradient, into a float32 buffer, and as a parameter that the step does not change."""
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
    """p = 0 - buffer, rounded to nearest, ties to even."""
    numbers = every_rounding()
    p = torch.zeros(numbers.shape, dtype=dtype)
    opt = onepass.SGD([p], lr=1.0, momentum=1.0, backend=backend)
    opt.state[p]["momentum_buffer"] = numbers.clone()
    p.grad = torch.zeros_like(p)
    opt.step()
    # 0 - 0 and 0 - -0 are 0; payloads of NaN are not compared.
    assert_same_bits(p, (0.0 - numbers).to(dtype), "parameter")


def check_all(backend: str) -> None:
    for dtype in HALVES:
        check_reading(backend, dtype)
        check_writing(backend, dtype)


@each_backend
@each_half
def test_reads_of_every_16_bit_pattern(backend: str, dtype: torch.dtype) -> None:
    check_reading(backend, dtype)


@each_backend
@each_half
def test_writes_round_to_nearest_even(backend: str, dtype: torch.dtype) -> None:
    check_writing(backend, dtype)
