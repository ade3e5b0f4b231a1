"""Random bits of stochastic rounding: a stateless hash of the seed, the step, the tensor and the element's place in it.

The same bits come of every layout, thread, device and shard, and a resumed run draws what the unbroken one would; no generator
of torch is touched. csrc/rules/draws.h says the same, and names the source of the mixer.

Every number here is of 32 bits, without sign: an int, or int64 tensors of them.
"""

from __future__ import annotations

from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from .sharding import Shard

MASK = 0xFFFFFFFF
START = (0x243F6A88, 0x85A308D3)

Number = TypeVar("Number", int, Tensor)


def mixed(x: Number, second: Number | int = 0) -> Number:
    """A permutation of the numbers of 32 bits, in which each bit depends on all; `second` is joined in after the first of its
    three rounds."""
    x = ((x ^ (x >> 17)) * 0xED5AD4BB) & MASK  # int64 wraps, which leaves the lower bits right
    x = ((x ^ (x >> 11) ^ second) * 0xAC4C1B51) & MASK
    x = ((x ^ (x >> 15)) * 0x31848BAB) & MASK
    return x ^ (x >> 14)


def absorbed(key: tuple[int, int], *words: int) -> tuple[int, int]:
    a, b = key
    for word in words:
        a = mixed(a ^ word)
        b = mixed(b ^ a)
    return a, b


def step_key(seed: int, step: int) -> tuple[int, int]:
    """The key of a step. seed: below 2^64. step: the count of the parameter, this step included."""
    return absorbed(START, seed & MASK, seed >> 32, step)


def draws(
    seed: int, step: int, number: int, shape: torch.Size, device: torch.device, shard: Shard | None = None
) -> Tensor:
    """The bits of every element of a tensor: the lower 16 round the parameter, the upper 16 its second moment, or the upper 20 where
    that has 8 bits (blocks.py).

    number: of the parameter among all of the optimizer. shard: of what this is a part, where it is one: an element has the bits of
    its place in the whole, in the order of the shape. Returns int64 of the shape.
    """
    a, b = absorbed(step_key(seed, step), number)
    index = torch.arange(prod(shape), dtype=torch.int64, device=device)
    if shard is not None:
        if shard.split:  # each row is a part of one
            length = prod(shape[1:])
            index += index // max(length, 1) * (prod(shard.shape[1:]) - length)
        index += shard.first
    # Keys that differ in `a` alone would give the same bits in another order, hence `b`.
    return mixed((index & MASK) ^ a, ((index >> 32) * 0x9E3779B1 & MASK) ^ b).reshape(shape)


def rounded(x: Tensor, bits: Tensor) -> Tensor:
    """float32 rounded to numbers of bfloat16, up or down by random bits, 16 of each element: on average x itself. A NaN stays one."""
    own = x.view(torch.int32)
    up = torch.where(x.isnan(), own | 0x400000, (own + bits).to(torch.int32))
    return (up & -0x10000).view(torch.float32)
