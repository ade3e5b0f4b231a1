"""The Triton backend's tables on the device: plan, addresses and scalars, each sent when it has changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .hyper import Hyper, Live, Rule, has_buffer
from .triton_entry import Entry

CAPTURING = (
    "this step has to make state or a plan, which must not happen while the stream is captured into a CUDA graph; take a "
    "step before the capture, and change no parameter, state or group in between"
)
# Captures between two ordinary steps. Each takes pinned memory of its own, 128 bytes for a tensor, which cannot be had
# during a capture.
SPARES = 8


def capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class DeviceTables:
    """What the kernels read of some parameters of one device. Nothing waits for the device.

    captured: takes every tensor that a captured graph points to.
    """

    def __init__(
        self, rule: Rule, indices: list[int], entries: list[Entry], device: torch.device, captured: list[Tensor]
    ):
        self.rule, self.indices, self.entries = rule, indices, entries
        self.device, self.on_gpu = device, device.type == "cuda"
        self.captured = captured
        self.sent: Any = None  # what the last step that was not captured was launched with
        self.structure: Any = None
        self.stale = True  # whether the table of tensors is to be sent
        self.spares: list[Tensor] = []
        self.hypers: list[Hyper] = []
        self.planned: list[Hyper] = []  # those that the plan was made under
        self.live_key: Any = None
        self.numbers: Tensor | None = None  # live's hyper-parameters that are not tensors
        # Of every tensor: no step on the device was taken yet.
        self.fresh = torch.ones(len(entries), dtype=torch.float64, device=device)

    def update(self, hypers: list[Hyper], changed: bool) -> Any:
        """The tables to launch a step with. changed: whether any tensor is not as it was at the last step."""
        self.hypers = hypers
        keys = self.keys()
        parted = self.structure is None or self.parted(keys)
        if parted:
            self.part(keys)
        self.stale |= changed or parted
        if self.stale or hypers != self.planned:
            self.make_tables()
            self.planned = hypers
        self.send_courses(keys)
        self.send_live()
        if capturing(self.device):
            return self.tables_of_a_graph()
        if self.stale:
            self.sent.tensors = self.send(self.describe(), torch.int64, 16)
            self.stale = False
        self.make_spares()
        return self.sent

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
        host = torch.as_tensor(rows, dtype=dtype, device="cpu").reshape(-1, width)
        return self.to_device(host.pin_memory() if self.on_gpu else host)

    def to_device(self, host: Tensor) -> Tensor:
        return host.to(self.device, non_blocking=True)

    def make_tables(self) -> None:
        """Makes the plan and its tables, if anything but addresses and numbers has changed."""
        from .triton_kernels.launch import Tables
        from .triton_kernels.plan import COURSE, REPORT, TENSOR, VERDICT, plan_of

        shapes = self.shapes()
        if shapes == self.structure:
            return
        if capturing(self.device):
            raise RuntimeError(CAPTURING)
        with torch.device("cpu"):  # whatever the default device is
            plan = plan_of(shapes, interpreted=not self.on_gpu)
        projected = [i for i, s in enumerate(shapes) if s.projected]
        integers = torch.int64

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=self.device)

        self.sent = Tables(
            plan=plan,
            entries=self.send(plan.entries, integers, 1),
            programs=self.send(plan.programs, integers, plan.programs.size(1)),
            measured=self.send([i for i in projected if not shapes[i].speculates], integers, 1),
            gated=self.send(projected, integers, 1),
            live_tensors=self.send([i for i, e in enumerate(self.entries) if self.live(e)], integers, 1),
            tensors=empty(0, len(TENSOR)),
            courses=empty(1 + max(e.cohort for e in self.entries), len(COURSE)),
            live=empty(0),
            fixed=empty(0),
            count=plan.entries.size(1),
            reports=empty(len(REPORT), plan.entries.size(1)),
            # Those of the last step, which the coming one may not replace: it may be skipped.
            verdicts=empty(len(shapes), len(VERDICT)) if self.sent is None else self.sent.verdicts,
            fresh=self.fresh,
            square_sum=empty(1),
            no_scaling=self.to_device(torch.tensor([1.0, 0.0], dtype=torch.float64, device="cpu")),
        )
        self.kinds = [s.kind for s in shapes]
        self.structure, self.live_key, self.stale = shapes, None, True

    def describe(self) -> list[list[int]]:
        """The table of tensors."""
        plan, table = self.sent.plan, []
        for i, e in enumerate(self.entries):
            if not e.operands:
                table.append([0] * 16)
                continue
            h = self.hypers[e.group]
            p, g, m, v = e.addresses()
            g = g or 1  # a tensor without elements is stepped too: it counts
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

    def send_courses(self, keys: list[Any]) -> None:
        """The scalars of every cohort whose steps the host counts."""
        from .triton_kernels.launch import course_of

        known: dict[int, list[float]] = {}
        for e, key in zip(self.entries, keys, strict=True):
            live = self.live(e)
            if key is not None and capturing(self.device) and not (live and live.capturable):
                raise RuntimeError(
                    f"onepass: the stream is being captured into a CUDA graph, but param group {self.indices[e.group]} has "
                    "capturable=False: the step count and lr of this step would be replayed for ever; use capturable=True"
                )
            if key is None or e.cohort in known or live:
                continue
            _, count, fresh, negated = key
            known[e.cohort] = course_of(self.hypers[e.group], self.rule.family == "sgd", count, fresh, negated)
        if known:
            cohorts, width = self.sent.courses.shape
            rows = [known.get(cohort, [0.0] * width) for cohort in range(cohorts)]
            self.sent.courses = self.send(rows, torch.float64, width)

    def send_live(self) -> None:
        """Where groups whose steps the device counts have their hyper-parameters, if that has changed."""
        from .triton_kernels.plan import FIXED, LIVE

        lives = [h.live for h in self.hypers]
        if not any(lives):
            return
        given = [[getattr(live, name) if live else 0.0 for name in LIVE] for live in lives]
        key = [self.hypers, [x.data_ptr() if isinstance(x, Tensor) else x for row in given for x in row]]
        if key == self.live_key:
            return
        if capturing(self.device):
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
        self.sent.live = self.send(addresses, torch.int64, 2 * len(LIVE))
        self.sent.fixed = self.send([self.fixed(h) for h in self.hypers], torch.float64, len(FIXED))
        self.live_key = key

    def fixed(self, h: Hyper) -> list[float]:
        """FIXED's fields: what of such a group the host knows for good."""
        live = h.live
        return [
            *(h.grad_scale, h.dampening, float(h.nesterov), h.eps, h.delta, h.wd_ratio, float(h.proximal)),
            *(float(h.project_momentum and not h.nesterov), float(self.rule.family == "sgd")),
            *(float(live is not None and live.decay == decay) for decay in ("l2", "metric")),
            float(live is not None and live.decouple_lr),
            float(live is not None and live.over_one_minus_momentum),
        ]

    # ------------------------------------------------------------------ graphs

    def make_spares(self) -> None:
        """For the captures to come."""
        missing = SPARES - len(self.spares)
        if missing and any(h.live for h in self.hypers):
            shape = (missing, len(self.entries), 16)
            self.spares += torch.empty(shape, dtype=torch.int64, device="cpu", pin_memory=self.on_gpu).unbind()

    def tables_of_a_graph(self) -> Any:
        """With a table of tensors that a replay sends again, from the same memory, and an ordinary step does not read."""
        if not self.spares:
            raise RuntimeError(CAPTURING)
        host = self.spares.pop()
        host.copy_(torch.tensor(self.describe(), device="cpu"))
        tables = replace(self.sent, tensors=self.to_device(host))
        buffers = [buffer for e in self.entries for buffer in e.buffers.values()]
        self.keep([host, *buffers, *[t for t in (self.numbers, *vars(tables).values()) if isinstance(t, Tensor)]])
        return tables

    def keep(self, tensors: list[Tensor]) -> None:
        """For as long as there is the optimizer, whatever becomes of its runner."""
        known = set(map(id, self.captured))
        self.captured += [t for t in tensors if id(t) not in known]
