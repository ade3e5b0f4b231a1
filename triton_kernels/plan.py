"""The plan: which rows of which tensors go into which program. Pure functions of tensor descriptions; no Triton, no device.

A projected tensor has rows of its own, the indices of dim 0; any other is cut into rows of `CHUNK` elements. A row longer
than the widest tile is cut into pieces, each a row of the row table. A program takes as many rows as fill its tile, each
padded to the width of its tile configuration. Its rows may be of different tensors of one dtype, rule and bucket. A bucket
is a set of tensors whose scalars are equal: of one group, with one step count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

# Widths of tile configurations are 16 << shift. Far apart, so that few have to be compiled; the widest is the longest
# row whose p and u fit in the registers of eight warps.
SHIFTS = (0, 2, 4, 6, 7, 8, 9)
CHUNK = 4096
# Elements of a program's tile, unless its one row is wider. 16 for each thread of eight warps.
TILE = 4096
# In the interpreter a program takes milliseconds whatever its size: there, tiles have all rows of a configuration, up to
# this many elements.
INTERPRETED_TILE = 1 << 18

# ------------------------------------------------------------------ the tables, field by field

# Of a tensor, int64. The addresses first: they change from step to step.
TENSOR = (
    *("p", "g", "m", "v", "step", "gate_counter"),  # g is 0 where the tensor is not stepped
    # Of a tensor whose steps the device counts: the gradient is negated in memory; the momentum buffer is new.
    *("negated", "first_step"),
    # speculates: 0 no, 1 under the predicted gate, 2 without a write of p.
    *("bucket", "group", "rows", "length", "pieces", "first_row", "speculates"),
    "unused",
)
# Of a program, int64.
PROGRAM = ("config", "first_row", "bucket")
# Of a bucket at a step, float64: the scalars of csrc/rules/hyper.h, those of Adam, Momentum and Projection.
SCALARS = (
    *("grad_scale", "l2", "beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "inv_sqrt_bc2", "eps"),
    *("metric_decay", "metric_decay_over_s", "nesterov", "momentum", "one_minus_dampening"),
    *("s", "decay", "wd_ratio", "delta", "proximal", "project_momentum", "fixed_gate"),
    "skipped",  # whether the step is to be skipped
)
# Of a row, float64, one array for each field: sums, the projection's coefficient, and whether the write of p is deferred.
ROW_STATS = ("pg", "pp", "gg", "pu", "c", "deferred")
# Of a tensor, float64: STATS of backend/base.py, between the update and the decision.
STATS = ("pg", "pp", "gg", "pu", "max_cosine_squared", "rows")
# Of a tensor, float64. written: the gate under which the update writes p.
VERDICT = ("gate", "written", "corrected", "needs_correction", "cosine", "c", "pg", "pp", "gg", "pu")
# Of a group whose steps the device counts: the address of each of these hyper-parameters, and whether it is a float64;
# then the values that are constant.
DEVICE_HYPER = ("lr", "weight_decay", "beta1", "beta2", "momentum", "initial_lr")
FIXED_HYPER = (
    *("grad_scale", "dampening", "nesterov", "eps", "delta", "wd_ratio", "proximal", "project_momentum", "fixed_gate"),
    *("has_momentum", "into_l2", "into_metric", "decouple_lr", "over_one_minus_momentum"),
)


class KernelKey(NamedTuple):
    """The kernels of one launch: the storage of parameters and of moments, and the rule."""

    param: str
    moment: str
    rule: str  # "adam", "momentum", or "sgd" (without a momentum buffer)


@dataclass(frozen=True)
class TensorDesc:
    """Description of a tensor, from which the plan is made.

    aligned: whether all its operands start at multiples of 16 bytes.
    bucket: the number of its bucket.
    """

    key: KernelKey
    rows: int
    length: int
    projected: bool
    speculates: bool
    aligned: bool
    bucket: int


@dataclass(frozen=True)
class ProgramRange:
    """The programs of one kernel key. configs: a bit for each tile configuration that they have."""

    first: int
    count: int
    configs: int
    tile: int


@dataclass(frozen=True)
class Plan:
    """row_table: tensor, first element and length of every row. first_row, pieces: of each tensor."""

    row_table: Tensor
    programs: Tensor
    ranges: dict[KernelKey, ProgramRange]
    first_row: list[int]
    pieces: list[int]


def itemsize(dtype: str) -> int:
    return {"float64": 8, "float32": 4}.get(dtype, 2)


def longest(dtype: str) -> int:
    """The longest row that is kept in registers from its sums to its write. One of 4096 float64 would spill."""
    return 2048 if dtype == "float64" else 16 << SHIFTS[-1]


def tile_of(dtype: str) -> int:
    return TILE // (2 if dtype == "float64" else 1)


def interpreted_tile(rows: dict[int, int]) -> int:
    """A tile for a number of rows of each tile configuration."""
    wanted = max(count * (16 << config // 2) * (1 if config % 2 else 4) for config, count in rows.items())
    return min(INTERPRETED_TILE, max(TILE, 1 << (wanted - 1).bit_length()))


def config_of(length: int, aligned: bool) -> int:
    """The tile configuration of a row: twice the shift of its width, and one more where accesses are 16 bytes wide."""
    shift = next(shift for shift in SHIFTS if length <= 16 << shift)
    return 2 * shift + (aligned and shift > 0)


def rows_per_program(config: int, tile: int) -> int:
    """Rows of a program. With accesses of one element, each element of a thread is in another row, and each row takes
    registers: a quarter of the tile leaves no spills."""
    return max(1, (tile if config % 2 else tile // 4) // (16 << config // 2))


@dataclass(frozen=True)
class _Run:
    """Rows of one tensor and tile configuration."""

    tensor: int
    config: int
    starts: Tensor
    lengths: Tensor


def cut(tensor: int, desc: TensorDesc) -> list[_Run]:
    """The rows of one tensor. Those of a projected tensor have one configuration, so that they are consecutive in the table."""
    vector = 16 // itemsize(desc.key.param)

    def run(starts: Tensor, lengths: Tensor, widest: int) -> _Run:
        aligned = desc.aligned and not bool(((starts | lengths) % vector).any())
        return _Run(tensor, config_of(widest, aligned), starts, lengths)

    elements = desc.rows * desc.length
    if elements == 0:
        return []
    if desc.projected:
        row = torch.arange(desc.rows)[:, None] * desc.length
        piece = torch.arange(0, desc.length, longest(desc.key.param))[None, :]
        lengths = (desc.length - piece).clamp(max=longest(desc.key.param)).expand(desc.rows, -1)
        return [run((row + piece).flatten(), lengths.flatten(), int(lengths.max()))]
    whole, rest = divmod(elements, CHUNK if itemsize(desc.key.param) < 8 else CHUNK // 2)
    chunk = (elements - rest) // whole if whole else 0
    runs = [run(torch.arange(whole) * chunk, torch.full((whole,), chunk), chunk)] if whole else []
    if rest:
        runs.append(run(torch.tensor([elements - rest]), torch.tensor([rest]), rest))
    return runs


def plan_of(descs: list[TensorDesc], interpreted: bool = False) -> Plan:
    """Cuts every tensor and packs the rows into programs."""
    runs_of: dict[tuple[KernelKey, int, int], list[_Run]] = {}
    for tensor, desc in enumerate(descs):
        for run in cut(tensor, desc):
            runs_of.setdefault((desc.key, desc.bucket, run.config), []).append(run)
    tiles = {key: tile_of(key.param) for key, _, _ in runs_of}
    if interpreted:
        for key in tiles:
            rows_in = {at[1:]: sum(len(run.starts) for run in runs) for at, runs in runs_of.items() if at[0] == key}
            most = {config: max(n for (_, c), n in rows_in.items() if c == config) for _, config in rows_in}
            tiles[key] = interpreted_tile(most)
    first_row, pieces = [0] * len(descs), [1] * len(descs)
    row_table, programs, ranges = [], [], {}
    count = launched = 0
    for key, bucket, config in sorted(runs_of):
        rows = rows_per_program(config, tiles[key])
        first = count
        for run in runs_of[key, bucket, config]:
            desc = descs[run.tensor]
            if desc.projected:
                first_row[run.tensor], pieces[run.tensor] = count, len(run.starts) // desc.rows
            row_table.append(torch.stack([torch.full_like(run.starts, run.tensor), run.starts, run.lengths]))
            count += len(run.starts)
        padding = -(count - first) % rows  # empty rows
        row_table.append(torch.zeros(3, padding, dtype=torch.int64))
        count += padding
        old = ranges.get(key, ProgramRange(launched, 0, 0, tiles[key]))
        row = torch.arange(first, count, rows)
        programs.append(torch.stack([torch.full_like(row, config), row, torch.full_like(row, bucket)], dim=1))
        launched += len(row)
        ranges[key] = replace(old, count=launched - old.first, configs=old.configs | 1 << config)
    return Plan(
        torch.cat([torch.zeros(3, 0, dtype=torch.int64), *row_table], dim=1),
        torch.cat([torch.zeros(0, len(PROGRAM), dtype=torch.int64), *programs]),
        ranges,
        first_row,
        pieces,
    )
