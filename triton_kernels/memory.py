"""Global memory: the tables of a plan (plan.py), and tiles of the tensors' elements. All offsets are 64 bits wide."""

from __future__ import annotations

import triton.language as tl

from . import blocks
from .jit import device
from .plan import ROW_STATS, SCALARS, STATS, TENSOR, VERDICT
from .rules import ADAM_RULE, SGD_RULE

TENSOR_FIELDS = tl.constexpr(len(TENSOR))
P = tl.constexpr(TENSOR.index("p"))
G = tl.constexpr(TENSOR.index("g"))
M = tl.constexpr(TENSOR.index("m"))
V = tl.constexpr(TENSOR.index("v"))
R = tl.constexpr(TENSOR.index("r"))
M_SCALE = tl.constexpr(TENSOR.index("m_scale"))
V_SCALE = tl.constexpr(TENSOR.index("v_scale"))
NUMBER = tl.constexpr(TENSOR.index("number"))
GATE_COUNTER = tl.constexpr(TENSOR.index("gate_counter"))
BUCKET = tl.constexpr(TENSOR.index("bucket"))
ROW_COUNT = tl.constexpr(TENSOR.index("rows"))
ROW_LENGTH = tl.constexpr(TENSOR.index("length"))
PIECES = tl.constexpr(TENSOR.index("pieces"))
FIRST_ROW = tl.constexpr(TENSOR.index("first_row"))
SPECULATES = tl.constexpr(TENSOR.index("speculates"))
WHOLE_LENGTH = tl.constexpr(TENSOR.index("whole_length"))
SPLIT = tl.constexpr(TENSOR.index("split"))

SCALARS_FIELDS = tl.constexpr(len(SCALARS))

PG = tl.constexpr(ROW_STATS.index("pg"))
PP = tl.constexpr(ROW_STATS.index("pp"))
GG = tl.constexpr(ROW_STATS.index("gg"))
PU = tl.constexpr(ROW_STATS.index("pu"))
C = tl.constexpr(ROW_STATS.index("c"))
DEFERRED = tl.constexpr(ROW_STATS.index("deferred"))

STATS_FIELDS = tl.constexpr(len(STATS))
T_PG = tl.constexpr(STATS.index("pg"))
T_PP = tl.constexpr(STATS.index("pp"))
T_GG = tl.constexpr(STATS.index("gg"))
T_PU = tl.constexpr(STATS.index("pu"))
T_COSINE = tl.constexpr(STATS.index("max_cosine_squared"))
T_ROWS = tl.constexpr(STATS.index("rows"))

VERDICT_FIELDS = tl.constexpr(len(VERDICT))
V_GATE = tl.constexpr(VERDICT.index("gate"))
V_WRITTEN = tl.constexpr(VERDICT.index("written"))
V_CORRECTED = tl.constexpr(VERDICT.index("corrected"))
V_NEEDS_CORRECTION = tl.constexpr(VERDICT.index("needs_correction"))
V_COSINE = tl.constexpr(VERDICT.index("cosine"))
V_C = tl.constexpr(VERDICT.index("c"))
V_PG = tl.constexpr(VERDICT.index("pg"))
V_PP = tl.constexpr(VERDICT.index("pp"))
V_GG = tl.constexpr(VERDICT.index("gg"))
V_PU = tl.constexpr(VERDICT.index("pu"))

# ------------------------------------------------------------------ tables


@device
def of(record, name):
    """A field of a tensor's record, or of a verdict."""
    return tl.load(record + name)


@device
def load_rows(row_table, count, tensors, first, ROWS: tl.constexpr):
    """Index, tensor, first element and length of each row of a tile; length 0 where its tensor is not stepped."""
    row = first + tl.arange(0, ROWS)
    index = tl.load(row_table + row)
    start = tl.load(row_table + count + row)
    length = tl.load(row_table + 2 * count + row)
    tensor = tensors + index * TENSOR_FIELDS
    length = tl.where(of(tensor, G) != 0, length, 0)
    return row, index, tensor, start, length.to(tl.int32)


