"""Sharded parameters: what a DTensor holds on this rank, and between which ranks it is spread.

A rank steps its part of a tensor as if that were all. What the whole decides is exchanged (exchange.py), over those axes of the
device mesh that shard it; an axis that replicates it needs nothing, since the same bits go in and come out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .blocks import BLOCK
from .spec import OptimizerSpec
from .torch_compat import have_one_spec, is_dtensor, is_under_way, local_of, waited_for

Group = dict[str, Any]


# Ranks of an axis over which anything is exchanged.
FEWEST = 2


class Shard(NamedTuple):
    """The part of a tensor that a rank holds.

    shape: of the whole. first: the place of its first element there, in the order of the shape. split: whether its rows are parts of
    rows of the whole.
    """

    shape: tuple[int, ...]
    first: int
    split: bool


@dataclass(frozen=True, eq=False)
class Axis:
    """The ranks that differ from this one in one dimension of a mesh. Two meshes may share it."""

    ranks: tuple[int, ...]
    group: Any  # torch's process group


# ------------------------------------------------------------------ placements


def dim_of(placement: Any) -> int | None:
    """The dimension that a placement shards. torch's _StridedShard, of nested meshes, is no Shard but has one."""
    return getattr(placement, "dim", None)


def shard_of(p: Tensor) -> Shard | None:
    """The part of a DTensor that this rank holds, None for any other tensor.

    Raises ValueError if this rank is not in its mesh, or if the part is not a contiguous range of each dimension.
    """
    if not is_dtensor(p):
        return None
    shape, coordinate = tuple(p.shape), p.device_mesh.get_coordinate()
    if coordinate is None:
        raise ValueError(
            f"this rank is not in the mesh of a tensor of shape {shape}, {p.device_mesh}; give it to optimizers of that mesh's ranks alone"
        )
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    first = 0
    for dim in range(len(shape)):
        place = _range_of(shape[dim], dim, p, coordinate)
        if len(place) != local_of(p).shape[dim] or (len(place) and int(place[-1] - place[0]) != len(place) - 1):
            raise ValueError(
                f"this rank's part of a tensor of shape {shape} with placements {tuple(p.placements)} is not a range of dim {dim}"
            )
        first += int(place[0]) * strides[dim] if len(place) else 0
    return Shard(shape, first, split=bool(axes_of(p, "split")))


def _range_of(size: int, dim: int, p: Any, coordinate: Sequence[int]) -> Tensor:
    """The indices of one dimension that are here, cut as torch cuts them: from the left, each cut by torch.chunk."""
    place = torch.arange(size)
    for placement, ranks, number in zip(p.placements, p.device_mesh.shape, coordinate, strict=True):
        if dim_of(placement) == dim:
            # A strided placement cuts what the axes after it, which came first, will have: each piece by itself.
            pieces = place.chunk(getattr(placement, "split_factor", 1))
            place = torch.cat([_chunk(piece, ranks, number) for piece in pieces])
    return place


def _chunk(x: Tensor, count: int, number: int) -> Tensor:
    chunks = x.chunk(count)
    return chunks[number] if number < len(chunks) else x[:0]


Kind = Literal["rows", "split", "sharded", "all"]


def axes_of(p: Tensor, kind: Kind) -> list[Axis]:
    """Axes of more than one rank over which a DTensor is spread. rows: each rank has some of the rows; split: a part of each row;
    sharded: either; all: also copies."""
    if not is_dtensor(p):
        return []
    axes = []
    for number, placement in enumerate(p.placements):
        dim = dim_of(placement)
        of_kind = {"rows": dim == 0, "split": bool(dim), "sharded": dim is not None, "all": True}[kind]
        if of_kind and p.device_mesh.size(number) >= FEWEST:
            axes.append(axis(p.device_mesh.get_group(number)))
    return axes


def is_placed_as(t: Tensor, p: Tensor) -> bool:
    """Whether each rank holds of `t` what it holds of `p`, as far as the placements say."""
    if is_dtensor(t) and is_dtensor(p):
        return t.device_mesh == p.device_mesh and t.placements == p.placements
    return not is_dtensor(t) and not is_dtensor(p)


def is_placed(g: Tensor, p: Tensor) -> bool:
    """Whether a rank holds of a gradient what it holds of its parameter, and no collective is under way."""
    if not is_dtensor(g) or not is_dtensor(p):
        return not is_dtensor(g) and not is_dtensor(p)
    return not is_under_way(g) and (have_one_spec(g, p) or is_placed_as(g, p))


