"""The compiled module, and what the backends share that bind tensors to a plan in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ._version import __version__
from .hyper import Hyper
from .last_step import GATES, Seen, seen_on_host
from .reference import Verdict
from .scaling import Scaling

if TYPE_CHECKING:
    from .optimizer import Optimizer

try:
    from . import _C as _C
except ImportError as error:
    _C = None  # type: ignore[assignment]
    _import_error: str = str(error)


def unavailable() -> str | None:
    """None if the compiled module can be used, else a sentence saying why not and what to do."""
    if _C is None:
        return (
            f"The compiled module onepass._C cannot be imported ({_import_error}); reinstall onepass with a C++ "
            "compiler on the PATH."
        )
    if not hasattr(Tensor, "__dlpack_c_exchange_api__"):
        return (
            f"torch {torch.__version__} has no DLPack exchange table, through which tensors reach the kernels; install "
            "torch 2.10 or later."
        )
    if _C.version != __version__:
        return (
            f"The compiled module is of onepass {_C.version}, the Python files are of {__version__}; reinstall onepass, so "
            "that both are built from one tree."
        )
    return None


class PlanRunner:
    """Steps the tensors of some groups, all on one device, through one compiled plan, built once."""

    name: str
    capturable = False
    plan: _C.Plan

    def __init__(self, optimizer: Optimizer, indices: list[int]):
        self.rule = optimizer.rule
        self.indices = indices
        self.params = [list(optimizer.param_groups[i]["params"]) for i in indices]
        self.known: list[Hyper] = []

    def bind(self, state: Any, first: list[Tensor]) -> None:
        rule = self.rule
        # The plan borrows these objects; held here, the garbage collector sees them.
        own = [state[p] for params in self.params for p in params if p in state]
        self.kept = [
            state,
            own,
            [[entries.get(key) for key in ("step", "gate_counter", *rule.moments)] for entries in own],
        ]
        self.known = []
        self.make_plan(
            params=self.params,
            state=state,
            moments=list(rule.moments),
            sgd=rule.family == "sgd",
            projected=rule.projected,
            lazy_buffer=rule.lazy_buffer,
            first=first,
        )

    def make_plan(self, **arguments: Any) -> None:
        raise NotImplementedError

    def ready(self, groups: list[dict[str, Any]], hypers: list[Hyper]) -> bool:
        mine = [hypers[i] for i in self.indices]
        if mine != self.known:
            self.plan.set_hypers(mine)
            self.known = mine
        return self.plan.ready([groups[i]["params"] for i in self.indices])

    def let_go(self) -> None:
        self.plan.let_go()


class CpuRunner(PlanRunner):
    """The CPU backend. The kernels are in csrc/cpu/."""

    name = "cpu"
    plan: _C.CpuPlan

    def make_plan(self, **arguments: Any) -> None:
        self.plan = _C.CpuPlan(**arguments)

    def square_sum(self) -> Tensor:
        return torch.tensor(self.plan.square_sum(torch.get_num_threads()), dtype=torch.float64, device="cpu")

    def run(self, hypers: list[Hyper], scaling: Scaling) -> None:
        if scaling.skips:
            return self.let_go()
        # autograd refuses a backward pass through weights that were written to: it knows by their version.
        increment_version(self.plan.run(torch.get_num_threads(), scaling.factor))

    def verdicts(self) -> list[Seen]:
        return seen_on_host(
            {
                p: Verdict(GATES[gate], cosine, math.sqrt(pp), math.sqrt(gg), settled)
                for p, gate, cosine, pp, gg, settled in self.plan.verdicts()
            }
        )
