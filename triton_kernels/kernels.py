"""The kernels: one for each phase of a step.

    gate_stats  sums of p and g, for tensors that do not speculate (then `decide` of gate.py)
    step        moments and p in one pass, for tensors without a gate
    update      moments, p under the gate predicted or known, and the sums of every row (then `decide`)
    correct     p of the tensors whose prediction was wrong, or that have deferred rows
    square_sum  of the gradients, row by row, for clipping; then `add_up`

A program steps one tile. Its tile configuration, `config`, is the width of a padded row, 16 << config//2 elements, and
whether accesses are 16 bytes wide (odd). A kernel is compiled for every configuration of the plan: a bit of CONFIGS each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import plan
from .jit import device
from .memory import GG, SCALARS_FIELDS
from .plan import PROGRAM, SHIFTS
from .rules import SKIPPED
from .tiles import correct_tile, gate_stats_tile, square_sum_tile, step_tile, update_tile

PROGRAM_FIELDS = tl.constexpr(len(PROGRAM))
MAX_CONFIGS = tl.constexpr(2 * SHIFTS[-1] + 2)

# Phases.
STEP = tl.constexpr(0)
GATE_STATS = tl.constexpr(1)
UPDATE = tl.constexpr(2)
CORRECT = tl.constexpr(3)
SQUARE_SUM = tl.constexpr(4)

# Called in place, and not named in the loop over configurations: a constexpr cannot be assigned twice, and such a loop is
# unrolled into one scope.
rows_per_program = triton.constexpr_function(plan.rows_per_program)


@device
def dispatch(PHASE: tl.constexpr, programs, first_program, row_table, count, tensors, scalars_table, row_stats, verdicts,
             RULE: tl.constexpr, PARAM: tl.constexpr, MOMENT: tl.constexpr, WORK: tl.constexpr, TILE: tl.constexpr,
             CONFIGS: tl.constexpr, VECTOR: tl.constexpr, PROJECTS_MOMENTUM: tl.constexpr):  # fmt: skip
    """Runs a phase on this program's tile, unless its step is skipped. Arguments that the phase does not use: anything."""
    program = programs + (first_program + tl.program_id(0)).to(tl.int64) * PROGRAM_FIELDS
    scalars = scalars_table
    own = tl.load(program)
    if PHASE != SQUARE_SUM:
        scalars = scalars_table + tl.load(program + 2) * SCALARS_FIELDS
        own = tl.where(tl.load(scalars + SKIPPED) != 0, -1, own)
    first = tl.load(program + 1)
    for config in tl.static_range(MAX_CONFIGS):
        if (CONFIGS >> config) % 2 == 1:  # noqa: SIM102  (known at compile time)
            if own == config:
                if PHASE == STEP:
                    step_tile(row_table, count, tensors, scalars, first, RULE, PARAM, MOMENT, WORK, 16 << config // 2,
                              rows_per_program(config, TILE), config % 2 * VECTOR)  # fmt: skip
                elif PHASE == GATE_STATS:
                    gate_stats_tile(row_table, count, tensors, scalars, row_stats, first, PARAM, 16 << config // 2,
                                    rows_per_program(config, TILE), config % 2 * VECTOR)  # fmt: skip
                elif PHASE == UPDATE:
                    update_tile(row_table, count, tensors, scalars, row_stats, verdicts, first, RULE, PARAM, MOMENT, WORK,
                                16 << config // 2, rows_per_program(config, TILE), config % 2 * VECTOR,
                                PROJECTS_MOMENTUM)  # fmt: skip
                elif PHASE == CORRECT:
                    correct_tile(row_table, count, tensors, scalars, row_stats, verdicts, first, RULE, PARAM, MOMENT, WORK,
                                 16 << config // 2, rows_per_program(config, TILE), config % 2 * VECTOR,
                                 PROJECTS_MOMENTUM)  # fmt: skip
                else:
                    square_sum_tile(row_table, count, tensors, row_stats, first, PARAM, 16 << config // 2,
                                    rows_per_program(config, TILE), config % 2 * VECTOR)  # fmt: skip


@triton.jit(do_not_specialize=["first_program", "count"])
def step(programs, first_program, row_table, count, tensors, scalars_table, RULE: tl.constexpr, PARAM: tl.constexpr,
         MOMENT: tl.constexpr, WORK: tl.constexpr, TILE: tl.constexpr, CONFIGS: tl.constexpr,
         VECTOR: tl.constexpr):  # fmt: skip
    dispatch(STEP, programs, first_program, row_table, count, tensors, scalars_table, tensors, tensors, RULE, PARAM,
             MOMENT, WORK, TILE, CONFIGS, VECTOR, False)  # fmt: skip


@triton.jit(do_not_specialize=["first_program", "count"])
def gate_stats(programs, first_program, row_table, count, tensors, scalars_table, row_stats, PARAM: tl.constexpr,
               TILE: tl.constexpr, CONFIGS: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    dispatch(GATE_STATS, programs, first_program, row_table, count, tensors, scalars_table, row_stats, row_stats, None,
             PARAM, None, None, TILE, CONFIGS, VECTOR, False)  # fmt: skip


@triton.jit(do_not_specialize=["first_program", "count"])
def update(programs, first_program, row_table, count, tensors, scalars_table, row_stats, verdicts, RULE: tl.constexpr,
           PARAM: tl.constexpr, MOMENT: tl.constexpr, WORK: tl.constexpr, TILE: tl.constexpr, CONFIGS: tl.constexpr,
           VECTOR: tl.constexpr, PROJECTS_MOMENTUM: tl.constexpr):  # fmt: skip
    dispatch(UPDATE, programs, first_program, row_table, count, tensors, scalars_table, row_stats, verdicts, RULE, PARAM,
             MOMENT, WORK, TILE, CONFIGS, VECTOR, PROJECTS_MOMENTUM)  # fmt: skip


@triton.jit(do_not_specialize=["first_program", "count"])
def correct(programs, first_program, row_table, count, tensors, scalars_table, row_stats, verdicts, RULE: tl.constexpr,
            PARAM: tl.constexpr, MOMENT: tl.constexpr, WORK: tl.constexpr, TILE: tl.constexpr, CONFIGS: tl.constexpr,
            VECTOR: tl.constexpr, PROJECTS_MOMENTUM: tl.constexpr):  # fmt: skip
    dispatch(CORRECT, programs, first_program, row_table, count, tensors, scalars_table, row_stats, verdicts, RULE, PARAM,
             MOMENT, WORK, TILE, CONFIGS, VECTOR, PROJECTS_MOMENTUM)  # fmt: skip


@triton.jit(do_not_specialize=["first_program", "count"])
def square_sum(programs, first_program, row_table, count, tensors, row_stats, PARAM: tl.constexpr, TILE: tl.constexpr,
               CONFIGS: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    dispatch(SQUARE_SUM, programs, first_program, row_table, count, tensors, row_stats, row_stats, row_stats, None, PARAM,
             None, None, TILE, CONFIGS, VECTOR, False)  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def add_up(row_stats, count, sum, BLOCK: tl.constexpr):
    """The squares of all rows, in one order."""
    all_gg = tl.full([BLOCK], 0.0, tl.float64)
    for start in range(0, count, BLOCK):
        row = start + tl.arange(0, BLOCK)
        all_gg += tl.load(row_stats + GG * count + row, mask=row < count, other=0.0)
    tl.store(sum, tl.sum(all_gg, axis=0))
