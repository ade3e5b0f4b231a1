"""The Triton backend: the same plan and the same steps as the compiled ones, with no compiler at install.

This is the boundary: it looks at every tensor at every step, keeps the tables of addresses and scalars on the device, and
lets triton_kernels/ do the rest. Triton is imported when the backend is first used. Nothing here needs the compiled
module.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .hyper import Hyper, Live, has_buffer
from .last_step import Seen, rows_of
from .reference import working_dtype

if TYPE_CHECKING:
    from .optimizer import Optimizer

OLDEST = (3, 5)
CAPTURING = (
    "this step has to make state or a plan, which must not happen while the stream is captured into a CUDA graph; take a "
    "step before the capture, and change no parameter, state or group in between"
)


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


# The address of a tensor, and what else must be as it was bound.
Facts = tuple[int, tuple[Any, ...]]


def facts_of(t: Tensor) -> Facts:
    return t.data_ptr(), (t.dtype, t.shape, t.stride(), t.device, t.layout)


def packs(shape: Sequence[int], strides: Sequence[int], projected: bool) -> bool:
    """Whether the elements fill a stretch of memory and, for a projected tensor, dim 0 is the outermost."""
    reach, outermost = 1, True
    for stride, size, dim in sorted(
        (st, si, d) for d, (st, si) in enumerate(zip(strides, shape, strict=True)) if si != 1
    ):
        if stride != reach:
            return False
        reach *= size
        outermost = dim == 0
    return outermost or not projected or shape[0] == 1


def same_layout(shape: Sequence[int], a: Sequence[int], b: Sequence[int]) -> bool:
    return all(size == 1 or x == y for size, x, y in zip(shape, a, b, strict=True))


class Entry:
    """One parameter, as it was bound, and what is known of it at this step."""

    def __init__(self, p: Tensor, group: int, projected: bool):
        self.p, self.group, self.projected = p, group, projected
        self.rows = p.shape[0] if projected else 1
        self.length = p.numel() // self.rows
        self.form = facts_of(p)[1]
        self.dtype = str(p.dtype).removeprefix("torch.")
        self.operands: list[Tensor] = []  # p, g, the moments; empty without a gradient
        self.step: Tensor | None = None
        self.counter: Tensor | None = None
        self.negated = self.fresh = False
        self.facts: list[Facts] = []
        self.forms: list[tuple[Any, ...]] = []
        self.buffers: dict[int, Tensor] = {}  # for operands that do not lie as the kernels need them
        self.cohort: Any = None

    def expected(self, moments: int, counted: bool, capturable: bool) -> list[tuple[Any, ...]]:
        """How a gradient and a state look that were not there when the parameter was bound."""
        dtype, *like = self.form  # as it was bound: another dtype or shape needs another plan
        work, one = working_dtype(dtype), (torch.Size(()), ())
        forms: list[tuple[Any, ...]] = [self.form, self.form, *[(work, *like)] * moments]
        if counted:
            forms.append((torch.float32, *one, like[2] if capturable else torch.device("cpu"), torch.strided))
        if self.projected:
            forms.append((torch.uint8, *one, like[2], torch.strided))
        return forms

    def lay_out(self) -> None:
        """Makes a buffer for each operand that does not lie as the others, or not row after row."""
        p = self.p
        strides: Sequence[int] = p.stride()
        if not packs(p.shape, strides, self.projected):
            strides = torch.empty(p.shape, device="meta").stride()
        self.buffers = {
            i: torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device)
            for i, t in enumerate(self.operands)
            if t.numel() and not same_layout(p.shape, t.stride(), strides)
        }

    def gather(self) -> None:
        for i, buffer in self.buffers.items():
            buffer.copy_(self.operands[i])

    def scatter(self) -> None:
        for i, buffer in self.buffers.items():
            if i != 1:  # the gradient is read only
                self.operands[i].copy_(buffer)

    def addresses(self) -> list[int]:
        """Of p, g, and two moments."""
        found = [
            self.buffers[i].data_ptr() if i in self.buffers else self.facts[i][0] for i in range(len(self.operands))
        ]
        return found + [0] * (4 - len(found))

    @property
    def aligned(self) -> bool:
        return all(address % 16 == 0 for address in self.addresses())

    @property
    def negative(self) -> bool:
        """Whether the gradient is the negative of what the kernel reads; torch resolves that in a buffer."""
        return self.negated and 1 not in self.buffers


class TritonRunner:
    """Steps the tensors of some groups, all on one device. Nothing waits for the device."""

    name = "triton"
    capturable = True

    def __init__(self, optimizer: Optimizer, indices: list[int]):
        self.rule, self.indices = optimizer.rule, indices
        self.params = [list(optimizer.param_groups[i]["params"]) for i in indices]
        self.device = self.params[0][0].device
        self.on_gpu = self.device.type == "cuda"
        if self.capturing():
            raise RuntimeError(CAPTURING)
        self.launches: list[str] = []  # of the last step
        self.told: list[tuple[Tensor, int]] = []
        self.tables: Any = None
        self.kept: list[Any] = []  # what captured graphs read
        self.spare: Tensor | None = None
        self.stream: Any = None
        self.hypers: list[Hyper] = []
        self.planned: list[Hyper] = []  # those that the tables were made under
        self.live_key: Any = None

    def capturing(self) -> bool:
        return self.on_gpu and torch.cuda.is_current_stream_capturing()

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
        self.structure: Any = None

    def ready(self, groups: list[dict[str, Any]], hypers: list[Hyper]) -> bool:
        for i, params in zip(self.indices, self.params, strict=True):
            given = groups[i]["params"]
            if len(given) != len(params) or not all([a is b for a, b in zip(given, params, strict=True)]):
                return False
        self.hypers = [hypers[i] for i in self.indices]
        self.changed = False
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
        own = self.state[e.p] if moments or counted or e.projected else {}
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
            if self.structure is not None and forms != e.expected(len(moments), counted, h.live is not None):
                return False
            e.forms = forms
            e.facts = facts
            e.lay_out()
        if any(address == 0 and t.numel() for (address, _), t in zip(facts, e.operands, strict=False)):
            return False
        e.facts, e.negated, self.changed = facts, negated, True
        return True

    # ------------------------------------------------------------------ the plan

    def family(self, h: Hyper) -> str:
        return self.rule.family if has_buffer(self.rule, h) else "plain_sgd"

    def speculates(self, e: Entry, h: Hyper) -> bool:
        """Settling takes p back out of p', which a 16-bit p has not the digits for; a projected buffer it cannot undo."""
        return e.projected and h.speculate and not (h.project_momentum and not h.nesterov) and e.p.element_size() >= 4

    def part(self, keys: list[Any]) -> None:
        """Splits the cohorts whose tensors have different scalars, which `keys` tells apart. They are never joined again, so
        that plans are made only now and then."""
        for e, key in zip(self.entries, keys, strict=True):
            e.cohort = e.cohort if key is None and e.cohort is not None else (e.cohort, key)
        numbers: dict[Any, int] = {}
        for e in self.entries:
            e.cohort = numbers.setdefault(e.cohort, len(numbers))

    def shapes(self) -> list[Any]:
        from .triton_kernels.plan import Kind, Shape

        hypers = self.hypers
        return [
            Shape(
                Kind(e.dtype, self.family(hypers[e.group])),
                e.rows,
                e.length,
                e.projected,
                self.speculates(e, hypers[e.group]),
                e.aligned if e.operands else False,
                e.cohort,
            )
            for e in self.entries
        ]

    def keys(self) -> list[Any]:
        """What the scalars of each tensor that is stepped depend on, beside its group's hyper-parameters."""
        counted = {
            i: e.step for i, e in enumerate(self.entries) if e.operands and e.step is not None and not self.live(e)
        }
        counts = dict(zip(counted, torch.stack([*counted.values()]).tolist() if counted else (), strict=True))
        return [
            None
            if not e.operands
            else ("live", i)
            if self.live(e)
            else (e.group, counts.get(i, 0.0) + 1, e.fresh, e.negative)
            for i, e in enumerate(self.entries)
        ]

    def live(self, e: Entry) -> Live | None:
        return self.hypers[e.group].live

    def parted(self, keys: list[Any]) -> bool:
        """Whether two tensors of one cohort have different scalars."""
        known: dict[int, Any] = {}
        return any(
            [
                key is not None and known.setdefault(e.cohort, key) != key
                for e, key in zip(self.entries, keys, strict=True)
            ]
        )

    # ------------------------------------------------------------------ tables

    def send(self, rows: Any, dtype: torch.dtype, width: int) -> Tensor:
        """To the device, without waiting for it."""
        if not self.on_gpu:
            return torch.tensor(rows, dtype=dtype).reshape(-1, width)
        host = torch.tensor(rows, dtype=dtype, pin_memory=True).reshape(-1, width)
        return host.to(self.device, non_blocking=True)

    def describe(self) -> list[list[int]]:
        """The table of tensors."""
        plan, table = self.tables.plan, []
        for i, e in enumerate(self.entries):
            if not e.operands:
                table.append([0] * 16)
                continue
            h = self.hypers[e.group]
            p, g, m, v = e.addresses()
            step = e.step.data_ptr() if e.step is not None and h.live is not None else 0
            counter = e.counter.data_ptr() if e.counter is not None else 0
            speculates = self.speculates(e, h)
            table.append(
                [
                    *(p, g, m, v, step, counter, e.negative, e.fresh),
                    *(e.cohort, e.group, e.rows, e.length, plan.pieces[i], plan.first_entry[i], speculates, 0),
                ]
            )
        return table

    def make_tables(self) -> None:
        """Makes the plan and its tables, if anything but addresses and numbers has changed."""
        from .triton_kernels.launch import Tables
        from .triton_kernels.plan import COURSE, REPORT, TENSOR, VERDICT, plan_of

        shapes = self.shapes()
        if shapes == self.structure:
            return
        if self.capturing():
            raise RuntimeError(CAPTURING)
        plan = plan_of(shapes, interpreted())
        projected = [i for i, s in enumerate(shapes) if s.projected]
        integers = torch.int64

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=self.device)

        self.tables = Tables(
            plan=plan,
            entries=self.send(plan.entries.flatten().tolist(), integers, 1),
            programs=self.send(plan.programs.tolist(), integers, plan.programs.size(1)),
            measured=self.send([i for i in projected if not shapes[i].speculates], integers, 1),
            gated=self.send(projected, integers, 1),
            live_tensors=self.send([i for i, e in enumerate(self.entries) if self.live(e)], integers, 1),
            tensors=empty(0, len(TENSOR)),
            courses=empty(1 + max(e.cohort for e in self.entries), len(COURSE)),
            live=empty(0),
            fixed=empty(0),
            count=plan.entries.size(1),
            reports=empty(len(REPORT), plan.entries.size(1)),
            verdicts=empty(len(shapes), len(VERDICT)),
        )
        self.kinds = [s.kind for s in shapes]
        self.structure, self.live_key, self.changed = shapes, None, True

    def send_tensors(self) -> None:
        """The table of tensors, if any address has changed; one of its own for every graph that is captured."""
        if not self.capturing():
            if self.changed:
                self.tables.tensors = self.send(self.describe(), torch.int64, 16)
            if self.on_gpu and self.spare is None:
                self.spare = torch.empty((len(self.entries), 16), dtype=torch.int64, pin_memory=True)
            return
        if self.spare is None:
            raise RuntimeError(CAPTURING)
        host, self.spare = self.spare, None
        host.copy_(torch.tensor(self.describe()))
        self.tables.tensors = host.to(self.device, non_blocking=True)
        # A replay copies from this memory again, and reads every table.
        self.kept.append((host, vars(self.tables).copy()))

    def send_courses(self, keys: list[Any]) -> None:
        """The scalars of every cohort whose group is not capturable."""
        from .triton_kernels.launch import course_of

        known: dict[int, list[float]] = {}
        for e, key in zip(self.entries, keys, strict=True):
            if key is None or e.cohort in known or self.live(e):
                continue
            if self.capturing():
                raise RuntimeError(
                    f"onepass: the stream is being captured into a CUDA graph, but param group {self.indices[e.group]} has "
                    "capturable=False: the step count and lr of this step would be replayed for ever; use capturable=True"
                )
            _, count, fresh, negated = key
            known[e.cohort] = course_of(self.hypers[e.group], self.rule.family == "sgd", count, fresh, negated)
        if known:
            cohorts, width = self.tables.courses.shape
            rows = [known.get(cohort, [0.0] * width) for cohort in range(cohorts)]
            self.tables.courses = self.send(rows, torch.float64, width)

    def send_live(self) -> None:
        """Where capturable groups have their hyper-parameters, if that has changed."""
        from .triton_kernels.plan import FIXED, LIVE

        lives = [h.live for h in self.hypers]
        if not any(lives):
            return
        given = [[getattr(live, name) if live else 0.0 for name in LIVE] for live in lives]
        key = [self.hypers, [x.data_ptr() if isinstance(x, Tensor) else x for row in given for x in row]]
        if key == self.live_key:
            return
        if self.capturing():
            raise RuntimeError(CAPTURING)
        numbers = self.send(
            [[0.0 if isinstance(x, Tensor) else x for x in row] for row in given], torch.float64, len(LIVE)
        )
        addresses = [
            [(x.data_ptr(), x.dtype == torch.float64) if isinstance(x, Tensor) else (numbers[i, j].data_ptr(), True)]
            for i, row in enumerate(given)
            for j, x in enumerate(row)
        ]
        self.numbers = numbers
        self.tables.live = self.send(addresses, torch.int64, 2 * len(LIVE))
        self.tables.fixed = self.send([self.fixed(h) for h in self.hypers], torch.float64, len(FIXED))
        self.live_key = key

    def fixed(self, h: Hyper) -> list[float]:
        """FIXED's fields: what of a capturable group the host knows for good."""
        live = h.live
        return [
            *(h.grad_scale, h.dampening, float(h.nesterov), h.eps, h.delta, h.wd_ratio, float(h.proximal)),
            *(float(h.project_momentum and not h.nesterov), float(self.rule.family == "sgd")),
            *(float(live is not None and live.decay == decay) for decay in ("l2", "metric")),
            float(live is not None and live.decouple_lr),
            float(live is not None and live.over_one_minus_momentum),
        ]

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def run(self, hypers: list[Hyper]) -> None:
        active = [e for e in self.entries if e.operands]
        keys = self.keys()
        parted = self.structure is None or self.parted(keys)
        if parted:
            self.part(keys)
        if parted or self.changed or self.hypers != self.planned:
            self.make_tables()
            self.planned = self.hypers
        for e in active:
            e.gather()
        self.send_courses(keys)
        self.send_live()
        self.send_tensors()
        with self.on_device():
            self.launch()
        for e in active:
            e.scatter()
        counted = [e.step for e in active if e.step is not None and not self.live(e)]
        if counted:
            torch._foreach_add_(counted, 1.0)
        for e in active:
            if e.fresh:
                e.fresh, e.facts = False, []  # the table is to be sent again
        self.told = [(e.p, i) for i, e in enumerate(self.entries) if e.operands and e.projected]
        # autograd refuses a backward pass through weights that were written to: it knows by their version.
        increment_version([e.p for e in active])

    def launch(self) -> None:
        from .triton_kernels.launch import launch_all

        if self.on_gpu and torch.cuda.current_stream(self.device) != self.stream:
            self.stream = torch.cuda.current_stream(self.device)
            for table in vars(self.tables).values():  # torch must not give them to others before this stream is done
                if isinstance(table, Tensor):
                    table.record_stream(self.stream)
        stepped = [(kind, e) for kind, e in zip(self.kinds, self.entries, strict=True) if e.operands and e.p.numel()]
        active = {kind for kind, _ in stepped}
        gated = {kind for kind, e in stepped if e.projected}
        measured = {kind for kind, e in stepped if e.projected and not self.speculates(e, self.hypers[e.group])}
        projects = any(h.project_momentum and not h.nesterov for h in self.hypers)
        self.launches = launch_all(self.tables, active, gated, measured, projects)

    def on_device(self) -> AbstractContextManager[Any]:
        """Launches go to the current device."""
        here = not self.on_gpu or torch.cuda.current_device() == self.device.index
        return nullcontext() if here else torch.cuda.device(self.device)

    def verdicts(self) -> list[Seen]:
        from .triton_kernels.plan import VERDICT

        if not self.told:
            return []
        params, rows = zip(*self.told, strict=True)
        with self.on_device():
            v = dict(zip(VERDICT, rows_of(self.tables.verdicts, rows).unbind(1), strict=True))
            return [Seen(list(params), v["gate"].int(), v["cosine"], v["pp"].sqrt(), v["gg"].sqrt(), v["settled"] != 0)]
