"""The plan: which rows of which tensors go into which program. Pure functions of tensor descriptions; no Triton, no device.

A projected tensor has rows of its own, the indices of dim 0, and so has one whose moments have 8 bits, and one whose rows are parts of
rows and whose steps take random bits; any other is cut into
rows of `CHUNK` elements. A row longer than the widest tile is cut into pieces, each a row of the row table. A program takes as
many rows as fill its tile, each padded to the width of its tile configuration. Its rows may be of different tensors of one
dtype, rule and bucket. A bucket is a set of tensors whose scalars are equal: of one group, with one step count. The rows of one
launch are consecutive.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Widths of a tensor's own rows. Far apart, since each is a launch; the widest is the longest row whose p and u fit in registers.
WIDTHS = (16, 64, 256, 1024, 2048, 4096, 8192)
# Elements of a row of a tensor that has no rows of its own. A shorter one is padded to this, or to 64: two launches at most. Also
# the longest piece of a row of a tensor that is not projected; a multiple of the 256 elements of a block, as all pieces.
CHUNK = 2048
# Elements of a program's tile, unless its one row is wider, and of a thread: half of them in float64.
TILE, EACH = 1024, 8
# The most warps of a program that leave each thread the registers for so many. A wider tile has half as many, since 16
# elements take more registers than the threads of 16 warps of 32 lanes can have.
MOST_WARPS = 16
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
    *("r", "number"),  # the remainder of p; its number, of its random bits
    *("m_scale", "v_scale"),  # the scales of moments of 8 bits
    "whole_length",  # of a row of the whole that the tensor is a part of
    "split",  # whether its rows are parts of rows
)
# Of a bucket at a step, float64: the scalars of csrc/rules/hyper.h, those of Adam, Momentum and Projection.
SCALARS = (
    *("grad_scale", "l2", "beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "inv_sqrt_bc2", "eps"),
    *("metric_decay", "metric_decay_over_s", "nesterov", "momentum", "one_minus_dampening"),
    *("s", "decay", "wd_ratio", "delta", "proximal", "project_momentum", "fixed_gate"),
    *("draw_a", "draw_b"),  # the step's key of random bits
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
    *("seed_low", "seed_high"),
)


class KernelKey(NamedTuple):
    """What the kernels of a tensor depend on: the storage of parameters and of moments, the rule, whether the parameter has a
    remainder, whether it is rounded stochastically, and the dtype of the gradient, if it is another than that of the parameter."""

    param: str
    moment: str
    rule: str  # "adam", "momentum", or "sgd" (without a momentum buffer)
    master: bool = False
    stochastic: bool = False
    other_gradient: str = ""

    @property
    def gradient(self) -> str:
        return self.other_gradient or self.param

    @property
    def draws(self) -> bool:
        """Whether a step takes random bits."""
        return self.stochastic or (self.rule == "adam" and self.moment in ("bfloat16", "uint8"))

    @property
    def has_scales(self) -> bool:
        """Whether the moments have 8 bits, in blocks that restart at each row of the tensor."""
        return self.moment == "uint8"

    @property
    def vector(self) -> int:
        """Elements of 16 bytes of the operand whose elements are the smallest."""
        return 16 // min(itemsize(self.param), itemsize(self.moment))


@dataclass(frozen=True)
class TensorDesc:
    """Description of a tensor, from which the plan is made.

    aligned: whether all its operands start at multiples of 16 bytes.
    bucket: the number of its bucket.
    first, whole_length: the place of its first element in the whole that it is a part of, and the length of a row there; 0 for
        its own length.
    """

    key: KernelKey
    rows: int
    length: int
    projected: bool
    speculates: bool
    aligned: bool
    bucket: int
    first: int = 0
    whole_length: int = 0

    @property
    def has_rows(self) -> bool:
        """Whether it is cut into rows of its own: as its gate, or its blocks ask for, or where they are parts of rows."""
        return self.projected or self.key.has_scales or self.whole_length not in (0, self.length)

    def place(self, starts: Tensor) -> Tensor:
        """The places of some elements in the whole."""
        missing = self.whole_length - self.length if self.whole_length else 0
        return self.first + starts + starts // max(self.length, 1) * missing


class Config(NamedTuple):
    """A tile configuration: the width of a padded row, and whether accesses are 16 bytes wide."""

    width: int
    vector: bool


@dataclass(frozen=True)
class Launch:
    """The programs of one launch: of a kernel key, of projected tensors or of others, of one tile configuration."""

    key: KernelKey
    projected: bool
    config: Config
    rows: int  # of a program
    first: int  # row
    programs: int

    def each(self, nvidia: bool) -> int:
        """Elements of a thread. The sums of a long row and what follows from them take each of its threads as long as 7
        elements do, so there they are more: but elsewhere, threads have fewer registers, and parameters that are rounded
        stochastically would spill."""
        if itemsize(self.key.param) == 8:
            return EACH // 2
        long = self.projected and self.config.vector and self.config.width >= TILE
        return 2 * EACH if nvidia and long and not self.key.stochastic else EACH

    def warps(self, lanes: int, nvidia: bool) -> int:
        """Of a program, in the compiled kernels. lanes: of a warp."""
        each = self.each(nvidia)
        warps = max(TILE // max(each, EACH), self.rows * self.config.width // each) // lanes
        return warps if warps <= MOST_WARPS else MOST_WARPS // 2


@dataclass(frozen=True)
class Plan:
    """row_table: tensor, first element and length of every row, and the place of that element in the whole. first_row, pieces: of each tensor."""

    row_table: Tensor
    launches: list[Launch]
    first_row: list[int]
    pieces: list[int]


def itemsize(dtype: str) -> int:
    return {"float64": 8, "float32": 4, "uint8": 1}.get(dtype, 2)


def longest(dtype: str) -> int:
    """The longest row that is kept in registers from its sums to its write. One of 4096 float64 would spill."""
    return 2048 if dtype == "float64" else WIDTHS[-1]


def chunk_of(dtype: str) -> int:
    return CHUNK // 2 if dtype == "float64" else CHUNK


def config_of(key: KernelKey, length: int, projected: bool, aligned: bool) -> Config:
    """The tile configuration of a row."""
    widths = WIDTHS if projected or key.has_scales else (64, chunk_of(key.param))
    width = next(width for width in widths if length <= width)
    return Config(width, aligned and width > 16)


def rows_per_program(key: KernelKey, config: Config) -> int:
    """Rows of a program. With accesses of one element, each element of a thread is in another row, and each row takes
    registers: a quarter of the tile leaves no spills."""
    tile = TILE if config.vector else TILE // 4
    return max(1, (tile // 2 if key.param == "float64" else tile) // config.width)


def interpreted_rows(config: Config, buckets: Iterable[int]) -> int:
    """Rows of a program in the interpreter: all of the bucket that has most."""
    return min(INTERPRETED_TILE // config.width, 1 << (max(buckets) - 1).bit_length())


@dataclass(frozen=True)
class _Run:
    """Rows of one tensor and tile configuration."""

    tensor: int
    config: Config
    starts: Tensor
    lengths: Tensor


def cut(tensor: int, desc: TensorDesc) -> list[_Run]:
    """The rows of one tensor. If they are its own, they have one configuration, so that they are consecutive in the table."""

    def run(starts: Tensor, lengths: Tensor, widest: int) -> _Run:
        aligned = desc.aligned and not bool(((starts | lengths) % desc.key.vector).any())
        return _Run(tensor, config_of(desc.key, widest, desc.projected, aligned), starts, lengths)

    elements = desc.rows * desc.length
    if elements == 0:
        return []
    if desc.has_rows:
        most = longest(desc.key.param) if desc.projected else chunk_of(desc.key.param)
        row = torch.arange(desc.rows)[:, None] * desc.length
        piece = torch.arange(0, desc.length, most)[None, :]
        lengths = (desc.length - piece).clamp(max=most).expand(desc.rows, -1)
        return [run((row + piece).flatten(), lengths.flatten(), int(lengths.max()))]
    chunk = chunk_of(desc.key.param)
    whole, rest = divmod(elements, chunk)
    runs = [run(torch.arange(whole) * chunk, torch.full((whole,), chunk), chunk)] if whole else []
    if rest:
        runs.append(run(torch.tensor([elements - rest]), torch.tensor([rest]), rest))
    return runs


def plan_of(descs: list[TensorDesc], interpreted: bool = False) -> Plan:
    """Cuts every tensor and packs the rows into programs."""
    runs_of: dict[tuple[KernelKey, bool, Config], dict[int, list[_Run]]] = {}
    for tensor, desc in enumerate(descs):
        for run in cut(tensor, desc):
            buckets = runs_of.setdefault((desc.key, desc.projected, run.config), {})
            buckets.setdefault(desc.bucket, []).append(run)
    first_row, pieces = [0] * len(descs), [1] * len(descs)
    row_table, launches, count = [], [], 0
    for (key, projected, config), buckets in sorted(runs_of.items()):
        rows, begin = rows_per_program(key, config), count
        if interpreted:
            rows = interpreted_rows(config, [sum(len(run.starts) for run in runs) for runs in buckets.values()])
        for _, runs in sorted(buckets.items()):
            for run in runs:
                desc = descs[run.tensor]
                if desc.has_rows:
                    first_row[run.tensor], pieces[run.tensor] = count, len(run.starts) // desc.rows
                rows_of = (torch.full_like(run.starts, run.tensor), run.starts, run.lengths, desc.place(run.starts))
                row_table.append(torch.stack(rows_of))
                count += len(run.starts)
            padding = -(count - begin) % rows  # empty rows
            row_table.append(torch.zeros(4, padding, dtype=torch.int64))
            count += padding
        launches.append(Launch(key, projected, config, rows, begin, (count - begin) // rows))
    return Plan(torch.cat([torch.zeros(4, 0, dtype=torch.int64), *row_table], dim=1), launches, first_row, pieces)
