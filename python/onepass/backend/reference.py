"""The specification as a backend: any device, and slow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..hyperparams import Hyper
from ..last_step import GateStatistics, gate_statistics_on_host
from ..scaling import Scaling
from ..spec import OptimizerSpec
from ..verdict import Verdict
from .base import Groups


class ReferenceBackend:
    """Steps one parameter after the other with reference.py."""

    name = "reference"
    capturable = False

    def __init__(self, spec: OptimizerSpec, groups: Groups, indices: list[int], graph_tensors: list[Tensor]):
        self.spec, self.indices = spec, indices
        self.groups = [(i, groups[i]) for i in indices]
        self.bound = False
        self.last: dict[Tensor, Verdict] = {}

    def bind(self, state: Any, first: list[Tensor]) -> None:
        self.state, self.first, self.bound = state, {id(p) for p in first}, True

    def ready(self, groups: Groups, hypers: list[Hyper]) -> bool:
        # Bound anew for every step: this is the specification, and checking everything is the safe thing to do.
        bound, self.bound = self.bound, False
        return bound

    def square_sum(self) -> Tensor:
        return reference.square_sum([p.grad for _, group in self.groups for p in group["params"] if p.grad is not None])

    @torch.no_grad()
    def run(self, hypers: list[Hyper], scaling: Scaling) -> None:
        if scaling.skips:
            return
        self.last = {}
        for i, group in self.groups:
            h = replace(hypers[i], grad_scale=hypers[i].grad_scale * scaling.factor)
            for p in group["params"]:
                if p.grad is not None:
                    own = self.state.get(p, {})
                    verdict = reference.step(self.spec, p, p.grad, own, h, id(p) in self.first)
                    if verdict is not None:
                        self.last[p] = verdict

    def release_gradients(self) -> None:
        pass  # it holds none

    def verdicts(self) -> list[GateStatistics]:
        return gate_statistics_on_host(self.last)
