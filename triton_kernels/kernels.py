"""The traversal: the rows of a program in memory, and what each step does to them.

    step        moments and p in one go, for optimizers without a gate
    measure     sums of p and g, for tensors that do not speculate
    verdict     the gates of some projected tensors, from the reports of its rows, in one fixed order
    update      moments, p under the gate that is predicted or known, and the sums of every row
    settle      p of the tensors whose prediction was wrong, or of which some row was left alone
    square_sum  of the gradients, row by row, for clipping; then `add_up`

A program is told its class, `body`: 16 << body//2 elements to a padded row, and 16-byte accesses where it is odd. Its
tile is compiled for each class that the plan has (a bit of BODIES for each). All offsets are 64 bits wide.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import plan
from .jit import device
from .plan import COURSE, PROGRAM, REPORT, SHIFTS, TENSOR, VERDICT
from .rule import (
    ADAM,
    CHANNEL,
    LAYER,
    NONE,
    PLAIN_SGD,
    PROJECT_MOMENTUM,
    SKIPPED,
    S,
    advance,
    affine,
    apply,
    coefficient,
    correction,
    cosine_of,
    cosine_squared,
    direction,
    gradient,
    largest_or_nan,
    max_or_nan,
    next_counter,
    passes,
    predicted,
    reads_gradient,
    recoverable,
)

TENSOR_FIELDS = tl.constexpr(len(TENSOR))
P = tl.constexpr(TENSOR.index("p"))
G = tl.constexpr(TENSOR.index("g"))
M = tl.constexpr(TENSOR.index("m"))
V = tl.constexpr(TENSOR.index("v"))
GATE_COUNTER = tl.constexpr(TENSOR.index("gate_counter"))
COURSE_OF = tl.constexpr(TENSOR.index("course"))
ROW_COUNT = tl.constexpr(TENSOR.index("rows"))
ROW_LENGTH = tl.constexpr(TENSOR.index("length"))
PIECES = tl.constexpr(TENSOR.index("pieces"))
FIRST_ENTRY = tl.constexpr(TENSOR.index("first_entry"))
SPECULATES = tl.constexpr(TENSOR.index("speculates"))

PROGRAM_FIELDS = tl.constexpr(len(PROGRAM))
COURSE_FIELDS = tl.constexpr(len(COURSE))
MOST_BODIES = tl.constexpr(2 * SHIFTS[-1] + 2)

PG = tl.constexpr(REPORT.index("pg"))
PP = tl.constexpr(REPORT.index("pp"))
GG = tl.constexpr(REPORT.index("gg"))
PU = tl.constexpr(REPORT.index("pu"))
C = tl.constexpr(REPORT.index("c"))
LEFT_ALONE = tl.constexpr(REPORT.index("left_alone"))

VERDICT_FIELDS = tl.constexpr(len(VERDICT))
V_GATE = tl.constexpr(VERDICT.index("gate"))
V_WRITE = tl.constexpr(VERDICT.index("write"))
V_SETTLED = tl.constexpr(VERDICT.index("settled"))
V_SETTLE = tl.constexpr(VERDICT.index("settle"))
V_COSINE = tl.constexpr(VERDICT.index("cosine"))
V_C = tl.constexpr(VERDICT.index("c"))
V_PG = tl.constexpr(VERDICT.index("pg"))
V_PP = tl.constexpr(VERDICT.index("pp"))
V_GG = tl.constexpr(VERDICT.index("gg"))
V_PU = tl.constexpr(VERDICT.index("pu"))

# Called in place, and not named in the loops over classes: a constexpr cannot be assigned twice, and such a loop is
# unrolled into one scope.
rows_of = triton.constexpr_function(plan.rows_of)

# ------------------------------------------------------------------ tables and memory


@device
def of(record, name):
    """A field of a tensor, or of a verdict."""
    return tl.load(record + name)


@device
def open_rows(entries, count, tensors, first, ROWS: tl.constexpr):
    """Entry, tensor, first element and length of each row; no element where its tensor is not stepped."""
    entry = first + tl.arange(0, ROWS)
    index = tl.load(entries + entry)
    start = tl.load(entries + count + entry)
    length = tl.load(entries + 2 * count + entry)
    tensor = tensors + index * TENSOR_FIELDS
    length = tl.where(of(tensor, G) != 0, length, 0)
    return entry, index, tensor, start, length.to(tl.int32)


@device
def within(length, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):
    """Which elements of the tile are there. 16 bytes are there or not as one."""
    column = tl.arange(0, WIDTH)[None, :]
    if ALIGNED:
        return column // ALIGNED < (length // ALIGNED)[:, None]
    else:
        return column < length[:, None]


@device
def operand(tensor, name, start, DTYPE: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):
    """Where the elements of a tile are."""
    if tl.bfloat16 == DTYPE:
        pointer = of(tensor, name).to(tl.pointer_type(tl.uint16)) + start
    else:
        pointer = of(tensor, name).to(tl.pointer_type(DTYPE)) + start
    if ALIGNED:
        pointer = tl.multiple_of(pointer, [16])
    return pointer[:, None] + tl.arange(0, WIDTH)[None, :]


@device
def read(pointer, there, DTYPE: tl.constexpr):
    """Elements as they are worked on: float64, or float32."""
    x = tl.load(pointer, mask=there, other=0)
    if tl.bfloat16 == DTYPE:
        x = (x.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif tl.float16 == DTYPE:
        x = x.to(tl.float32)
    return x


@device
def write(pointer, x, there, DTYPE: tl.constexpr):
    """Rounds once, to nearest even. bfloat16 by its bits: Triton's interpreter loses the carry out of the fraction."""
    if tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = bits + (((bits >> 16) & 1) + 0x7FFF)
        tl.store(pointer, (tl.where(x == x, rounded, bits | 0x400000) >> 16).to(tl.uint16), mask=there)
    else:
        tl.store(pointer, x.to(DTYPE), mask=there)


