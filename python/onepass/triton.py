"""The Triton backend: the same plan and the same steps as the compiled ones, with no compiler at install.

This is the boundary: it looks at every tensor at every step, has triton_tables.py send what has changed, and lets
triton_kernels/ do the rest. Triton is imported when the backend is first used. Nothing here needs the compiled module.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import triton_tables
from .hyper import Hyper, has_buffer
from .last_step import Judged, Seen, Taken, rows_of
from .scaling import Scaling
from .triton_entry import Entry, facts_of
from .triton_tables import CAPTURING, DeviceTables

if TYPE_CHECKING:
    from .optimizer import Optimizer

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


class TritonRunner:
    """Steps the tensors of some groups, all on one device. Nothing waits for the device."""

    name = "triton"
    capturable = True

    def __init__(self, optimizer: Optimizer, indices: list[int]):
        self.rule, self.indices = optimizer.rule, indices
        self.params = [list(optimizer.param_groups[i]["params"]) for i in indices]
        self.device = self.params[0][0].device
        self.on_gpu = self.device.type == "cuda"
        if triton_tables.capturing(self.device):
            raise RuntimeError(CAPTURING)
        self.captured = optimizer._runtime.captured
        self.launches: list[str] = []  # of the last step
        self.taken = Taken([])
        self.stream: Any = None
        self.hypers: list[Hyper] = []
        self.changed = True  # whether any tensor is not as it was at the last step

    # ------------------------------------------------------------------ what is bound, and whether it is so still

    def bind(self, state: Any, first: list[Tensor]) -> None:
        self.state = state
        fresh = {id(p) for p in first}
        self.entries = []
        for group, params in enumerate(self.params):
            for p in params:
                entry = Entry(p, group, self.rule.projected and p.dim() > 1 and p.numel() > 0)
                entry.fresh = self.rule.lazy_buffer and id(p) in fresh
                self.entries.append(entry)
        self.tables = DeviceTables(self.rule, self.indices, self.entries, self.device, self.captured)

    def ready(self, groups: list[dict[str, Any]], hypers: list[Hyper]) -> bool:
        for i, params in zip(self.indices, self.params, strict=True):
            given = groups[i]["params"]
            if len(given) != len(params) or not all([a is b for a, b in zip(given, params, strict=True)]):
                return False
        self.hypers = [hypers[i] for i in self.indices]
        try:
            return all([self.look(entry) for entry in self.entries])
        except (KeyError, AttributeError, TypeError, RuntimeError, NotImplementedError):
            return False  # some tensor is not what it was; what it is, checks.py finds out

    def look(self, e: Entry) -> bool:
        """Takes the addresses of a parameter that has a gradient, and of its state."""
        g = e.p.grad
        if g is None:
            self.changed |= bool(e.operands)
            e.operands, e.facts = [], []
            return True
        h = self.hypers[e.group]
        moments = self.rule.moments if has_buffer(self.rule, h) else ()
        counted = self.rule.counted and self.rule.family == "adam"
        own = self.state.get(e.p, {})  # which makes no entry
        e.operands = [e.p, g, *[own[key] for key in moments]]
        e.step = own["step"] if counted else None
        e.counter = own["gate_counter"] if e.projected else None
        facts = [facts_of(t) for t in (*e.operands, e.step, e.counter) if t is not None]
        negated = g.is_neg()
        if facts == e.facts and negated == e.negated:
            return True
        forms = [form for _, form in facts]
        if forms[0] != e.form:
            return False
        if forms != e.forms:
            if self.tables.structure is not None and forms != e.expected(len(moments), counted, h.live is not None):
                return False
            e.forms = forms
            e.facts = facts
            e.lay_out()
        if any(address == 0 and t.numel() for (address, _), t in zip(facts, e.operands, strict=False)):
            return False
        e.facts, e.negated, self.changed = facts, negated, True
        return True

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def square_sum(self) -> Tensor:
        from .triton_kernels import launch

        tables = self.prepare()
        with self.on_device():
            self.launches = launch.square_sum(tables)
        self.let_go()
        total: Tensor = tables.square_sum[0]
        return total

    @torch.no_grad()
    def run(self, hypers: list[Hyper], scaling: Scaling) -> None:
        tables = self.prepare()
        with self.on_device():
            self.launch(tables, scaling.to(self.device))
        active = [e for e in self.entries if e.operands]
        for e in active:
            e.scatter()
        counted = [e.step for e in active if e.step is not None and not self.tables.live(e)]
        if counted:
            torch._foreach_add_(counted, 1.0)
        for e in active:
            if e.fresh and not self.tables.live(e):
                e.fresh, e.facts = False, []  # the table is to be sent again
        judged: Judged = [(i, e.p) for i, e in enumerate(self.entries) if e.operands and e.projected]
        if scaling.found_inf is None:
            self.taken = Taken(judged)
        else:
            self.taken.add(judged, scaling.found_inf)
        # autograd refuses a backward pass through weights that were written to: it knows by their version.
        increment_version([e.p for e in active])
        self.let_go()

    def let_go(self) -> None:
        """Of the gradients, so that to replace them frees their memory."""
        for e in self.entries:
            e.operands = e.operands[:1]

    def prepare(self) -> Any:
        """The tables of the launches to come, and operands where the kernels look for them."""
        tables = self.tables.update(self.hypers, self.changed)
        self.changed = False
        if self.on_gpu and torch.cuda.current_stream(self.device) != self.stream:
            self.stream = torch.cuda.current_stream(self.device)
            buffers = [buffer for e in self.entries for buffer in e.buffers.values()]
            for table in (*vars(tables).values(), self.tables.numbers, *buffers):
                if isinstance(table, Tensor):  # torch must not give it to others before this stream is done
                    table.record_stream(self.stream)
        for e in self.entries:
            if e.operands:
                e.gather()
        return tables

    def launch(self, tables: Any, scaling: Scaling) -> None:
        from .triton_kernels import launch

        stepped = [
            (kind, e) for kind, e in zip(self.tables.kinds, self.entries, strict=True) if e.operands and e.p.numel()
        ]
        active = {kind for kind, _ in stepped}
        gated = {kind for kind, e in stepped if e.projected}
        measured = {kind for kind, e in stepped if e.projected and not self.tables.speculates(e, self.hypers[e.group])}
        projects = any(h.project_momentum and not h.nesterov for h in self.hypers)
        given = (scaling.clip, scaling.grad_scale, scaling.found_inf)
        self.launches = launch.launch_all(tables, given, active, gated, measured, projects)

    def on_device(self) -> AbstractContextManager[Any]:
        """Launches go to the current device."""
        here = not self.on_gpu or torch.cuda.current_device() == self.device.index
        return nullcontext() if here else torch.cuda.device(self.device)

    def verdicts(self) -> list[Seen]:
        from .triton_kernels.plan import VERDICT

        judged = self.taken.last()
        if not judged:
            return []
        rows, params = zip(*judged, strict=True)
        with self.on_device():
            v = dict(zip(VERDICT, rows_of(self.tables.sent.verdicts, rows).unbind(1), strict=True))
            return [Seen(list(params), v["gate"].int(), v["cosine"], v["pp"].sqrt(), v["gg"].sqrt(), v["settled"] != 0)]
