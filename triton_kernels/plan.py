"""The plan: which rows of which tensors go into which program. Pure functions of shapes; no Triton, no device.

Everything is rows. A projected tensor has its own, the indices of its dim 0; any other is cut into rows of `CHUNK`. A row
longer than the widest tile is cut into pieces, each a row of the tables. A program takes as many rows as fill its tile
when each is padded to the width of its class; rows of different tensors lie side by side in it, if they share dtype,
family and cohort (the tensors whose scalars are the same: of one group, with one step count).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

# Widths of the classes are 16 << shift. Far apart, so that few bodies have to be compiled; the widest is as long as p
# and u of a row of it fit in the registers of eight warps.
SHIFTS = (0, 2, 4, 6, 7, 8, 9)
CHUNK = 4096
# Elements of a program's tile, unless its one row is wider. 16 for each thread of eight warps.
TILE = 4096
# In the interpreter a program takes some milliseconds, however small: tiles that hold all rows of a class, up to this.
INTERPRETED_TILE = 1 << 18

# ------------------------------------------------------------------ the tables, field by field

# Of a tensor, int64. The addresses first: they change from step to step.
TENSOR = (
    *("p", "g", "m", "v", "step", "gate_counter"),  # g is 0 where the tensor is not stepped
    # Of a tensor whose steps the device counts: the gradient is negated in memory; its buffer is made at the first of them.
    *("negated", "fresh"),
    *("course", "group", "rows", "length", "pieces", "first_entry", "speculates"),
    "unused",
)
# Of a program, int64.
PROGRAM = ("body", "first_entry", "course")
# Of a cohort at a step, float64: csrc/rules/hyper.h, whose names these are. An Sgd's in place of an Adam's, where it has
# others.
COURSE = (
    *("grad_scale", "l2", "beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "inv_sqrt_bc2", "eps"),
    *("metric_decay", "metric_decay_over_s", "nesterov", "momentum", "one_minus_dampening"),
    *("s", "decay", "wd_ratio", "delta", "proximal", "project_momentum"),
    "skipped",  # the step is not to be taken
)
# Of a row, float64, one array for each field: sums, the projection's coefficient, and whether p was not written.
REPORT = ("pg", "pp", "gg", "pu", "c", "left_alone")
# Of a tensor, float64. write: the gate under which p was written, or would have been.
VERDICT = ("gate", "write", "settled", "settle", "cosine", "c", "pg", "pp", "gg", "pu")
# Of a group whose steps the device counts: the addresses of its hyper-parameters, and whether they are doubles; then what does not change.
LIVE = ("lr", "weight_decay", "beta1", "beta2", "momentum", "initial_lr")
FIXED = (
    *("grad_scale", "dampening", "nesterov", "eps", "delta", "wd_ratio", "proximal", "project_momentum"),
    *("is_sgd", "into_l2", "into_metric", "decouple_lr", "over_one_minus_momentum"),
)


class Kind(NamedTuple):
    """What one launch is compiled for."""

    dtype: str
    family: str  # "adam", "sgd", or "plain_sgd": without a buffer


@dataclass(frozen=True)
class Shape:
    """What the plan needs to know of a tensor.

    aligned: whether all its operands start at multiples of 16 bytes.
    cohort: tensors of one number have the same scalars at every step.
    """

    kind: Kind
    rows: int
    length: int
    projected: bool
    speculates: bool
    aligned: bool
    cohort: int


@dataclass(frozen=True)
class Section:
    """The programs of one kind. bodies: a bit for each class that is there, and so is compiled."""

    first_program: int
    programs: int
    bodies: int
    tile: int


@dataclass(frozen=True)
class Plan:
    """entries: tensor, first element and length of every row. first_entry, pieces: of each tensor."""

    entries: Tensor
    programs: Tensor
    sections: dict[Kind, Section]
    first_entry: list[int]
    pieces: list[int]


def itemsize(dtype: str) -> int:
    return {"float64": 8, "float32": 4}.get(dtype, 2)


def longest(dtype: str) -> int:
    """The longest row that is held in registers from its sums to its write. One of 4096 float64 would spill."""
    return 2048 if dtype == "float64" else 16 << SHIFTS[-1]


def tile_of(dtype: str) -> int:
    return TILE // (2 if dtype == "float64" else 1)


def interpreted_tile(rows: dict[int, int]) -> int:
    """A tile for a number of rows of each body."""
    wanted = max(count * (16 << body // 2) * (1 if body % 2 else 4) for body, count in rows.items())
    return min(INTERPRETED_TILE, max(TILE, 1 << (wanted - 1).bit_length()))


def body_of(length: int, aligned: bool) -> int:
    """The number of the class of a row: twice the shift of its width, and one more where accesses are of 16 bytes."""
    shift = next(shift for shift in SHIFTS if length <= 16 << shift)
    return 2 * shift + (aligned and shift > 0)


def rows_of(body: int, tile: int) -> int:
    """Rows of a program. Element by element a thread has its elements in as many rows, and each takes registers: a quarter
    of the tile is what leaves no spills."""
    return max(1, (tile if body % 2 else tile // 4) // (16 << body // 2))


@dataclass(frozen=True)
class _Run:
    """Rows of one tensor and class."""

    tensor: int
    body: int
    starts: Tensor
    lengths: Tensor


def cut(tensor: int, shape: Shape) -> list[_Run]:
    """The rows of one tensor. Those of a projected one are of one class, so that they lie in one run."""
    vector = 16 // itemsize(shape.kind.dtype)

    def run(starts: Tensor, lengths: Tensor, widest: int) -> _Run:
        aligned = shape.aligned and not bool(((starts | lengths) % vector).any())
        return _Run(tensor, body_of(widest, aligned), starts, lengths)

    elements = shape.rows * shape.length
    if elements == 0:
        return []
    if shape.projected:
        row = torch.arange(shape.rows)[:, None] * shape.length
        piece = torch.arange(0, shape.length, longest(shape.kind.dtype))[None, :]
        lengths = (shape.length - piece).clamp(max=longest(shape.kind.dtype)).expand(shape.rows, -1)
        return [run((row + piece).flatten(), lengths.flatten(), int(lengths.max()))]
    whole, rest = divmod(elements, CHUNK if itemsize(shape.kind.dtype) < 8 else CHUNK // 2)
    chunk = (elements - rest) // whole if whole else 0
    runs = [run(torch.arange(whole) * chunk, torch.full((whole,), chunk), chunk)] if whole else []
    if rest:
        runs.append(run(torch.tensor([elements - rest]), torch.tensor([rest]), rest))
    return runs


def plan_of(shapes: list[Shape], interpreted: bool = False) -> Plan:
    """Cuts every tensor and packs the rows into programs."""
    classes: dict[tuple[Kind, int, int], list[_Run]] = {}
    for tensor, shape in enumerate(shapes):
        for run in cut(tensor, shape):
            classes.setdefault((shape.kind, shape.cohort, run.body), []).append(run)
    tiles = {kind: tile_of(kind.dtype) for kind, _, _ in classes}
    if interpreted:
        for kind in tiles:
            own = {key[1:]: sum(len(run.starts) for run in runs) for key, runs in classes.items() if key[0] == kind}
            tiles[kind] = interpreted_tile({body: max(n for (_, b), n in own.items() if b == body) for _, body in own})
    first_entry, pieces = [0] * len(shapes), [1] * len(shapes)
    entries, programs, sections = [], [], {}
    count = launched = 0
    for kind, cohort, body in sorted(classes):
        rows = rows_of(body, tiles[kind])
        first = count
        for run in classes[kind, cohort, body]:
            shape = shapes[run.tensor]
            if shape.projected:
                first_entry[run.tensor], pieces[run.tensor] = count, len(run.starts) // shape.rows
            entries.append(torch.stack([torch.full_like(run.starts, run.tensor), run.starts, run.lengths]))
            count += len(run.starts)
        padding = -(count - first) % rows  # rows of no element
        entries.append(torch.zeros(3, padding, dtype=torch.int64))
        count += padding
        old = sections.get(kind, Section(launched, 0, 0, tiles[kind]))
        entry = torch.arange(first, count, rows)
        programs.append(torch.stack([torch.full_like(entry, body), entry, torch.full_like(entry, cohort)], dim=1))
        launched += len(entry)
        sections[kind] = replace(old, programs=launched - old.first_program, bodies=old.bodies | 1 << body)
    return Plan(
        torch.cat([torch.zeros(3, 0, dtype=torch.int64), *entries], dim=1),
        torch.cat([torch.zeros(0, len(PROGRAM), dtype=torch.int64), *programs]),
        sections,
        first_entry,
        pieces,
    )
