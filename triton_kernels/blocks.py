"""Moments of 8 bits: what onepass/blocks.py and csrc/rules/blocks.h say, of the elements and blocks of a tile. Bits are uint32.

A tile is ROWS x WIDTH elements and ROWS x BLOCKS blocks; a tile of fewer elements than a block has one block in each row.
"""

from __future__ import annotations

import triton.language as tl

from .. import blocks
from .jit import device

LENGTH = tl.constexpr(blocks.BLOCK)
FRACTION, DROPPED = tl.constexpr(blocks.FRACTION), tl.constexpr(blocks.DROPPED)
UNIT, NEAREST = tl.constexpr(1 << blocks.DROPPED), tl.constexpr(blocks.NEAREST)
SIGNED, UNSIGNED = tl.constexpr(blocks.SIGNED), tl.constexpr(blocks.UNSIGNED)
NAN = tl.constexpr(blocks.NAN)
KEPT = tl.constexpr(0x100000000 - (1 << blocks.DROPPED))  # the bits of a number that a code keeps
MAGNITUDE, SIGN = tl.constexpr(0x7FFFFFFF), tl.constexpr(0x80000000)


@device
def bits_of(x):
    return x.to(tl.uint32, bitcast=True)


@device
def count_of(length):
    """Blocks of so many elements."""
    return (length + LENGTH - 1) // LENGTH


@device
def largest_of_blocks(x):
    """The largest number of each block."""
    ROWS: tl.constexpr = x.shape[0]
    BLOCKS: tl.constexpr = (x.shape[1] + LENGTH - 1) // LENGTH
    return tl.max(tl.reshape(x, [ROWS, BLOCKS, x.shape[1] // BLOCKS]), axis=2)


@device
def to_elements(x, WIDTH: tl.constexpr):
    """The number of its block, for each element."""
    ROWS: tl.constexpr = x.shape[0]
    BLOCKS: tl.constexpr = x.shape[1]
    return tl.reshape(tl.broadcast_to(x[:, :, None], [ROWS, BLOCKS, WIDTH // BLOCKS]), [ROWS, WIDTH])


@device
def scales_of(x, there, SPAN: tl.constexpr):
    """The scales with which the numbers `x` are to be stored, of each block. The largest of their bits, so that a NaN is not lost.
    SPAN: SIGNED of a first moment, UNSIGNED of a second."""
    UP: tl.constexpr = NEAREST if SPAN == SIGNED else UNIT - 1
    exponent = (largest_of_blocks(tl.where(there, bits_of(x) & MAGNITUDE, 0)) + UP) >> FRACTION
    return tl.where(exponent >= 255, NAN, tl.maximum(exponent, SPAN + 1) - SPAN)


@device
def first_as_stored(x, scale):
    """First moments as they are stored: rounded to nearest. scale: of each element."""
    bits = bits_of(x)
    smallest = (scale << FRACTION) + UNIT
    sum = (bits & MAGNITUDE) + NEAREST
    rounded = tl.where(sum < smallest, 0, (sum & KEPT) | (bits & SIGN))
    return tl.where(scale == NAN, smallest, rounded).to(tl.float32, bitcast=True)


@device
def second_as_stored(x, random, scale):
    """Second moments as they are stored: rounded by random numbers of 20 bits, and to 0 only if they are 0."""
    bits = bits_of(x)
    smallest = (scale << FRACTION) + UNIT
    rounded = tl.where(bits == 0, 0, tl.maximum(bits + random, smallest) & KEPT)
    return tl.where(scale == NAN, smallest, rounded).to(tl.float32, bitcast=True)


@device
def codes_of(x, scale):
    """The codes of numbers as they are stored."""
    bits = bits_of(x)
    magnitude = bits & MAGNITUDE
    code = tl.where(magnitude == 0, 0, (magnitude - (scale << FRACTION)) >> DROPPED)
    return (code | ((bits & SIGN) >> 24)).to(tl.uint8)


@device
def numbers_of(code, scale, SPAN: tl.constexpr):
    """The numbers that codes stand for."""
    code = code.to(tl.uint32)
    digits = code
    if SPAN == SIGNED:
        digits = code & 0x7F
    bits = tl.where(digits == 0, 0, (digits << DROPPED) + (scale << FRACTION))
    if SPAN == SIGNED:
        bits = bits | ((code & 0x80) << 24)
    return bits.to(tl.float32, bitcast=True)
