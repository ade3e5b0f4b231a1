"""What ranks exchange of a step of sharded parameters, so that all of them decide what one process would.

    rows of a tensor on several ranks     its `STATS` are put together: 48 bytes, over the axes that part the rows
    parts of every row                    before that, the sums of each row: 32 bytes, over the axes that split the rows
    norm of the gradients, found_inf      one number for each axis

A collective has all tensors of an axis. What is exchanged is settled when tensors are bound, by their placements alone, so that no
gate, prediction or missing gradient can make ranks take different collectives. Nothing waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from .backend.base import STATS, Backend
from .reference import coefficient, cosine
from .sharding import Axis, axes_of, every_axis, has_gate
from .spec import OptimizerSpec
from .torch_compat import all_gather, local_of

# Up to so many ranks, what each has is gathered and added up in the order of ranks: the same bits from run to run. Beyond, it is a
# sum of the communication library, whose order is its own, and whose time grows with the logarithm of the ranks.
MOST_GATHERED = 64

COSINE = STATS.index("max_cosine_squared")


# ------------------------------------------------------------------ collectives


def gathered(x: Tensor, over: Axis) -> Tensor:
    """x of every rank, in the order of ranks."""
    every = x.new_empty(len(over.ranks), *x.shape)
    all_gather(every.view(-1), x.contiguous().view(-1), over.group)
    return every


def summed(x: Tensor, over: Axis) -> Tensor:
    """The sum of x over the ranks of an axis."""
    if len(over.ranks) <= MOST_GATHERED:
        return gathered(x, over).sum(dim=0)
    x = x.clone()
    torch.distributed.all_reduce(x, group=over.group)
    return x


def put_together(stats: Tensor, limits: Callable[[], Tensor], over: Axis) -> Tensor:
    """STATS of some tensors over the ranks of an axis: the sums, and the largest cosine, NaN if any is.

    limits: for each tensor, the cosine that its rows must stay below. Beyond `MOST_GATHERED` ranks the largest cosine is not known,
    as a MAX may drop a NaN. Instead the ranks that have a row that fails are counted, in the same sum, which is exact in any order.
    The cosine is then this rank's, or infinite if only rows of other ranks fail.
    """
    if len(over.ranks) <= MOST_GATHERED:
        every = gathered(stats, over)
        total = every.sum(dim=0)
        total[:, COSINE] = every[:, :, COSINE].amax(dim=0)  # torch's own keeps a NaN
        return total
    own = stats[:, COSINE]
    fails = ~(own.sqrt() < limits())
    total = stats.clone()
    total[:, COSINE] = fails + 0 * own  # a NaN stays one, in every sum
    torch.distributed.all_reduce(total, group=over.group)
    count = total[:, COSINE]
    total[:, COSINE] = torch.where(count > 0, torch.where(fails, own, math.inf), own + count)
    return total


def found_anywhere(found_inf: Tensor, axes: Iterable[Axis]) -> None:
    """Makes `found_inf` 1 where it is on any rank of some axes, in place. torch reduces it over those of the first gradient alone."""
    for a in axes:
        torch.distributed.all_reduce(found_inf, op=torch.distributed.ReduceOp.MAX, group=a.group)


# ------------------------------------------------------------------ the exchange


class _Constants:
    """Numbers on a device that follow from a hyper-parameter of each group. They are made when that has changed: a captured step finds
    them there."""

    def __init__(self, device: torch.device):
        self.device, self.values, self.made = device, list[float](), torch.zeros(0)

    def of(self, values: list[float], numbers: Callable[[], list[float]]) -> Tensor:
        if values != self.values:
            self.values, self.made = values, torch.tensor(numbers(), dtype=torch.float64, device=self.device)
        return self.made


class _Part:
    """The rows of a table that are exchanged over one axis, and the tensors that they are of."""

    def __init__(self, over: Axis, rows: list[int], tensors: list[int], device: torch.device):
        self.axis, self.tensors = over, tensors
        self.rows = torch.tensor(rows, dtype=torch.int64, device=device)
        self.constants = _Constants(device)

    def limits(self, backend: Backend) -> Tensor:
        """The cosine that a row of each tensor must stay below: delta/sqrt(row length)."""
        deltas = [h.delta for h in backend.hypers]

        def limits() -> list[float]:
            of_each = [(p, delta) for group, delta in zip(backend.params, deltas, strict=True) for p in group]
            return [_limit(*of_each[number]) for number in self.tensors]

        return self.constants.of(deltas, limits)


def _limit(p: Tensor, delta: float) -> float:
    length = p.numel() // p.shape[0]
    # That of a single element is 1, but its square is not, quite.
    return min(delta, 1 - 2**-20) if length == 1 and delta <= 1 else delta / math.sqrt(length)


class Exchange:
    """What the backends of an optimizer exchange. Called between the update and the decision of a step, it completes the statistics of
    sharded tensors.

    axes: of all their meshes.
    """

    def __init__(self, spec: OptimizerSpec, backends: Sequence[Backend]):
        params = {id(backend): [p for group in backend.params for p in group] for backend in backends}
        self.parts = {id(backend): _parts_of(spec, params[id(backend)]) for backend in backends}
        every = [p for own in params.values() for p in own]
        self.axes = every_axis(every, "all")
        # Tensors that are sharded over the same axes form a set.
        self.sharding_axes = every_axis(every, "sharded")
        keys = {name: [tuple(a.ranks for a in axes_of(p, "sharded")) for p in own] for name, own in params.items()}
        self.sets = [*dict.fromkeys(key for own in keys.values() for key in own)]
        self.members = {
            id(backend): torch.tensor(
                [[key == one for key in keys[id(backend)]] for one in self.sets], device=_device(backend)
            )
            for backend in backends
        }

    @torch.no_grad()
    def __call__(self, backends: Sequence[Backend]) -> None:
        for backend in backends:
            of_rows, of_tensors, split = self.parts[id(backend)]
            if split is not None:
                sums = backend.row_sums.clone()
                for part in of_rows:
                    sums[part.rows] = summed(sums[part.rows], part.axis)
                split.complete(backend, sums)
            for part in of_tensors:
                stats = backend.stats
                stats[part.rows] = put_together(stats[part.rows], partial(part.limits, backend), part.axis)

    @torch.no_grad()
    def square_sum(self, backends: Sequence[Backend]) -> Tensor:
        """The sum of squares over all gradients, float64. A copy counts once; a collective over an axis has the sums of all sets."""
        sums = torch.stack(
            [backend.square_sums(self.members[id(backend)]).to(_device(backends[0])) for backend in backends]
        )
        sums = sums.sum(dim=0)
        for a in self.sharding_axes:
            whole = summed(sums, a)
            sums = torch.stack([whole[i] if a.ranks in key else sums[i] for i, key in enumerate(self.sets)])
        return sums.sum()


def _device(backend: Backend) -> torch.device:
    return backend.params[0][0].device


def is_needed(spec: OptimizerSpec, backend: Backend) -> bool:
    """Whether some gate is decided by several ranks."""
    return any(axes_of(p, "sharded") for group in backend.params for p in group if has_gate(spec, p))


class _SplitRows:
    """The tensors of a backend whose rows are split over ranks. rows: of each, the numbers of its rows in `row_sums`, filled up by that
    of a row of zeros after the last. A rank may have no rows."""

    def __init__(self, tensors: list[int], rows: list[range], device: torch.device):
        count = rows[-1].stop
        most = max(1, *map(len, rows))
        self.tensors = torch.tensor(tensors, device=device)
        self.rows = torch.tensor(
            [[*own, *[count] * (most - len(own))] for own in rows], dtype=torch.int64, device=device
        )
        self.counts = torch.tensor([*map(len, rows)], dtype=torch.float64, device=device)
        self.constants = _Constants(device)
        self.of_row = [tensor for tensor, own in zip(tensors, rows, strict=True) for _ in own]

    def complete(self, backend: Backend, sums: Tensor) -> None:
        """From the sums of whole rows their coefficients, and the statistics of the tensors."""
        eps = self._eps(backend)
        pg, pp, gg, pu = sums.unbind(dim=1)
        backend.complete_rows(sums, coefficient(pp, pu, eps))
        squares = cosine(pg, pp, gg, eps) ** 2
        own = pad(torch.cat([sums, squares[:, None]], dim=1), (0, 0, 0, 1))[self.rows]
        stats = torch.cat([own[..., :4].sum(dim=1), own[..., 4].amax(dim=1)[:, None], self.counts[:, None]], dim=1)
        backend.stats[self.tensors] = stats

    def _eps(self, backend: Backend) -> float | Tensor:
        values = [h.eps for h in backend.hypers]
        if len(set(values)) == 1:
            return values[0]

        def of_rows() -> list[float]:
            of_each = [eps for group, eps in zip(backend.params, values, strict=True) for _ in group]
            return [of_each[tensor] for tensor in self.of_row]

        return self.constants.of(values, of_rows)


def _parts_of(spec: OptimizerSpec, params: list[Tensor]) -> tuple[list[_Part], list[_Part], _SplitRows | None]:
    """Of `row_sums` and of `stats`, and the tensors whose rows are split."""
    rows: dict[tuple[int, ...], tuple[Axis, list[int], list[int]]] = {}
    tensors: dict[tuple[int, ...], tuple[Axis, list[int], list[int]]] = {}
    split: dict[int, range] = {}
    count = 0
    for number, p in enumerate(params):
        if not has_gate(spec, p):
            continue
        splitting = axes_of(p, "split")
        if splitting:
            split[number] = range(count, count + local_of(p).size(0))
            count = split[number].stop
        for a in splitting:
            rows.setdefault(a.ranks, (a, [], []))[1].extend(split[number])
        for a in axes_of(p, "rows"):
            _, numbers, members = tensors.setdefault(a.ranks, (a, [], []))
            numbers.append(number)
            members.append(number)
    device = params[0].device
    of_rows, of_tensors = (
        [_Part(a, numbers, members, device) for a, numbers, members in found.values()] for found in (rows, tensors)
    )
    return of_rows, of_tensors, _SplitRows([*split], [*split.values()], device) if split else None