@device
def within(length, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):
    """Mask of the tile's elements that are inside their row; constant over each 16 bytes where these are accessed at once."""
    column = tl.arange(0, WIDTH)[None, :]
    if ALIGNED:
        return column // ALIGNED < (length // ALIGNED)[:, None]
    else:
        return column < length[:, None]


@device
def operand(tensor, name, start, DTYPE: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to the elements of a tile."""
    if tl.bfloat16 == DTYPE:
        pointer = of(tensor, name).to(tl.pointer_type(tl.uint16)) + start
    else:
        pointer = of(tensor, name).to(tl.pointer_type(DTYPE)) + start
    if ALIGNED:
        pointer = tl.multiple_of(pointer, [16])
    return pointer[:, None] + tl.arange(0, WIDTH)[None, :]


@device
def weights(tensor, start, PARAM: tl.constexpr, MASTER: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to the parameter and to its remainder."""
    at_p = operand(tensor, P, start, PARAM, WIDTH, ALIGNED)
    at_r = at_p
    if MASTER:
        at_r = operand(tensor, R, start, PARAM, WIDTH, ALIGNED)
    return at_p, at_r


@device
def read_weight(at_p, at_r, there, PARAM: tl.constexpr, MASTER: tl.constexpr):
    """The parameter, or with its remainder the float32 weight; p alone where both make a NaN of a p that is none."""
    p = read(at_p, there, PARAM)
    if MASTER:
        remainder = tl.load(at_r, mask=there, other=0).to(tl.int16, bitcast=True).to(tl.int32)
        x = (p.to(tl.int32, bitcast=True) + remainder).to(tl.float32, bitcast=True)
        p = tl.where(x == x, x, p)
    return p


@device
def write_weight(at_p, at_r, x, there, drawn, PARAM: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr):
    """With a remainder: rounds to nearest, ties away from zero; a NaN stays one. drawn: the random bits of the elements."""
    if STOCHASTIC:
        write_rounded(at_p, rounded_by(drawn & 0xFFFF, x), there)
    elif MASTER:
        bits = x.to(tl.uint32, bitcast=True)
        high = tl.where(x == x, bits + 0x8000, bits | 0x400000) >> 16
        tl.store(at_p, high.to(tl.uint16), mask=there)
        tl.store(at_r, tl.where(x == x, bits & 0xFFFF, 0).to(tl.uint16), mask=there)
    else:
        write(at_p, x, there, PARAM)


@device
def read(pointer, there, DTYPE: tl.constexpr):
    """Elements in the dtype of arithmetic, float64 or float32; 0 outside of the mask."""
    x = tl.load(pointer, mask=there, other=0)
    if tl.bfloat16 == DTYPE:
        x = (x.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif tl.float16 == DTYPE:
        x = x.to(tl.float32)
    return x


@device
def rounded_to_nearest(x):
    """To bfloat16, ties to even; a NaN stays one. By its bits: Triton's interpreter loses the carry out of the fraction."""
    return rounded_by(((x.to(tl.uint32, bitcast=True) >> 16) & 1) + 0x7FFF, x)


@device
def rounded_by(random, x):
    """float32 to bfloat16, in float32, by random numbers of 16 bits; a NaN stays one."""
    bits = x.to(tl.uint32, bitcast=True)
    return (tl.where(x == x, bits + random, bits | 0x400000) & 0xFFFF0000).to(tl.float32, bitcast=True)


@device
def write_rounded(pointer, x, there):
    """Numbers of bfloat16, in float32."""
    tl.store(pointer, (x.to(tl.uint32, bitcast=True) >> 16).to(tl.uint16), mask=there)


@device
def write(pointer, x, there, DTYPE: tl.constexpr):
    """Rounds once, to nearest even."""
    if tl.bfloat16 == DTYPE:
        write_rounded(pointer, rounded_to_nearest(x), there)
    else:
        tl.store(pointer, x.to(DTYPE), mask=there)


# ------------------------------------------------------------------ moments


@device
def moment_at(tensor, name, scale_name, row, start, MOMENT: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to the elements of a moment, and to the scales of its blocks, where it has 8 bits."""
    at = operand(tensor, name, start, MOMENT, WIDTH, ALIGNED)
    at_scales = at
    if tl.uint8 == MOMENT:
        # The rows of the table are the pieces of the tensor's rows, in order, and each begins with a block. 32 bits divide faster.
        own_row = (row - of(tensor, FIRST_ROW)).to(tl.uint32) // of(tensor, PIECES).to(tl.uint32)
        own_row = own_row.to(tl.int64)
        length = of(tensor, ROW_LENGTH)
        first = own_row * blocks.count_of(length) + (start - own_row * length) // blocks.LENGTH
        at_scales = (of(tensor, scale_name).to(tl.pointer_type(tl.uint8)) + first)[:, None]
        at_scales += tl.arange(0, (WIDTH + blocks.LENGTH - 1) // blocks.LENGTH)[None, :]
    return at, at_scales


@device
def blocks_within(length, at_scales):
    """Mask of the blocks that have elements inside their row."""
    return blocks.LENGTH * tl.arange(0, at_scales.shape[1])[None, :] < length[:, None]


@device
def read_moment(at, at_scales, there, length, MOMENT: tl.constexpr, SPAN: tl.constexpr):
    """In the dtype of arithmetic; 0 outside of the mask. SPAN: of the blocks."""
    if tl.uint8 == MOMENT:
        scales = tl.load(at_scales, mask=blocks_within(length, at_scales), other=0).to(tl.uint32)
        code = tl.load(at, mask=there, other=0)
        return blocks.numbers_of(code, blocks.to_elements(scales, at.shape[1]), SPAN)
    else:
        return read(at, there, MOMENT)


@device
def as_stored(m, v, drawn, there, RULE: tl.constexpr, MOMENT: tl.constexpr):
    """The moments as they will be read: u is made of these, so that a correction finds it again. In fewer bits: m to nearest, v by
    its random bits, since its steps are some 1/1000 of it, and to nearest it would stall. Then the scales of 8 bits."""
    m_scales = m
    v_scales = v
    if tl.bfloat16 == MOMENT:
        if RULE != SGD_RULE:
            m = rounded_to_nearest(m)
        if RULE == ADAM_RULE:
            v = rounded_by(drawn >> 16, v)
    if tl.uint8 == MOMENT:
        # v first, so that its random bits are not in registers any more.
        v_scales = blocks.scales_of(v, there, blocks.UNSIGNED)
        v = blocks.second_as_stored(v, drawn >> 12, blocks.to_elements(v_scales, v.shape[1]))
        m_scales = blocks.scales_of(m, there, blocks.SIGNED)
        m = blocks.first_as_stored(m, blocks.to_elements(m_scales, m.shape[1]))
    return m, v, m_scales, v_scales


@device
def write_moment(at, at_scales, x, scales, there, length, MOMENT: tl.constexpr):
    """A moment as it is to be stored."""
    if tl.bfloat16 == MOMENT:
        write_rounded(at, x, there)
    elif tl.uint8 == MOMENT:
        tl.store(at, blocks.codes_of(x, blocks.to_elements(scales, x.shape[1])), mask=there)
        tl.store(at_scales, scales.to(tl.uint8), mask=blocks_within(length, at_scales))
    else:
        tl.store(at, x, mask=there)


# ------------------------------------------------------------------ sums


@device
def row_sum(a, b):
    """In float64, where a product of two floats is exact."""
    return tl.sum(a.to(tl.float64) * b.to(tl.float64), axis=1)
