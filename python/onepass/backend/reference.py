"""The specification as a backend: any device, and slow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..hyperparams import Hyper
from ..last_step import GateStatistics, gate_statistics_on_host
from ..precision import numbers_of
from ..scaling import Scaling
from ..spec import OptimizerSpec
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
        self.params = [p for _, group in self.groups for p in group["params"]]
        self.group_of = [k for k, (_, group) in enumerate(self.groups) for _ in group["params"]]
        starts = numbers_of(groups)
        self.numbers = [starts[i] + n for i, group in self.groups for n in range(len(group["params"]))]

    def bind(self, state: Any, first: list[Tensor], exchanges: bool = False) -> None:
        self.state, self.first, self.bound = state, {id(p) for p in first}, True
        self.stats = torch.zeros(len(self.params), len(STATS), dtype=torch.float64, device="cpu")

    def ready(self, groups: Groups, hypers: list[Hyper], needs_state: bool) -> bool:
        # Bound anew for every step: this is the specification, and checking everything is the safe thing to do.
        bound, self.bound = self.bound, False
        return bound

    def square_sum(self) -> Tensor:
        return reference.square_sum([p.grad for _, group in self.groups for p in group["params"] if p.grad is not None])

    def begin(self, hypers: list[Hyper], scaling: Scaling) -> bool:
        if scaling.skips:
            return False
        self.hypers = [replace(hypers[i], grad_scale=hypers[i].grad_scale * scaling.factor) for i, _ in self.groups]
        return True

    def gate_stats(self) -> None:
        pass  # p is written after the decision, whatever the rule

    @torch.no_grad()
    def update(self) -> None:
        self.pending: list[tuple[int, Hyper, reference.Pending]] = []
        self.stats.zero_()
        for number, (p, group) in enumerate(zip(self.params, self.group_of, strict=True)):
            if p.grad is None:
                continue
            h = self.hypers[group]
            pending = reference.update(
                self.spec, p, p.grad, self.state.get(p, {}), h, id(p) in self.first, self.numbers[number]
            )
            self.first.discard(id(p))
            if pending is not None:
                self.stats[number] = torch.tensor(pending.rows.stats(), dtype=torch.float64, device="cpu")
                self.pending.append((number, h, pending))

    @torch.no_grad()
    def decide(self) -> None:
        for number, h, pending in self.pending:
            length = pending.p.numel() // pending.p.size(0)
            pending.verdict = reference.decide(self.stats[number].tolist(), length, h)

    @torch.no_grad()
    def correct(self) -> None:
        self.last = {}
        for number, h, pending in self.pending:
            p = self.params[number]
            reference.correct(self.spec, p, self.state.get(p, {}), h, pending, self.stats[number].tolist())
            assert pending.verdict is not None
            self.last[p] = pending.verdict
        self.pending = []

    def unstepped(self) -> list[Tensor]:
        return [p for _, group in self.groups for p in group["params"] if id(p) in self.first]

    def release_gradients(self) -> None:
        pass  # it holds none

    def verdicts(self) -> list[GateStatistics]:
        return gate_statistics_on_host(self.last)
