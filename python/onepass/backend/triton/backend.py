"""The Triton backend: the same phases as the compiled backends, with no compiler at install.

Asks at every step whether all tensors are where they were (readings.py), reads each if not, has tables.py upload what has changed, and launches the kernels of
triton_kernels/. Nothing here needs the compiled module.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ...hyperparams import Hyper, has_moments
from ...last_step import GateStatistics
from ...precision import numbers_of, precision_of
from ...scaling import NO_SCALING, Scaling
from ...spec import OptimizerSpec
from ...torch_compat import local_of
from ..base import Groups
from ..compiled import with_locals
from ..decided import Decided, DecidedParams, rows_of
from . import upload
from .bound_param import BoundParam, Wanted
from .readings import Readings
from .tables import TableUploader

OLDEST = (3, 5)


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unavailable() -> str | None:
    """None if the Triton kernels can be used, else a sentence saying why not and what to do."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; install it (pip install triton)."
    version = importlib.import_module("triton").__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"Triton {version} is too old; install {OLDEST[0]}.{OLDEST[1]} or later."
    if not interpreted() and not torch.cuda.is_available():
        return (
            "torch finds no GPU; use TRITON_INTERPRET=1 in the environment to run the kernels, slowly, on CPU tensors."
        )
    return None


class TritonBackend:
    """Steps the tensors of some groups, all on one device. Nothing waits for the device."""

    name = "triton"
    capturable = True

    def __init__(self, spec: OptimizerSpec, groups: Groups, indices: list[int], graph_tensors: list[Tensor]):
        self.spec, self.indices = spec, indices
        self.params = [list(groups[i]["params"]) for i in indices]
        self.precisions = [precision_of(groups[i]) for i in indices]
        starts = numbers_of(groups)
        self.numbers = [starts[i] for i in indices]
        self.device = self.params[0][0].device
        self.on_gpu = self.device.type == "cuda"
        upload.refuse_capture(self.device)
        self.graph_tensors = graph_tensors
        self.launches: list[str] = []  # of the last step
        self.decided = DecidedParams([])
        self.stream: Any = None
        self.hypers: list[Hyper] = []
        self.scaling = NO_SCALING  # of the present step, as the launches
        self.step: Any = None
        self.holds = False  # whether there are references to gradients
        self.changed = True  # whether the tensors have been read one by one since the last step
        self.active: list[BoundParam] = []  # those with a gradient
        self.keys_of: Any = None  # with which tensors and plan `keys` were found

    # ------------------------------------------------------------------ binding

    def bind(self, state: Any, first: list[Tensor], exchanges: bool = False) -> None:
        self.state, self.exchanges = state, exchanges
        new = {id(p) for p in first}
        self.bound = []
        for group, params in enumerate(self.params):
            for number, p in enumerate(params, self.numbers[group]):
                param = BoundParam(self.spec, p, group, number, self.precisions[group])
                param.first_step = id(p) in new
                param.new_buffer = local_of(state[p][self.spec.moments[0]]) if param.first_step else None
                self.bound.append(param)
        self.tables = TableUploader(self.spec, self.indices, self.bound, self.device, self.graph_tensors, exchanges)
        self.readings = Readings(self.bound, state)

    def ready(self, groups: Groups, hypers: list[Hyper], needs_state: bool) -> bool:
        for i, params in zip(self.indices, self.params, strict=True):
            given = groups[i]["params"]
            if len(given) != len(params) or not all(map(is_, given, params)):
                return False
        self.hypers = [hypers[i] for i in self.indices]
        if [h.precision for h in self.hypers] != self.precisions:
            return False
        planned = self.tables.structure is not None
        wanted: list[Wanted] = [
            (self.spec.moments if has_moments(self.spec, h) else (), h.device_hyper is not None, planned)
            for h in self.hypers
        ]
        try:
            found = self.readings.compare(wanted, needs_state)
            if found == "same" or (found == "moved" and self.tables.move(self.readings.addresses())):
                return True
            self.readings.forget()
            self.holds = True
            # get(), so that no entry is made of a parameter that has none.
            if not all([e.read(self.state.get(e.p, {}), wanted[e.group], needs_state) for e in self.bound]):
                return False
            self.readings.keep(wanted, needs_state)
        except (KeyError, AttributeError, TypeError, RuntimeError, NotImplementedError):
            return False  # some tensor differs from what was bound; checks.py finds out how
        self.changed, self.tables.gradients = True, None
        self.active = [e for e in self.bound if e.operands]
        self.buffered = [e for e in self.active if e.buffers]
        self.stepped = with_locals([e.p for e in self.active])
        self.gated: Decided = [(i, e.p) for i, e in enumerate(self.bound) if e.operands and e.projected]
        return True

    def unstepped(self) -> list[Tensor]:
        numbers = [i for i, e in enumerate(self.bound) if e.first_step]
        if not numbers:
            return []
        with self.on_device():
            not_on_device = self.tables.first_steps.tolist()
        return [self.bound[i].p for i in numbers if not_on_device[i]]

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def square_sum(self) -> Tensor:
        from ...triton_kernels import launch

        tables = self.prepare()
        with self.on_device():
            self.launches = launch.square_sum(tables)
        self.release_gradients()
        total: Tensor = tables.square_sum[0]
        return total

    @torch.no_grad()
    def square_sums(self, members: Tensor) -> Tensor:
        from ...triton_kernels import launch, plan

        tables = self.prepare()
        with self.on_device():
            self.launches = launch.square_sum(tables, total=False)
            of_rows = members[:, tables.row_table.view(4, -1)[0]]
            each = tables.row_stats[plan.ROW_STATS.index("gg")]
            sums = torch.where(of_rows, each, 0).sum(dim=1)
        self.release_gradients()
        return sums

    @torch.no_grad()
    def begin(self, hypers: list[Hyper], scaling: Scaling) -> bool:
        self.scaling = scaling.to(self.device)
        self.step = self.step_of(self.prepare())
        self.launches = self.step.launched
        with self.on_device():
            self.step.device_scalars()
        return True

    def gate_stats(self) -> None:
        with self.on_device():
            self.step.gate_stats()

    def update(self) -> None:
        with self.on_device():
            if self.exchanges:
                self.stats.zero_()  # of tensors without a gradient too
                self.tables.sent.row_stats.zero_()
            self.step.update()

    @property
    def stats(self) -> Tensor:
        stats: Tensor = self.tables.sent.stats
        return stats

    @property
    def row_sums(self) -> Tensor:
        tables = self.tables.sent
        sums: Tensor = torch.where(tables.is_piece, tables.row_stats[:4, tables.split_pieces], 0).sum(dim=-1).T
        return sums

    def complete_rows(self, sums: Tensor, c: Tensor) -> None:
        from ...triton_kernels.plan import ROW_STATS

        pieces = self.tables.sent.split_pieces
        self.tables.sent.row_stats[ROW_STATS.index("c"), pieces] = c[:, None].expand_as(pieces)

    def decide(self) -> None:
        with self.on_device():
            self.step.decide()

    @torch.no_grad()
    def correct(self) -> None:
        with self.on_device():
            self.step.correct()
        self.step = None
        for e in self.buffered:
            e.scatter()
        self.tables.scalars.count()
        for e in self.first:
            e.first_step, e.new_buffer = False, None
            self.readings.forget()  # the table is to be sent again
        if self.scaling.found_inf is None:
            self.decided = DecidedParams(self.gated)
        else:
            self.decided.add(self.gated, self.scaling.found_inf)
        # So that autograd refuses a backward pass through weights that were written to.
        increment_version(self.stepped)
        self.release_gradients()

    def release_gradients(self) -> None:
        """Releases the gradients, so that their memory is freed when they are replaced."""
        if self.holds:
            for e in self.bound:
                e.operands = e.operands[:1]
        self.holds = False

    def prepare(self) -> Any:
        """The tables of the next launches, up to date; copies operands that the kernels cannot read in place."""
        tables = self.tables.update(self.hypers, self.changed)
        self.changed = False
        if self.on_gpu and torch.cuda.current_stream(self.device) != self.stream:
            self.stream = torch.cuda.current_stream(self.device)
            buffers = [buffer for e in self.bound for buffer in e.buffers.values()]
            for table in (*vars(tables).values(), self.tables.scalars.numbers, *buffers):
                if isinstance(table, Tensor):  # torch must not reuse it before this stream is done
                    table.record_stream(self.stream)
        for e in self.buffered:
            e.gather()
        return tables

    def step_of(self, tables: Any) -> Any:
        from ...triton_kernels.launch import Step

        if self.keys_of is None or self.keys_of[0] is not self.active or self.keys_of[1] is not tables.plan:
            stepped = [
                (key, e)
                for key, e in zip(self.tables.kernel_keys, self.bound, strict=True)
                if e.operands and e.elements
            ]
            self.keys = {
                "plain": {key for key, e in stepped if not e.projected},
                "gated": {key for key, e in stepped if e.projected},
                "unpredicted": {key for key, e in stepped if e.projected and not self.tables.speculates(e)},
            }
            self.first = [e for e in self.active if e.first_step and not self.tables.device_hyper(e)]
            self.keys_of = self.active, tables.plan
        return Step(
            tables,
            (self.scaling.clip, self.scaling.grad_scale, self.scaling.found_inf),
            **self.keys,
            projects=any(h.project_momentum and not h.nesterov for h in self.hypers),
            exchanges=self.exchanges,
        )

    def on_device(self) -> AbstractContextManager[Any]:
        """Launches go to the current device."""
        here = not self.on_gpu or torch.cuda.current_device() == self.device.index
        return nullcontext() if here else torch.cuda.device(self.device)

    def verdicts(self) -> list[GateStatistics]:
        from ...triton_kernels.plan import VERDICT

        decided = self.decided.last()
        if not decided:
            return []
        rows, params = zip(*decided, strict=True)
        with self.on_device():
            v = dict(zip(VERDICT, rows_of(self.tables.sent.verdicts, rows).unbind(1), strict=True))
            return [
                GateStatistics(
                    list(params), v["gate"].int(), v["cosine"], v["pp"].sqrt(), v["gg"].sqrt(), v["corrected"] != 0
                )
            ]
