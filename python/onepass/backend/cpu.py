"""The CPU backend. The kernels are in csrc/cpu/."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..hyperparams import Hyper
from ..last_step import GateStatistics, gate_statistics_on_host
from ..scaling import Scaling
from ..verdict import GATES, Verdict
from . import compiled
from .compiled import CompiledBackend


class CpuBackend(CompiledBackend):
    """The CPU backend. The kernels are in csrc/cpu/."""

    name = "cpu"
    plan: compiled._C.CpuPlan

    def make_plan(self, **arguments: Any) -> None:
        self.plan = compiled._C.CpuPlan(**arguments)

    def square_sum(self) -> Tensor:
        return torch.tensor(self.plan.square_sum(torch.get_num_threads()), dtype=torch.float64, device="cpu")

    def run(self, hypers: list[Hyper], scaling: Scaling) -> None:
        if scaling.skips:
            return self.release_gradients()
        # So that autograd refuses a backward pass through weights that were written to.
        increment_version(self.plan.run(torch.get_num_threads(), scaling.factor))

    def verdicts(self) -> list[GateStatistics]:
        return gate_statistics_on_host(
            {
                p: Verdict(GATES[gate], cosine, math.sqrt(pp), math.sqrt(gg), corrected)
                for p, gate, cosine, pp, gg, corrected in self.plan.verdicts()
            }
        )
