"""The CPU backend. The kernels are in csrc/cpu/."""

from __future__ import annotations

import math
from functools import reduce
from itertools import compress
from operator import add
from typing import Any

import torch
from torch import Tensor

from ..hyperparams import Hyper
from ..last_step import GateStatistics, gate_statistics_on_host
from ..scaling import Scaling
from ..verdict import GATES, Verdict
from . import compiled
from .base import STATS
from .compiled import CompiledBackend


class CpuBackend(CompiledBackend):
    """The CPU backend. The kernels are in csrc/cpu/."""

    name = "cpu"
    plan: compiled._C.CpuPlan

    def make_plan(self, **arguments: Any) -> None:
        self.plan = compiled._C.CpuPlan(**arguments)

    def square_sum(self) -> Tensor:
        # In their order, which torch's sum does not promise.
        return torch.tensor(reduce(add, self.each_square_sum(), 0.0), dtype=torch.float64, device="cpu")

    def square_sums(self, members: Tensor) -> Tensor:
        each = self.each_square_sum()
        sums = [reduce(add, compress(each, of_set), 0.0) for of_set in members.tolist()]
        return torch.tensor(sums, dtype=torch.float64, device="cpu")

    def each_square_sum(self) -> list[float]:
        return self.plan.square_sums(torch.get_num_threads())

    def begin(self, hypers: list[Hyper], scaling: Scaling) -> bool:
        if scaling.skips:
            self.release_gradients()
            return False
        self.plan.begin(torch.get_num_threads(), scaling.factor)
        return True

    @property
    def stats(self) -> Tensor:
        return torch.frombuffer(self.plan.stats, dtype=torch.float64).view(-1, len(STATS))

    @property
    def row_sums(self) -> Tensor:
        if not self.plan.split_coefficients:
            return torch.zeros(0, 4, dtype=torch.float64, device="cpu")
        return torch.frombuffer(self.plan.row_sums, dtype=torch.float64).view(-1, 4)

    def complete_rows(self, sums: Tensor, c: Tensor) -> None:
        if len(c):
            torch.frombuffer(self.plan.coefficients, dtype=torch.float64)[self.plan.split_coefficients] = c

    def verdicts(self) -> list[GateStatistics]:
        return gate_statistics_on_host(
            {
                p: Verdict(GATES[gate], cosine, math.sqrt(pp), math.sqrt(gg), corrected)
                for p, gate, cosine, pp, gg, corrected in self.plan.verdicts()
            }
        )
