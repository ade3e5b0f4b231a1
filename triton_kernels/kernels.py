"""The kernels: one for each phase of a step. A program steps one tile: some rows of one width, padded to a power of two.

    gate_stats  sums of p and g, for tensors that do not speculate (then `decide` of gate.py)
    step        moments and p in one pass, for tensors without a gate
    update      moments, p under the gate predicted or known, and the sums of every row (then `decide`)
    correct     p of the tensors whose prediction was wrong, or that have deferred rows
    square_sum  of the gradients, row by row, for clipping; then `add_up`

A kernel is launched for each tile configuration of the plan, and compiled for it alone, so that the registers of one do not
limit how many programs of another run at once: WIDTH and ROWS of the tile, and ALIGNED, the elements of 16 bytes where
accesses are as wide, else 0. The rows of a launch begin at `first`; the table has `count`.

Whether the step is skipped is asked by the writes alone: a read that waited for it would come a latency later.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import SIGNED, UNSIGNED
from .draws import draws
from .gate import gate_to_write
from .jit import device
from .memory import (
    BUCKET,
    DEFERRED,
    GG,
    M_SCALE,
    PG,
    PIECES,
    PP,
    PU,
    SCALARS_FIELDS,
    SPECULATES,
    SPLIT,
    TENSOR_FIELDS,
    V_C,
    V_GATE,
    V_NEEDS_CORRECTION,
    V_SCALE,
    V_WRITTEN,
    VERDICT_FIELDS,
    C,
    G,
    M,
    V,
    as_stored,
    load_rows,
    moment_at,
    of,
    operand,
    read,
    read_moment,
    read_weight,
    row_sum,
    weights,
    within,
    write,
    write_moment,
    write_weight,
)
from .rules import (
    ADAM_RULE,
    CHANNEL,
    LAYER,
    NONE,
    PROJECT_MOMENTUM,
    SGD_RULE,
    SKIPPED,
    S,
    advance,
    affine,
    apply,
    coefficient,
    correction,
    direction,
    gradient,
    reads_gradient,
    recoverable,
)


@device
def first_row(first, ROWS: tl.constexpr):
    """The first row of this program's tile."""
    return row_of_tile(first, tl.program_id(0), ROWS)


@device
def row_of_tile(first, tile, ROWS: tl.constexpr):
    return first + tile.to(tl.int64) * ROWS


