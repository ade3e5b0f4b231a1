"""The specification as a backend: any device, and slow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import reference
from ..hyperparams import Hyper
from ..last_step import GateStatistics, gate_statistics_on_host
from ..precision import numbers_of
from ..scaling import Scaling
from ..sharding import has_gate, shard_of
from ..spec import OptimizerSpec
from ..torch_compat import is_dtensor, local_of
from ..verdict import Verdict
from .base import STATS, Groups


class ReferenceBackend:
    """Steps one parameter after the other with reference.py."""

    name = "reference"
    capturable = False

    def __init__(self, spec: OptimizerSpec, groups: Groups, indices: list[int], graph_tensors: list[Tensor]):
        self.spec, self.indices = spec, indices
        self.groups = [(i, groups[i]) for i in indices]
        self.bound = False
        self.last: dict[Tensor, Verdict] = {}
        self.params = [list(group["params"]) for _, group in self.groups]
        self.flat = [p for params in self.params for p in params]
        self.group_of = [k for k, (_, group) in enumerate(self.groups) for _ in group["params"]]
        starts = numbers_of(groups)
        self.numbers = [starts[i] + n for i, group in self.groups for n in range(len(group["params"]))]

    def bind(self, state: Any, first: list[Tensor], exchanges: bool = False) -> None:
        self.state, self.first, self.bound = state, {id(p) for p in first}, True
        self.stats = torch.zeros(len(self.flat), len(STATS), dtype=torch.float64, device="cpu")
        self.shards = [shard_of(p) for p in self.flat]
        split = [p for p, shard in zip(self.flat, self.shards, strict=True) if shard and shard.split]
        rows = sum(local_of(p).size(0) for p in split if has_gate(self.spec, p))
        self.row_sums = torch.zeros(rows, 4, dtype=torch.float64, device="cpu")

    def ready(self, groups: Groups, hypers: list[Hyper], needs_state: bool) -> bool:
        # Bound anew for every step: this is the specification, and checking everything is the safe thing to do.
        bound, self.bound = self.bound, False
        return bound

    def square_sum(self) -> Tensor:
        return reference.square_sum([p.grad for p in self.flat if p.grad is not None])

    def square_sums(self, members: Tensor) -> Tensor:
        chosen = [[local_of(p.grad) for p, of_set in zip(self.flat, one, strict=True) if of_set and p.grad is not None]
                  for one in members.tolist()]  # fmt: skip
        return torch.stack([reference.square_sum(gradients) for gradients in chosen])

    def begin(self, hypers: list[Hyper], scaling: Scaling) -> bool:
        if scaling.skips:
            return False
        self.hypers = [replace(hypers[i], grad_scale=hypers[i].grad_scale * scaling.factor) for i, _ in self.groups]
        return True

    def gate_stats(self) -> None:
        pass  # p is written after the decision, whatever the rule

    def own_state(self, p: Tensor) -> dict[str, Any]:
        return {key: local_of(t) for key, t in self.state.get(p, {}).items()}

    @torch.no_grad()
    def update(self) -> None:
        self.pending: list[tuple[int, Hyper, reference.Pending]] = []
        self.stats.zero_()
        self.row_sums.zero_()
        for number, (p, group) in enumerate(zip(self.flat, self.group_of, strict=True)):
            if p.grad is None:
                continue
            h, state, shard = self.hypers[group], self.own_state(p), self.shards[number]
            gradient, is_first = local_of(p.grad), id(p) in self.first
            pending = reference.update(
                self.spec, local_of(p), gradient, state, h, is_first, self.numbers[number], shard
            )
            self.first.discard(id(p))
            if pending is not None:
                self.stats[number] = torch.tensor(pending.rows.stats(), dtype=torch.float64, device="cpu")
                self.pending.append((number, h, pending))
        for rows, _, pending in self.split():
            rows.copy_(torch.stack(pending.rows[:4], dim=1))

    def split(self) -> Iterator[tuple[Tensor, Hyper, reference.Pending]]:
        """The pending parameters whose rows are split, and these rows in `row_sums`."""
        count, pending_of = 0, {number: (h, pending) for number, h, pending in self.pending}
        for number, (p, shard) in enumerate(zip(self.flat, self.shards, strict=True)):
            if shard is None or not shard.split or not has_gate(self.spec, p):
                continue
            rows = self.row_sums[count : count + local_of(p).size(0)]
            count += len(rows)
            if number in pending_of:
                yield rows, *pending_of[number]

    @torch.no_grad()
    def complete_rows(self, sums: Tensor, c: Tensor) -> None:
        self.row_sums.copy_(sums)
        for rows, h, pending in self.split():
            pg, pp, gg, pu = rows.to(pending.p.device).unbind(dim=1)
            pending.rows = reference.RowSums(pg, pp, gg, pu, reference.cosine(pg, pp, gg, h.eps))

    @torch.no_grad()
    def decide(self) -> None:
        for number, h, pending in self.pending:
            p = self.flat[number]
            pending.verdict = reference.decide(self.stats[number].tolist(), p.numel() // p.size(0), h)

    @torch.no_grad()
    def correct(self) -> None:
        self.last = {}
        for number, h, pending in self.pending:
            p, state = self.flat[number], self.own_state(self.flat[number])
            reference.correct(self.spec, local_of(p), state, h, pending, self.stats[number].tolist())
            assert pending.verdict is not None
            self.last[p] = pending.verdict
        self.pending = []
        increment_version([p for p in self.flat if is_dtensor(p) and p.grad is not None])

    def unstepped(self) -> list[Tensor]:
        return [p for _, group in self.groups for p in group["params"] if id(p) in self.first]

    def release_gradients(self) -> None:
        pass  # it holds none

    def verdicts(self) -> list[GateStatistics]:
        return gate_statistics_on_host(self.last)
