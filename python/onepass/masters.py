"""Exact float32 weights of bfloat16 parameters: the parameter holds the nearest bfloat16, an int16 remainder what is lost.

With `bits` the 32 bits of the weight, p is `(bits + 0x8000) >> 16`, and the remainder the lower 16 of `bits`, signed: below 0
where p was rounded up. Ties go away from zero, always: an even p would have 65,537 weights, and there are 65,536 remainders.
A NaN stays one: its remainder is 0.

A parameter written by others keeps its remainder, so the weight is what was written to half a unit in its last place. Where
both together would be a NaN, since p was set to zero or infinity, the remainder counts as 0.

The `store_param_remainders` of TransformerEngine and of apex have the same parts of every number, TransformerEngine under the same
key of the state.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASTER = "master_param"  # the key of the remainder in a parameter's state


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 weight as a bfloat16 parameter and an int16 remainder."""
    bits, nan = x.view(torch.int32), x.isnan()
    p = torch.where(nan, (bits >> 16) | 0x40, (bits + 0x8000) >> 16)
    remainder = torch.where(nan, 0, bits & 0xFFFF)
    return _low(p).view(torch.bfloat16), _low(remainder)


def joined(p: Tensor, remainder: Tensor) -> Tensor:
    """The float32 weight of a bfloat16 parameter and its remainder."""
    high = p.view(torch.int16).to(torch.int32) << 16
    x = (high + remainder).view(torch.float32)
    return torch.where(x.isnan(), high.view(torch.float32), x)


def _low(bits: Tensor) -> Tensor:
    """The lower 16 bits of int32, as int16."""
    return (((bits & 0xFFFF) ^ 0x8000) - 0x8000).to(torch.int16)