def is_cut(p: Any, block: int) -> bool:
    """Whether some rank's part of a row does not begin with a block of so many elements. A vector is one row."""
    dim = 1 if p.dim() > 1 else 0
    inner = math.prod(p.shape[2:])
    axes = [(dim_of(placement), ranks) for placement, ranks in zip(p.placements, p.device_mesh.shape, strict=True)]
    if any((axis or 0) > 1 and ranks > 1 for axis, ranks in axes):
        return True
    for coordinate in itertools.product(*(range(ranks) if axis == dim else (0,) for axis, ranks in axes)):
        place = _range_of(p.shape[dim], dim, p, coordinate)
        if len(place) and int(place[0]) * inner % block:
            return True
    return False


def axis(group: Any) -> Axis:
    return Axis(tuple(torch.distributed.get_process_group_ranks(group)), group)


def every_axis(params: Iterable[Tensor], kind: Kind) -> list[Axis]:
    """The axes of some parameters, each once, in the order in which they come first, which is the same on all ranks."""
    return [*{a.ranks: a for p in params for a in reversed(axes_of(p, kind))}.values()]


def sharded(groups: Sequence[Group]) -> list[Tensor]:
    """The DTensors among the parameters."""
    return [p for group in groups for p in group["params"] if is_dtensor(p)]


def has_gate(spec: OptimizerSpec, p: Tensor) -> bool:
    """Whether a tensor is projected, by the shape of the whole."""
    return spec.projected and p.dim() > 1 and p.numel() > 0


def whole_of(t: Tensor) -> Tensor:
    """All of a DTensor, which takes a collective; any other tensor itself."""
    return t.full_tensor() if is_dtensor(t) else t


@torch.no_grad()
def part_of(x: Tensor, p: Tensor) -> Tensor:
    """What this rank is to hold of a tensor that is to be placed as `p`. x: the whole, or a DTensor of other placements, which takes a
    collective."""
    if not is_dtensor(p):
        return whole_of(x)
    if is_dtensor(x):
        return local_of(x if is_placed_as(x, p) else x.redistribute(p.device_mesh, p.placements))
    from torch.distributed.tensor import distribute_tensor

    x = x.to(p.device)
    return local_of(distribute_tensor(x, p.device_mesh, p.placements, src_data_rank=None))


# ------------------------------------------------------------------ checks


def check_placements(name: str, p: Any, draws: bool, has_scales: bool) -> None:
    """Raises if a DTensor is placed in a way in which it cannot be stepped.

    draws: whether its steps take random bits. has_scales: whether its moments have 8 bits.
    """
    if any(placement.is_partial() for placement in p.placements):
        raise ValueError(
            f"{name}: has placements {p.placements}, of which a Partial one is a sum that is not made yet; use "
            "p.redistribute(...) to shard or replicate it"
        )
    shard_of(p)
    beyond = max(dim_of(placement) or 0 for placement in p.placements)
    if beyond > 1 and draws:
        raise ValueError(
            f"{name}: is sharded along dim {beyond}, where the random bits of stochastic rounding are not to be found; shard it "
            "along dim 0 or 1, or put it into a group with state_dtype=None and stochastic_rounding=False"
        )
    if has_scales and is_cut(p, BLOCK):
        raise ValueError(
            f"{name}: its rows are split over ranks at places that are no multiples of {BLOCK}, the elements of a block of moments "
            "of 8 bits; put it into a group with state_dtype=torch.bfloat16"
        )


def check_mesh(name: str, p: Tensor, g: Tensor) -> None:
    """Raises if a gradient is on another mesh than its parameter, or one of them on none."""
    if not (is_dtensor(p) and is_dtensor(g) and g.device_mesh == p.device_mesh):
        meshes = [repr(t.device_mesh) if is_dtensor(t) else "none (a plain tensor)" for t in (p, g)]
        raise TypeError(
            f"{name}: its gradient must be on the mesh of the parameter, {meshes[0]}, got {meshes[1]}; distribute both, "
            "torch.distributed.tensor.distribute_tensor, or neither"
        )


# ------------------------------------------------------------------ gradients


@torch.no_grad()
def place_gradients(params: Iterable[Any]) -> bool:
    """Gives the gradients of DTensors the placements of their parameters, in place of `p.grad`: of a Partial one the sum over ranks,
    of a replicated one this rank's part. Waits for collectives that are under way. All ranks have such gradients, or none.

    Returns whether there was one. What it cannot place, checks.py refuses.
    """
    found = False
    for p in params:
        g = p.grad
        if g is None or not is_dtensor(g) or g.device_mesh != p.device_mesh:
            continue
        if g.placements != p.placements:
            p.grad, found = g.redistribute(placements=p.placements), True
        if is_under_way(p.grad):
            p.grad, found = waited_for(p.grad), True
    return found
