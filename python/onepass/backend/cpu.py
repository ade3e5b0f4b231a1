"""The CPU backend. The kernels are in csrc/cpu/."""

from __future__ import annotations

import math
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
        return torch.tensor(self.plan.square_sum(torch.get_num_threads()), dtype=torch.float64, device="cpu")

    def begin(self, hypers: list[Hyper], scaling: Scaling) -> bool:
        if scaling.skips:
            self.release_gradients()
            return False
        self.plan.begin(torch.get_num_threads(), scaling.factor)
        return True

    @property
    def stats(self) -> Tensor:
        return torch.frombuffer(self.plan.stats, dtype=torch.float64).view(-1, len(STATS))

    def verdicts(self) -> list[GateStatistics]:
        return gate_statistics_on_host(
            {
                p: Verdict(GATES[gate], cosine, math.sqrt(pp), math.sqrt(gg), corrected)
                for p, gate, cosine, pp, gg, corrected in self.plan.verdicts()
            }
        )
