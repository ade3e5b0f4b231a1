"""The gate: from the statistics of a tensor's rows to its verdict, in one fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

from .jit import device
from .memory import (
    BUCKET,
    DEFERRED,
    FIRST_ROW,
    GATE_COUNTER,
    GG,
    PG,
    PIECES,
    PP,
    PU,
    ROW_COUNT,
    SCALARS_FIELDS,
    SPECULATES,
    STATS_FIELDS,
    T_COSINE,
    T_GG,
    T_PG,
    T_PP,
    T_PU,
    T_ROWS,
    TENSOR_FIELDS,
    V_C,
    V_CORRECTED,
    V_COSINE,
    V_GATE,
    V_GG,
    V_NEEDS_CORRECTION,
    V_PG,
    V_PP,
    V_PU,
    V_WRITTEN,
    VERDICT_FIELDS,
    WHOLE_LENGTH,
    C,
    G,
    of,
)
from .rules import (
    CHANNEL,
    LAYER,
    NONE,
    SKIPPED,
    coefficient,
    cosine_of,
    cosine_squared,
    fixed_or,
    largest_or_nan,
    max_or_nan,
    next_counter,
    passes,
    predicted,
)


@device
def gate_to_write(tensor, verdict, scalars):
    """The gate under which the update writes p: predicted, or known from `gate_stats`. NONE without a gate."""
    how = of(tensor, SPECULATES)
    speculates = how != 0
    counter = of(tensor, GATE_COUNTER).to(tl.pointer_type(tl.uint8))
    counter = tl.load(counter, mask=speculates, other=0).to(tl.int32)
    known = of(verdict, V_GATE).to(tl.int32)
    # Under LAYER every row is deferred.
    return tl.where(how == 2, LAYER, tl.where(speculates, predicted(counter, scalars), known)), speculates


@device
def total(x):
    """Sum over the rows of each tensor."""
    return tl.sum(x, axis=1)


@triton.jit(do_not_specialize=["count", "tensor_count"])
def decide(gated, tensor_count, count, tensors, scalars_table, row_stats, stats, verdicts, corrects,
           BEFORE_UPDATE: tl.constexpr, SUMS: tl.constexpr, DECIDES: tl.constexpr, TENSORS: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """Decides the gates of some tensors. BEFORE_UPDATE: of those that do not speculate. After the update: of those that do;
    of the others, adds what the update has brought, <p,u> and whether rows are deferred.

    SUMS and not DECIDES: sums up `stats`, for an exchange. DECIDES and not SUMS: decides from them."""
    number = tl.program_id(0) * TENSORS + tl.arange(0, TENSORS)
    is_one = number < tensor_count
    index = tl.load(gated + number, mask=is_one, other=0)
    tensor = tensors + index * TENSOR_FIELDS
    is_one = is_one & (of(tensor, G) != 0)
    verdict = verdicts + index * VERDICT_FIELDS
    scalars = scalars_table + of(tensor, BUCKET) * SCALARS_FIELDS
    is_one = is_one & (tl.load(scalars + SKIPPED) == 0)
    rows = tl.where(is_one, of(tensor, ROW_COUNT), 0)
    pieces = of(tensor, PIECES)[:, None]
    first = of(tensor, FIRST_ROW)[:, None]

    exchanged = stats + index * STATS_FIELDS
    if SUMS:
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
                at = row_stats + (first + row * pieces + piece)
                pg += tl.load(at + PG * count, mask=there, other=0.0)
                pp += tl.load(at + PP * count, mask=there, other=0.0)
                gg += tl.load(at + GG * count, mask=there, other=0.0)
                if not BEFORE_UPDATE:
                    pu += tl.load(at + PU * count, mask=there, other=0.0)
                    deferred += tl.load(at + DEFERRED * count, mask=there, other=0.0)
            if not BEFORE_UPDATE:  # noqa: SIM102  (known at compile time)
                if most_pieces > 1:
                    c = coefficient(pp, pu, scalars[:, None])
                    for piece in range(most_pieces):
                        at = row_stats + (first + row * pieces + piece)
                        tl.store(at + C * count, c, mask=inside & (piece < pieces))
            largest = max_or_nan(largest, cosine_squared(pg, pp, gg, scalars[:, None]))
            all_pg += pg
            all_pp += pp
            all_gg += gg
            all_pu += pu
        pg = total(all_pg)
        pp = total(all_pp)
        gg = total(all_gg)
        pu = total(all_pu)
        largest = largest_or_nan(largest)
        row_count = rows.to(tl.float64)
        deferred = total(deferred) > 0
    else:
        pg = tl.load(exchanged + T_PG, mask=is_one, other=0.0)
        pp = tl.load(exchanged + T_PP, mask=is_one, other=0.0)
        gg = tl.load(exchanged + T_GG, mask=is_one, other=0.0)
        pu = tl.load(exchanged + T_PU, mask=is_one, other=0.0)
        largest = tl.load(exchanged + T_COSINE, mask=is_one, other=0.0)
        row_count = tl.load(exchanged + T_ROWS, mask=is_one, other=0.0)
        deferred = of(verdict, V_NEEDS_CORRECTION) != 0
    if not DECIDES:
        tl.store(exchanged + T_PG, pg, mask=is_one)
        tl.store(exchanged + T_PP, pp, mask=is_one)
        tl.store(exchanged + T_GG, gg, mask=is_one)
        tl.store(exchanged + T_PU, pu, mask=is_one)
        tl.store(exchanged + T_COSINE, largest, mask=is_one)
        tl.store(exchanged + T_ROWS, row_count, mask=is_one)
        tl.store(verdict + V_NEEDS_CORRECTION, deferred.to(tl.float64), mask=is_one)
    else:
        how = of(tensor, SPECULATES)
        speculates = how != 0
        length = of(tensor, WHOLE_LENGTH).to(tl.float64)
        max_cosine = cosine_of(largest, length)
        elements = row_count * length
        layer = passes(cosine_of(cosine_squared(pg, pp, gg, scalars), elements), elements, scalars)
        gate = tl.where(passes(max_cosine, length, scalars), CHANNEL, tl.where(layer, LAYER, NONE))
        gate = fixed_or(gate, scalars)
        at_counter = of(tensor, GATE_COUNTER).to(tl.pointer_type(tl.uint8))
        counter = tl.load(at_counter, mask=is_one, other=0).to(tl.int32)
        written = tl.where(speculates, predicted(counter, scalars), gate)
        corrected = (written != gate) & (how != 2)
        decided = is_one
        if not BEFORE_UPDATE:
            decided = is_one & speculates
            tl.store(verdict + V_PU, pu, mask=is_one)
            tl.store(verdict + V_C, coefficient(pp, pu, scalars), mask=is_one)
            needs_correction = (corrected & speculates) | deferred
            tl.store(verdict + V_NEEDS_CORRECTION, needs_correction.to(tl.float64), mask=is_one)
            # `update` has set it to 0; all that write to it here write 1.
            tl.store(corrects + tl.zeros_like(index), 1.0, mask=is_one & needs_correction)
        tl.store(at_counter, next_counter(counter, gate).to(tl.uint8), mask=decided)
        tl.store(verdict + V_GATE, gate.to(tl.float64), mask=decided)
        tl.store(verdict + V_WRITTEN, written.to(tl.float64), mask=decided)
        tl.store(verdict + V_CORRECTED, corrected.to(tl.float64), mask=decided)
        tl.store(verdict + V_COSINE, max_cosine * tl.sqrt(length), mask=decided)
        tl.store(verdict + V_PG, pg, mask=decided)
        tl.store(verdict + V_PP, pp, mask=decided)
        tl.store(verdict + V_GG, gg, mask=decided)
