"""The compiled module onepass._C, and the part of a backend that CPU and CUDA share: binding tensors to a plan in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .._version import __version__
from ..blocks import SCALE
from ..hyperparams import Hyper
from ..masters import MASTER
from ..precision import numbers_of, precision_of
from ..sharding import shard_of
from ..spec import OptimizerSpec
from ..torch_compat import has_exchange_table, is_dtensor, local_of
from . import direct_reads
from .base import Groups

try:
    from .. import _C as _C
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
    if not has_exchange_table():
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


def with_locals(params: list[Tensor]) -> list[Tensor]:
    """Some parameters, and what DTensors among them hold, whose versions are others."""
    return params + [local_of(p) for p in params if is_dtensor(p)]


class CompiledBackend:
    """Steps the tensors of some groups, all on one device, through one compiled plan, built once."""

    name: str
    capturable = False
    plan: _C.CpuPlan | _C.CudaPlan

    def __init__(self, spec: OptimizerSpec, groups: Groups, indices: list[int], graph_tensors: list[Tensor]):
        self.spec = spec
        self.indices = indices
        self.params = [list(groups[i]["params"]) for i in indices]
        self.precisions = [precision_of(groups[i]) for i in indices]
        starts = numbers_of(groups)
        self.numbers = [starts[i] for i in indices]
        self.hypers: list[Hyper] = []

    def bind(self, state: Any, first: list[Tensor], exchanges: bool = False) -> None:
        spec, self.exchanges = self.spec, exchanges
        # The plan borrows these objects; referenced here, the garbage collector sees them.
        own = [state[p] for params in self.params for p in params if p in state]
        keys = ("step", "gate_counter", MASTER, *spec.moments, *[key + SCALE for key in spec.moments])
        self.retained = [state, own, [[entries.get(key) for key in keys] for entries in own]]
        self.hypers = []
        self.make_plan(
            params=self.params,
            state=state,
            moments=list(spec.moments),
            rule=spec.rule,
            projected=spec.projected,
            lazy_buffer=spec.lazy_buffer,
            first=first,
            precisions=self.precisions,
            numbers=self.numbers,
            shards=[[shard_of(p) for p in params] for params in self.params],
            exchanges=exchanges,
            direct_reads=direct_reads.FOUND,
        )

    def make_plan(self, **arguments: Any) -> None:
        raise NotImplementedError

    def ready(self, groups: Groups, hypers: list[Hyper], needs_state: bool) -> bool:
        mine = [hypers[i] for i in self.indices]
        if mine != self.hypers:
            self.plan.set_hypers(mine)
            self.hypers = mine
        return self.plan.ready([groups[i]["params"] for i in self.indices], needs_state)

    def unstepped(self) -> list[Tensor]:
        return [p for _, p in self.plan.unstepped()]

    def gate_stats(self) -> None:
        if self.spec.projected:
            self.plan.gate_stats()

    def update(self) -> None:
        self.plan.update()

    def decide(self) -> None:
        if self.spec.projected:
            self.plan.decide()

    def correct(self) -> None:
        self.plan.correct()
        # So that autograd refuses a backward pass through weights that were written to.
        increment_version(self.plan.end())

    def release_gradients(self) -> None:
        self.plan.release_gradients()