@device
def row_sum(a, b):
    """In float64, where a product of two floats is exact."""
    return tl.sum(a.to(tl.float64) * b.to(tl.float64), axis=1)


# ------------------------------------------------------------------ what a program does to its tile


@device
def step_tile(entries, count, tensors, course, first, FAMILY: tl.constexpr, DTYPE: tl.constexpr, WORK: tl.constexpr,
              WIDTH: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    _, _, tensor, start, length = open_rows(entries, count, tensors, first, ROWS)
    there = within(length, WIDTH, ALIGNED)
    at_p = operand(tensor, P, start, DTYPE, WIDTH, ALIGNED)
    p = read(at_p, there, DTYPE)
    g = read(operand(tensor, G, start, DTYPE, WIDTH, ALIGNED), there, DTYPE)
    m = p
    v = p
    if FAMILY != PLAIN_SGD:
        at_m = operand(tensor, M, start, WORK, WIDTH, ALIGNED)
        m = read(at_m, there, WORK)
    if FAMILY == ADAM:
        at_v = operand(tensor, V, start, WORK, WIDTH, ALIGNED)
        v = read(at_v, there, WORK)
    g = gradient(p, g, course)
    m, v = advance(g, m, v, course, FAMILY)
    u = direction(p, g, m, v, course, FAMILY)
    d, k = affine(NONE, 0.0, course)
    if FAMILY != PLAIN_SGD:
        write(at_m, m, there, WORK)
    if FAMILY == ADAM:
        write(at_v, v, there, WORK)
    write(at_p, apply(p, u, d.to(WORK), k.to(WORK)), there, DTYPE)


@device
def report(reports, count, entry, pg, pp, gg):
    tl.store(reports + PG * count + entry, pg)
    tl.store(reports + PP * count + entry, pp)
    tl.store(reports + GG * count + entry, gg)


@device
def measure_tile(entries, count, tensors, course, reports, first, DTYPE: tl.constexpr,
                 WIDTH: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    entry, _, tensor, start, length = open_rows(entries, count, tensors, first, ROWS)
    measured = (of(tensor, GATE_COUNTER) != 0) & (of(tensor, SPECULATES) == 0)
    length = tl.where(measured, length, 0)
    if tl.max(length, axis=0) > 0:
        there = within(length, WIDTH, ALIGNED)
        p = read(operand(tensor, P, start, DTYPE, WIDTH, ALIGNED), there, DTYPE)
        g = read(operand(tensor, G, start, DTYPE, WIDTH, ALIGNED), there, DTYPE)
        g = gradient(p, g, course)
        report(reports, count, entry, row_sum(p, g), row_sum(p, p), row_sum(g, g))


@device
def square_sum_tile(entries, count, tensors, reports, first, DTYPE: tl.constexpr,
                    WIDTH: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    entry, _, tensor, start, length = open_rows(entries, count, tensors, first, ROWS)
    g = read(operand(tensor, G, start, DTYPE, WIDTH, ALIGNED), within(length, WIDTH, ALIGNED), DTYPE)
    tl.store(reports + GG * count + entry, row_sum(g, g))


@device
def gate_to_write(tensor, own):
    """The gate under which p is to be written: predicted, or known if the tensor was measured. None without a gate."""
    speculates = of(tensor, SPECULATES) != 0
    counter = of(tensor, GATE_COUNTER).to(tl.pointer_type(tl.uint8))
    counter = tl.load(counter, mask=speculates, other=0).to(tl.int32)
    known = of(own, V_GATE).to(tl.int32)
    return tl.where(speculates, predicted(counter), known), speculates


@device
def projects_momentum(projected, course):
    """Whether the buffer of a row is to be projected too. As numbers: Triton's interpreter cannot join truths of a
    scalar and a tensor."""
    return projected.to(tl.float64) * tl.load(course + PROJECT_MOMENTUM) != 0


@device
def update_tile(entries, count, tensors, course, reports, verdicts, first, FAMILY: tl.constexpr, DTYPE: tl.constexpr,
                WORK: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr,
                PROJECTS_MOMENTUM: tl.constexpr):  # fmt: skip
    entry, index, tensor, start, length = open_rows(entries, count, tensors, first, ROWS)
    there = within(length, WIDTH, ALIGNED)
    at_p = operand(tensor, P, start, DTYPE, WIDTH, ALIGNED)
    at_m = operand(tensor, M, start, WORK, WIDTH, ALIGNED)
    p = read(at_p, there, DTYPE)
    g = read(operand(tensor, G, start, DTYPE, WIDTH, ALIGNED), there, DTYPE)
    m = read(at_m, there, WORK)
    v = p
    if FAMILY == ADAM:
        at_v = operand(tensor, V, start, WORK, WIDTH, ALIGNED)
        v = read(at_v, there, WORK)
    g = gradient(p, g, course)
    m, v = advance(g, m, v, course, FAMILY)
    u = direction(p, g, m, v, course, FAMILY)
    # All that is done with comes before the sums, so that p and u alone are held across them.
    if FAMILY == ADAM:
        write(at_v, v, there, WORK)
    if not PROJECTS_MOMENTUM:
        write(at_m, m, there, WORK)
    pp = row_sum(p, p)
    report(reports, count, entry, row_sum(p, g), pp, row_sum(g, g))
    pu = row_sum(p, u)
    c = coefficient(pp, pu, course)
    gate, speculates = gate_to_write(tensor, verdicts + index * VERDICT_FIELDS)
    hold = (gate == CHANNEL) & (of(tensor, PIECES) == 1)
    d, k = affine(tl.where(hold, CHANNEL, NONE), c, course)
    # A row whose gate is known before its sums are, or that could not be had back, is for `settle` to write.
    left_alone = (gate != NONE) & (hold == 0)
    left_alone = left_alone | (speculates & (recoverable(d, tl.load(course + S) * c) == 0))

    tl.store(reports + PU * count + entry, pu)
    tl.store(reports + C * count + entry, c)
    tl.store(reports + LEFT_ALONE * count + entry, left_alone.to(tl.float64))
    if PROJECTS_MOMENTUM:
        # Of a buffer that is the direction itself.
        projected = projects_momentum(hold & (left_alone == 0), course)
        write(at_m, tl.where(projected[:, None], u - c.to(WORK)[:, None] * p, m), there, WORK)
    p = apply(p, u, d.to(WORK)[:, None], k.to(WORK)[:, None])
    write(at_p, p, there & (left_alone == 0)[:, None], DTYPE)


@device
def settle_tile(entries, count, tensors, course, reports, verdicts, first, FAMILY: tl.constexpr, DTYPE: tl.constexpr,
                WORK: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr,
                PROJECTS_MOMENTUM: tl.constexpr):  # fmt: skip
    entry, index, tensor, start, length = open_rows(entries, count, tensors, first, ROWS)
    told = verdicts + index * VERDICT_FIELDS
    length = tl.where(of(told, V_SETTLE) != 0, length, 0)
    if tl.max(length, axis=0) > 0:
        own = tl.load(reports + C * count + entry)
        left_alone = tl.load(reports + LEFT_ALONE * count + entry) != 0
        held = (of(told, V_WRITE) == CHANNEL) & (of(tensor, PIECES) == 1)
        d0, k0 = affine(tl.where(held, CHANNEL, NONE), own, course)
        d0 = tl.where(left_alone, 0.0, d0)
        k0 = tl.where(left_alone, 0.0, k0)
        gate = of(told, V_GATE)
        c = tl.where(gate == LAYER, of(told, V_C), own)
        d1, k1 = affine(gate, c, course)
        length = tl.where((left_alone == 0) & (d0 == d1) & (k0 == k1), 0, length)
        d, k = correction(d0, k0, d1, k1)
        d = d.to(WORK)[:, None]
        k = k.to(WORK)[:, None]

        there = within(length, WIDTH, ALIGNED)
        at_p = operand(tensor, P, start, DTYPE, WIDTH, ALIGNED)
        at_m = operand(tensor, M, start, WORK, WIDTH, ALIGNED)
        p = read(at_p, there, DTYPE)
        m = read(at_m, there, WORK)
        v = p
        if FAMILY == ADAM:
            v = read(operand(tensor, V, start, WORK, WIDTH, ALIGNED), there, WORK)
        with_gradient = within(tl.where(reads_gradient(course), length, 0), WIDTH, ALIGNED)
        g = read(operand(tensor, G, start, DTYPE, WIDTH, ALIGNED), with_gradient, DTYPE)
        g = gradient(p, g, course)
        u = direction(p, g, m, v, course, FAMILY)
        if PROJECTS_MOMENTUM:
            projected = projects_momentum(gate != NONE, course)
            write(at_m, m - c.to(WORK)[:, None] * p, there & projected[:, None], WORK)
        write(at_p, apply(p, u, d, k), there, DTYPE)


# ------------------------------------------------------------------ the kernels


@device
def program_of(programs, first_program, courses):
    """Body, first entry and course of this program. No body if its tensors are not to be stepped."""
    program = programs + (first_program + tl.program_id(0)).to(tl.int64) * PROGRAM_FIELDS
    course = courses + tl.load(program + 2) * COURSE_FIELDS
    body = tl.where(tl.load(course + SKIPPED) != 0, -1, tl.load(program))
    return body, tl.load(program + 1), course


@triton.jit(do_not_specialize=["first_program", "count"])
def step(programs, first_program, entries, count, tensors, courses, FAMILY: tl.constexpr, DTYPE: tl.constexpr,
         WORK: tl.constexpr, TILE: tl.constexpr, BODIES: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    own, first, course = program_of(programs, first_program, courses)
    for body in tl.static_range(MOST_BODIES):
        if (BODIES >> body) % 2 == 1:  # noqa: SIM102  (known when it is compiled)
            if own == body:
                step_tile(entries, count, tensors, course, first, FAMILY, DTYPE, WORK, 16 << body // 2,
                          rows_of(body, TILE), body % 2 * VECTOR)  # fmt: skip


@triton.jit(do_not_specialize=["first_program", "count"])
def measure(programs, first_program, entries, count, tensors, courses, reports, DTYPE: tl.constexpr,
            TILE: tl.constexpr, BODIES: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    own, first, course = program_of(programs, first_program, courses)
    for body in tl.static_range(MOST_BODIES):
        if (BODIES >> body) % 2 == 1:  # noqa: SIM102  (known when it is compiled)
            if own == body:
                measure_tile(entries, count, tensors, course, reports, first, DTYPE, 16 << body // 2,
                             rows_of(body, TILE), body % 2 * VECTOR)  # fmt: skip


@triton.jit(do_not_specialize=["first_program", "count"])
def update(programs, first_program, entries, count, tensors, courses, reports, verdicts, FAMILY: tl.constexpr,
           DTYPE: tl.constexpr, WORK: tl.constexpr, TILE: tl.constexpr, BODIES: tl.constexpr, VECTOR: tl.constexpr,
           PROJECTS_MOMENTUM: tl.constexpr):  # fmt: skip
    own, first, course = program_of(programs, first_program, courses)
    for body in tl.static_range(MOST_BODIES):
        if (BODIES >> body) % 2 == 1:  # noqa: SIM102  (known when it is compiled)
            if own == body:
                update_tile(entries, count, tensors, course, reports, verdicts, first, FAMILY, DTYPE, WORK,
                            16 << body // 2, rows_of(body, TILE), body % 2 * VECTOR, PROJECTS_MOMENTUM)  # fmt: skip


@triton.jit(do_not_specialize=["first_program", "count"])
def settle(programs, first_program, entries, count, tensors, courses, reports, verdicts, FAMILY: tl.constexpr,
           DTYPE: tl.constexpr, WORK: tl.constexpr, TILE: tl.constexpr, BODIES: tl.constexpr, VECTOR: tl.constexpr,
           PROJECTS_MOMENTUM: tl.constexpr):  # fmt: skip
    own, first, course = program_of(programs, first_program, courses)
    for body in tl.static_range(MOST_BODIES):
        if (BODIES >> body) % 2 == 1:  # noqa: SIM102  (known when it is compiled)
            if own == body:
                settle_tile(entries, count, tensors, course, reports, verdicts, first, FAMILY, DTYPE, WORK,
                            16 << body // 2, rows_of(body, TILE), body % 2 * VECTOR, PROJECTS_MOMENTUM)  # fmt: skip


@triton.jit(do_not_specialize=["first_program", "count"])
def square_sum(programs, first_program, entries, count, tensors, reports, DTYPE: tl.constexpr,
               TILE: tl.constexpr, BODIES: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    program = programs + (first_program + tl.program_id(0)).to(tl.int64) * PROGRAM_FIELDS
    own = tl.load(program)
    first = tl.load(program + 1)
    for body in tl.static_range(MOST_BODIES):
        if (BODIES >> body) % 2 == 1:  # noqa: SIM102  (known when it is compiled)
            if own == body:
                square_sum_tile(entries, count, tensors, reports, first, DTYPE, 16 << body // 2,
                                rows_of(body, TILE), body % 2 * VECTOR)  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def add_up(reports, count, sum, BLOCK: tl.constexpr):
    """The squares of all rows, in one order."""
    all_gg = tl.full([BLOCK], 0.0, tl.float64)
    for start in range(0, count, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        all_gg += tl.load(reports + GG * count + entry, mask=entry < count, other=0.0)
    tl.store(sum, tl.sum(all_gg, axis=0))


@device
def total(x):
    """Of each tensor, over its rows."""
    return tl.sum(x, axis=1)


@triton.jit(do_not_specialize=["count", "tensor_count"])
def verdict(gated, tensor_count, count, tensors, courses, reports, verdicts, MEASURED: tl.constexpr,
            TENSORS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The gates of some tensors. MEASURED: before their update. After it, of one that was measured, what was still
    unknown: <p,u>, and whether some row was left alone."""
    number = tl.program_id(0) * TENSORS + tl.arange(0, TENSORS)
    is_one = number < tensor_count
    index = tl.load(gated + number, mask=is_one, other=0)
    tensor = tensors + index * TENSOR_FIELDS
    is_one = is_one & (of(tensor, G) != 0)
    told = verdicts + index * VERDICT_FIELDS
    course = courses + of(tensor, COURSE_OF) * COURSE_FIELDS
    is_one = is_one & (tl.load(course + SKIPPED) == 0)
    rows = tl.where(is_one, of(tensor, ROW_COUNT), 0)
    pieces = of(tensor, PIECES)[:, None]
    first = of(tensor, FIRST_ENTRY)[:, None]

    all_pg = tl.full([TENSORS, BLOCK], 0.0, tl.float64)
    all_pp = all_pg
    all_gg = all_pg
    all_pu = all_pg
    largest = all_pg
    deferred = all_pg
    most_pieces = tl.max(tl.where(is_one[:, None], pieces, 1), axis=0)
    most_pieces = tl.max(most_pieces, axis=0)
    # The rows of a tensor by blocks; the pieces of a row one after the other.
    for first_row in range(0, tl.max(rows, axis=0), BLOCK):
        row = first_row + tl.arange(0, BLOCK)[None, :]
        inside = row < rows[:, None]
        pg = tl.full([TENSORS, BLOCK], 0.0, tl.float64)
        pp = pg
        gg = pg
        pu = pg
        for piece in range(most_pieces):
            there = inside & (piece < pieces)
            entry = reports + (first + row * pieces + piece)
            pg += tl.load(entry + PG * count, mask=there, other=0.0)
            pp += tl.load(entry + PP * count, mask=there, other=0.0)
            gg += tl.load(entry + GG * count, mask=there, other=0.0)
            if not MEASURED:
                pu += tl.load(entry + PU * count, mask=there, other=0.0)
                deferred += tl.load(entry + LEFT_ALONE * count, mask=there, other=0.0)
        if not MEASURED:  # noqa: SIM102  (one is known when it is compiled)
            if most_pieces > 1:
                c = coefficient(pp, pu, course[:, None])
                for piece in range(most_pieces):
                    entry = reports + (first + row * pieces + piece)
                    tl.store(entry + C * count, c, mask=inside & (piece < pieces))
        largest = max_or_nan(largest, cosine_squared(pg, pp, gg, course[:, None]))
        all_pg += pg
        all_pp += pp
        all_gg += gg
        all_pu += pu
    pg = total(all_pg)
    pp = total(all_pp)
    gg = total(all_gg)

    speculates = of(tensor, SPECULATES) != 0
    length = of(tensor, ROW_LENGTH).to(tl.float64)
    max_cosine = cosine_of(largest_or_nan(largest), length)
    elements = rows.to(tl.float64) * length
    layer = passes(cosine_of(cosine_squared(pg, pp, gg, course), elements), elements, course)
    gate = tl.where(passes(max_cosine, length, course), CHANNEL, tl.where(layer, LAYER, NONE))
    at_counter = of(tensor, GATE_COUNTER).to(tl.pointer_type(tl.uint8))
    counter = tl.load(at_counter, mask=is_one, other=0).to(tl.int32)
    written = tl.where(speculates, predicted(counter), gate)
    settled = written != gate
    decided = is_one
    if not MEASURED:
        decided = is_one & speculates
        pu = total(all_pu)
        tl.store(told + V_PU, pu, mask=is_one)
        tl.store(told + V_C, coefficient(pp, pu, course), mask=is_one)
        settle = (settled & speculates) | (total(deferred) > 0)
        tl.store(told + V_SETTLE, settle.to(tl.float64), mask=is_one)
    tl.store(at_counter, next_counter(counter, gate).to(tl.uint8), mask=decided)
    tl.store(told + V_GATE, gate.to(tl.float64), mask=decided)
    tl.store(told + V_WRITE, written.to(tl.float64), mask=decided)
    tl.store(told + V_SETTLED, settled.to(tl.float64), mask=decided)
    tl.store(told + V_COSINE, max_cosine * tl.sqrt(length), mask=decided)
    tl.store(told + V_PG, pg, mask=decided)
    tl.store(told + V_PP, pp, mask=decided)
    tl.store(told + V_GG, gg, mask=decided)
