"""Random bits of stochastic rounding: what draws.py and csrc/rules/draws.h say, of the elements of a tile."""

from __future__ import annotations

import triton.language as tl

from .jit import device
from .memory import NUMBER, of
from .rules import DRAW_A, DRAW_B


@device
def mixed(x, second):
    """A permutation of the numbers of 32 bits; `second` is joined in after the first of its rounds. uint32."""
    x = (x ^ (x >> 17)) * 0xED5AD4BB
    x = (x ^ (x >> 11) ^ second) * 0xAC4C1B51
    x = (x ^ (x >> 15)) * 0x31848BAB
    return x ^ (x >> 14)


@device
def absorbed(a, b, word):
    """The key (a, b) with one more word."""
    a = mixed(word ^ a, 0)  # in this order, since the interpreter wants a tensor before a constant
    return a, mixed(a ^ b, 0)


@device
def whole(x):
    """A float64 that holds a number of 32 bits, as one."""
    return x.to(tl.int64).to(tl.uint32)


@device
def draws(tensor, start, scalars, WIDTH: tl.constexpr):
    """uint32 of every element of a tile: the lower 16 bits round the parameter, the upper 16 its second moment. start: the places
    of the first elements of its rows in the whole tensors."""
    a, b = absorbed(
        whole(tl.load(scalars + DRAW_A)), whole(tl.load(scalars + DRAW_B)), of(tensor, NUMBER).to(tl.uint32)
    )
    column = tl.arange(0, WIDTH)[None, :]
    index = start.to(tl.uint32)[:, None] + column.to(tl.uint32)
    b = tl.broadcast_to(b[:, None], index.shape)
    if tl.max(start, axis=0) + WIDTH > 0xFFFFFFFF:  # the upper half of the index is not 0
        b = b ^ ((start[:, None] + column) >> 32).to(tl.uint32) * 0x9E3779B1
    return mixed(index ^ a[:, None], b)
