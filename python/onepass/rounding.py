"""The square root that the reference uses: rounded to nearest in every dtype, as the compiled kernels have it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def square_root(x: Tensor) -> Tensor:
    """sqrt(x), elementwise, rounded to nearest even. x: any shape, float32 or float64; NaN below zero.

    torch's own square root on CPUs is MKL's vector function (torch 2.13), which is off by one unit in the last place for
    1.4% of float64 numbers. In float32 a root taken in float64 is right after it is rounded. In float64 the neighbours r of
    torch's result are tested after Tuckerman: r is nearest if r*(r - unit) < x <= r*(r + unit).
    """
    if x.dtype != torch.float64:
        return x.double().sqrt().to(x.dtype)
    # By powers of two to where no product below overflows or loses bits.
    scale = torch.ones_like(x)
    scale[x < 2.0**-500] = 2.0**300
    scale[x > 2.0**500] = 2.0**-300
    y = x * scale * scale
    r = y.sqrt()
    above = r.nextafter(torch.full_like(r, math.inf))
    r = torch.where(_product_minus(r, above, y) < 0, above, r)
    below = r.nextafter(torch.zeros_like(r))
    r = torch.where(_product_minus(r, below, y) >= 0, below, r)
    return r / scale


def _product_minus(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """a*b - y with the sign of the exact value, for y near a*b: the error of the product is found by Dekker's splitting."""
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    product = a * b
    error = a_high * b_high - product + a_high * b_low + a_low * b_high + a_low * b_low
    return (product - y) + error


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as a sum of two float64 of 26 bits each, whose products are exact."""
    far = (2.0**27 + 1) * x
    high = far - (far - x)
    return high, x - high