@device
def read_operands(tensor, row, start, length, there, RULE: tl.constexpr, PARAM: tl.constexpr, GRADIENT: tl.constexpr, MASTER: tl.constexpr,
                  MOMENT: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    """Pointers to p, its remainder, m and its scales, v and its scales; then p, g, m and v. What there is not is p."""
    at_p, at_r = weights(tensor, start, PARAM, MASTER, WIDTH, ALIGNED)
    p = read_weight(at_p, at_r, there, PARAM, MASTER)
    g = read(operand(tensor, G, start, GRADIENT, WIDTH, ALIGNED), there, GRADIENT)
    at_m = at_p
    at_m_scales = at_p
    at_v = at_p
    at_v_scales = at_p
    m = p
    v = p
    if RULE != SGD_RULE:
        at_m, at_m_scales = moment_at(tensor, M, M_SCALE, row, start, MOMENT, WIDTH, ALIGNED)
        m = read_moment(at_m, at_m_scales, there, length, MOMENT, SIGNED)
    if RULE == ADAM_RULE:
        at_v, at_v_scales = moment_at(tensor, V, V_SCALE, row, start, MOMENT, WIDTH, ALIGNED)
        v = read_moment(at_v, at_v_scales, there, length, MOMENT, UNSIGNED)
    return at_p, at_r, at_m, at_m_scales, at_v, at_v_scales, p, g, m, v


@device
def scalars_of(row_table, tensors, scalars_table, first):
    """The scalars of the bucket of a tile, whose first row is never an empty one."""
    return scalars_table + of(tensors + tl.load(row_table + first) * TENSOR_FIELDS, BUCKET) * SCALARS_FIELDS


@device
def draws_if(NEEDED: tl.constexpr, row_table, count, row, tensor, scalars, WIDTH: tl.constexpr):
    """The random bits of a tile, where the step takes any."""
    drawn = 0
    if NEEDED:
        drawn = draws(tensor, tl.load(row_table + 3 * count + row), scalars, WIDTH)
    return drawn


@device
def unless_skipped(length, scalars):
    """The lengths of the rows to write: 0 where the step is skipped."""
    return tl.where(tl.load(scalars + SKIPPED) != 0, 0, length)


@triton.jit(do_not_specialize=["first", "count"])
def step(row_table, first, count, tensors, scalars_table, RULE: tl.constexpr, PARAM: tl.constexpr, GRADIENT: tl.constexpr, MASTER: tl.constexpr,
         STOCHASTIC: tl.constexpr, DRAWS: tl.constexpr, MOMENT: tl.constexpr, WORK: tl.constexpr, WIDTH: tl.constexpr,
         ROWS: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    first = first_row(first, ROWS)
    row, _, tensor, start, length = load_rows(row_table, count, tensors, first, ROWS)
    scalars = scalars_of(row_table, tensors, scalars_table, first)
    there = within(length, WIDTH, ALIGNED)
    at_p, at_r, at_m, at_m_scales, at_v, at_v_scales, p, g, m, v = read_operands(
        tensor, row, start, length, there, RULE, PARAM, GRADIENT, MASTER, MOMENT, WIDTH, ALIGNED
    )
    length = unless_skipped(length, scalars)
    there = within(length, WIDTH, ALIGNED)
    g = gradient(p, g, scalars)
    m, v = advance(g, m, v, scalars, RULE)
    drawn = draws_if(DRAWS, row_table, count, row, tensor, scalars, WIDTH)
    m, v, m_scales, v_scales = as_stored(m, v, drawn, there, RULE, MOMENT)
    u = direction(p, g, m, v, scalars, RULE)
    d, k = affine(NONE, 0.0, scalars)
    if RULE != SGD_RULE:
        write_moment(at_m, at_m_scales, m, m_scales, there, length, MOMENT)
    if RULE == ADAM_RULE:
        write_moment(at_v, at_v_scales, v, v_scales, there, length, MOMENT)
    write_weight(at_p, at_r, apply(p, u, d.to(WORK), k.to(WORK)), there, drawn, PARAM, MASTER, STOCHASTIC)


@device
def store_sums(row_stats, count, row, pg, pp, gg):
    tl.store(row_stats + PG * count + row, pg)
    tl.store(row_stats + PP * count + row, pp)
    tl.store(row_stats + GG * count + row, gg)


@triton.jit(do_not_specialize=["first", "count"])
def gate_stats(row_table, first, count, tensors, scalars_table, row_stats, PARAM: tl.constexpr, GRADIENT: tl.constexpr, MASTER: tl.constexpr,
               WIDTH: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    first = first_row(first, ROWS)
    row, _, tensor, start, length = load_rows(row_table, count, tensors, first, ROWS)
    length = tl.where(of(tensor, SPECULATES) == 0, length, 0)
    if tl.max(length, axis=0) > 0:
        there = within(length, WIDTH, ALIGNED)
        at_p, at_r = weights(tensor, start, PARAM, MASTER, WIDTH, ALIGNED)
        p = read_weight(at_p, at_r, there, PARAM, MASTER)
        g = read(operand(tensor, G, start, GRADIENT, WIDTH, ALIGNED), there, GRADIENT)
        g = gradient(p, g, scalars_of(row_table, tensors, scalars_table, first))
        store_sums(row_stats, count, row, row_sum(p, g), row_sum(p, p), row_sum(g, g))


@triton.jit(do_not_specialize=["first", "count"])
def square_sum(row_table, first, count, tensors, row_stats, GRADIENT: tl.constexpr, WIDTH: tl.constexpr,
               ROWS: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    row, _, tensor, start, length = load_rows(row_table, count, tensors, first_row(first, ROWS), ROWS)
    g = read(operand(tensor, G, start, GRADIENT, WIDTH, ALIGNED), within(length, WIDTH, ALIGNED), GRADIENT)
    tl.store(row_stats + GG * count + row, row_sum(g, g))


@triton.jit(do_not_specialize=["count"])
def add_up(row_stats, count, sum, BLOCK: tl.constexpr):
    """The squares of all rows, in one order."""
    all_gg = tl.full([BLOCK], 0.0, tl.float64)
    for start in range(0, count, BLOCK):
        row = start + tl.arange(0, BLOCK)
        all_gg += tl.load(row_stats + GG * count + row, mask=row < count, other=0.0)
    tl.store(sum, tl.sum(all_gg, axis=0))


@device
def is_complete(tensor):
    """Whether a row has all its elements here, so that its sums are complete."""
    return (of(tensor, PIECES) == 1) & (of(tensor, SPLIT) == 0)


@device
def projects_momentum(projected, scalars):
    """Whether the momentum buffer of a row is to be projected too. As numbers: Triton's interpreter cannot combine booleans
    of a scalar and a tensor."""
    return projected.to(tl.float64) * tl.load(scalars + PROJECT_MOMENTUM) != 0


@triton.jit(do_not_specialize=["first", "count"])
def update(row_table, first, count, tensors, scalars_table, row_stats, verdicts, corrects, RULE: tl.constexpr,
           PARAM: tl.constexpr, GRADIENT: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, DRAWS: tl.constexpr, MOMENT: tl.constexpr,
           WORK: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr,
           PROJECTS_MOMENTUM: tl.constexpr):  # fmt: skip
    if tl.program_id(0) == 0:
        tl.store(corrects, 0.0)
    first = first_row(first, ROWS)
    row, index, tensor, start, length = load_rows(row_table, count, tensors, first, ROWS)
    scalars = scalars_of(row_table, tensors, scalars_table, first)
    there = within(length, WIDTH, ALIGNED)
    at_p, at_r, at_m, at_m_scales, at_v, at_v_scales, p, g, m, v = read_operands(
        tensor, row, start, length, there, RULE, PARAM, GRADIENT, MASTER, MOMENT, WIDTH, ALIGNED
    )
    length = unless_skipped(length, scalars)
    there = within(length, WIDTH, ALIGNED)
    g = gradient(p, g, scalars)
    m, v = advance(g, m, v, scalars, RULE)
    drawn = draws_if(DRAWS, row_table, count, row, tensor, scalars, WIDTH)
    m, v, m_scales, v_scales = as_stored(m, v, drawn, there, RULE, MOMENT)
    u = direction(p, g, m, v, scalars, RULE)
    # Moments are written before the sums, so that only p and u are in registers across them.
    if RULE == ADAM_RULE:
        write_moment(at_v, at_v_scales, v, v_scales, there, length, MOMENT)
    if not PROJECTS_MOMENTUM:
        write_moment(at_m, at_m_scales, m, m_scales, there, length, MOMENT)
    pp = row_sum(p, p)
    store_sums(row_stats, count, row, row_sum(p, g), pp, row_sum(g, g))
    pu = row_sum(p, u)
    c = coefficient(pp, pu, scalars)
    gate, speculates = gate_to_write(tensor, verdicts + index * VERDICT_FIELDS, scalars)
    buffered = (gate == CHANNEL) & is_complete(tensor)
    d, k = affine(tl.where(buffered, CHANNEL, NONE), c, scalars)
    # Deferred to `correct`: a row whose known gate needs sums that are not complete here, or whose p could not be recovered.
    deferred = (gate != NONE) & (buffered == 0)
    deferred = deferred | (speculates & (recoverable(d, tl.load(scalars + S) * c) == 0))

    tl.store(row_stats + PU * count + row, pu)
    tl.store(row_stats + C * count + row, c)
    tl.store(row_stats + DEFERRED * count + row, deferred.to(tl.float64))
    if PROJECTS_MOMENTUM:
        # Here the buffer is the direction itself.
        projected = projects_momentum(buffered & (deferred == 0), scalars)
        write(at_m, tl.where(projected[:, None], u - c.to(WORK)[:, None] * p, m), there, MOMENT)
    p = apply(p, u, d.to(WORK)[:, None], k.to(WORK)[:, None])
    drawn = draws_if(STOCHASTIC, row_table, count, row, tensor, scalars, WIDTH)
    write_weight(at_p, at_r, p, there & (deferred == 0)[:, None], drawn, PARAM, MASTER, STOCHASTIC)


@device
def correct_tile(row_table, first, count, tensors, scalars_table, row_stats, verdicts, RULE: tl.constexpr,
                 PARAM: tl.constexpr, GRADIENT: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, MOMENT: tl.constexpr,
                 WORK: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr,
                 PROJECTS_MOMENTUM: tl.constexpr):  # fmt: skip
    row, index, tensor, start, length = load_rows(row_table, count, tensors, first, ROWS)
    verdict = verdicts + index * VERDICT_FIELDS
    length = tl.where(of(verdict, V_NEEDS_CORRECTION) != 0, length, 0)
    if tl.max(length, axis=0) > 0:
        scalars = scalars_of(row_table, tensors, scalars_table, first)
        length = unless_skipped(length, scalars)
        own = tl.load(row_stats + C * count + row)
        deferred = tl.load(row_stats + DEFERRED * count + row) != 0
        buffered = (of(verdict, V_WRITTEN) == CHANNEL) & is_complete(tensor)
        d0, k0 = affine(tl.where(buffered, CHANNEL, NONE), own, scalars)
        d0 = tl.where(deferred, 0.0, d0)
        k0 = tl.where(deferred, 0.0, k0)
        gate = of(verdict, V_GATE)
        c = tl.where(gate == LAYER, of(verdict, V_C), own)
        d1, k1 = affine(gate, c, scalars)
        length = tl.where((deferred == 0) & (d0 == d1) & (k0 == k1), 0, length)
        d, k = correction(d0, k0, d1, k1)
        d = d.to(WORK)[:, None]
        k = k.to(WORK)[:, None]

        there = within(length, WIDTH, ALIGNED)
        at_p, at_r = weights(tensor, start, PARAM, MASTER, WIDTH, ALIGNED)
        at_m, at_m_scales = moment_at(tensor, M, M_SCALE, row, start, MOMENT, WIDTH, ALIGNED)
        p = read_weight(at_p, at_r, there, PARAM, MASTER)
        m = read_moment(at_m, at_m_scales, there, length, MOMENT, SIGNED)
        v = p
        if RULE == ADAM_RULE:
            at_v, at_v_scales = moment_at(tensor, V, V_SCALE, row, start, MOMENT, WIDTH, ALIGNED)
            v = read_moment(at_v, at_v_scales, there, length, MOMENT, UNSIGNED)
        with_gradient = within(tl.where(reads_gradient(scalars), length, 0), WIDTH, ALIGNED)
        g = read(operand(tensor, G, start, GRADIENT, WIDTH, ALIGNED), with_gradient, GRADIENT)
        g = gradient(p, g, scalars)
        u = direction(p, g, m, v, scalars, RULE)
        if PROJECTS_MOMENTUM:
            projected = projects_momentum(gate != NONE, scalars)
            write(at_m, m - c.to(WORK)[:, None] * p, there & projected[:, None], MOMENT)
        drawn = draws_if(STOCHASTIC, row_table, count, row, tensor, scalars, WIDTH)
        write_weight(at_p, at_r, apply(p, u, d, k), there, drawn, PARAM, MASTER, STOCHASTIC)


@triton.jit(do_not_specialize=["first", "count", "programs"])
def correct(row_table, first, count, tensors, scalars_table, row_stats, verdicts, corrects, programs,
            RULE: tl.constexpr, PARAM: tl.constexpr, GRADIENT: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
            MOMENT: tl.constexpr, WORK: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr,
            PROJECTS_MOMENTUM: tl.constexpr):  # fmt: skip
    """Its programs, of which there are few, take the tiles of `programs` in turn, if any tensor is to be corrected."""
    if tl.load(corrects) != 0:
        tile = tl.program_id(0)
        while tile < programs:
            correct_tile(row_table, row_of_tile(first, tile, ROWS), count, tensors, scalars_table, row_stats, verdicts,
                         RULE, PARAM, GRADIENT, MASTER, STOCHASTIC, MOMENT, WORK, WIDTH, ROWS, ALIGNED, PROJECTS_MOMENTUM)  # fmt: skip
            tile += tl.num_programs(0)
