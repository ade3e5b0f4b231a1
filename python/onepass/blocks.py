"""Moments of 8 bits: floats of 8 bits relative to an exponent that a block of 256 shares.

A code c of the first moment is a sign, 4 bits of exponent and 3 of fraction; one of the second, which has no sign, has 5 bits of
exponent. With the block's scale s, the bits of the float32 number are `(c << 20) + (s << 23)`, below the sign; code 0 is 0. The
scale is chosen so that the largest number of the block can be rounded up. There are no tables, divisions or searches: a code is
made by an addition and a shift.

The first moment is rounded to nearest, and to 0 below 2^-15 of the largest. The second is rounded by random bits, since its steps
are some 1/1000 of it; and no number above 0 becomes 0, which would make u = m/eps. A number that is not finite makes its whole
block NaN.

Blocks restart at each row (index of dim 0; a vector is one row), so that a part of the rows has just their blocks. The format is
that of microscaling floats (OCP, "Microscaling Formats (MX) Specification", 2023) with blocks of 256 in place of 32.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256
SCALE = "_scale"  # follows the key of a moment: the key of its scales
# Shifts: float32 has 23 bits of fraction, a code 3 of them. Exponents below that of the largest number: 2^4 - 1 and 2^5 - 1.
FRACTION, DROPPED = 23, 20
SIGNED, UNSIGNED = 15, 31
NEAREST = 1 << (DROPPED - 1)
NAN = 255  # the scale of a block that has numbers that are not finite; all its codes are 1

# Of smaller tensors the moments are float32, and of tensors with shorter rows bfloat16: scales would weigh too much. Of smaller
# vectors they are float32 too, as a vector is one row, which shards cut at places that are no multiples of BLOCK.
SMALLEST_TENSOR, SMALLEST_VECTOR, SHORTEST_ROW = 4096, 65536, 64


def rows_of(shape: torch.Size) -> tuple[int, int]:
    """Rows, and the elements of each."""
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


def scale_shape(shape: torch.Size) -> tuple[int, int]:
    """Of the scales of a moment: uint8, (rows, blocks of a row)."""
    rows, length = rows_of(shape)
    return rows, -(-length // BLOCK)


def has_scales(moment: Any) -> bool:
    """Whether a moment is one of 8 bits."""
    return isinstance(moment, Tensor) and moment.dtype == torch.uint8


def encoded(x: Tensor, bits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The codes of a moment, uint8 of its shape, and its scales.

    x: float32. bits: of the second moment, what is added to its bits before they are cut: integers below 2^20 of the shape of x.
    None for the first moment.
    """
    span = SIGNED if bits is None else UNSIGNED
    number = _blocks(x.view(torch.int32))
    up = torch.full_like(number, NEAREST) if bits is None else _blocks(bits)
    magnitude = number & 0x7FFFFFFF
    top = (magnitude.amax(-1, keepdim=True) + (NEAREST if bits is None else (1 << DROPPED) - 1)) >> FRACTION
    scale = torch.where(top >= 255, NAN, top.clamp(min=span + 1) - span)
    code = (magnitude + up - (scale << FRACTION)) >> DROPPED
    if bits is None:
        code = torch.where(code > 0, code | (number >> 24) & 0x80, 0)
    else:
        code = torch.where(magnitude > 0, code.clamp(min=1), 0)
    code = torch.where(scale == NAN, 1, code)
    _, length = rows_of(x.shape)
    return (
        code.flatten(1)[:, :length].reshape(x.shape).to(torch.uint8),
        scale.squeeze(-1).to(torch.uint8),
    )


def decoded(code: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """The float32 numbers of codes. signed: of the first moment."""
    c = _blocks(code)
    digits = c & 0x7F if signed else c
    number = torch.where(digits > 0, (digits << DROPPED) + (scale.to(torch.int64).unsqueeze(-1) << FRACTION), 0)
    if signed:
        number = number | ((c & 0x80) << 24)
    _, length = rows_of(code.shape)
    number = number.flatten(1)[:, :length].reshape(code.shape)
    return ((number ^ (1 << 31)) - (1 << 31)).to(torch.int32).view(torch.float32)


def _blocks(x: Tensor) -> Tensor:
    """int64, (rows, blocks, BLOCK): the elements of each row in the order of the shape, with zeros at its end."""
    rows, length = rows_of(x.shape)
    blocks = -(-length // BLOCK)
    return pad(x.reshape(rows, length).to(torch.int64), (0, -length % BLOCK)).reshape(rows, blocks, BLOCK)
