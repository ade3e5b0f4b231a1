"""The Triton backend's tables on the device: plan, addresses and scalars, each uploaded when it has changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...hyperparams import DeviceHyper, Hyper, predicts, rule_of
from ...spec import OptimizerSpec
from .bound_param import BoundParam

CAPTURING = (
    "this step has to make state or a plan, which must not happen while the stream is captured into a CUDA graph; take a "
    "step before the capture, and change no parameter, state or group in between"
)
# Captures between two ordinary steps. Each takes pinned memory of its own, 128 bytes for a tensor, which cannot be had
# during a capture.
SPARES = 8


def capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class TableUploader:
    """Keeps the device tables of some parameters of one device up to date. Nothing waits for the device.

    graph_tensors: takes every tensor that a captured graph points to.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        indices: list[int],
        bound: list[BoundParam],
        device: torch.device,
        graph_tensors: list[Tensor],
        exchanges: bool,
    ):
        self.spec, self.indices, self.bound = spec, indices, bound
        self.device, self.on_gpu = device, device.type == "cuda"
        self.graph_tensors, self.exchanges = graph_tensors, exchanges
        self.sent: Any = None  # the tables of the last step that was not captured
        self.structure: Any = None
        self.stale = True  # whether the table of tensors must be sent
        self.spares: list[Tensor] = []
        self.hypers: list[Hyper] = []
        self.planned: list[Hyper] = []  # with which the plan was made
        self.device_hypers_key: Any = None
        self.numbers: Tensor | None = None  # the device's copies of hyper-parameters that are not tensors
        # Of every tensor: 1 until its first step that the device counts.
        self.first_steps = torch.ones(len(bound), dtype=torch.float64, device=device)

    def update(self, hypers: list[Hyper], changed: bool) -> Any:
        """The tables to launch a step with. changed: whether any tensor differs from the last step."""
        self.hypers = hypers
        keys = self.scalars_keys()
        splits = self.structure is None or self.has_split(keys)
        if splits:
            self.split(keys)
        self.stale |= changed or splits
        if self.stale or hypers != self.planned:
            self.make_tables()
            self.planned = hypers
        self.send_scalars(keys)
        self.send_device_hypers()
        if capturing(self.device):
            return self.tables_of_a_graph()
        if self.stale:
            self.sent.tensors = self.send(self.describe(), torch.int64, 16)
            self.stale = False
        self.make_spares()
        return self.sent

    # ------------------------------------------------------------------ the plan

    def predicts(self, e: BoundParam) -> bool:
        return e.projected and predicts(self.hypers[e.group], e.p.element_size())

    def speculates(self, e: BoundParam) -> bool:
        """Whether it is updated before its gate is decided: under the predicted gate, or without a write of p."""
        return e.projected and (self.exchanges or self.predicts(e))

    def split(self, keys: list[Any]) -> None:
        """Splits the buckets whose tensors have different keys. They are never joined again, so that plans are made seldom."""
        for e, key in zip(self.bound, keys, strict=True):
            e.bucket = e.bucket if key is None and e.bucket is not None else (e.bucket, key)
        numbers: dict[Any, int] = {}
        for e in self.bound:
            e.bucket = numbers.setdefault(e.bucket, len(numbers))

    def descs(self) -> list[Any]:
        from ...triton_kernels.plan import KernelKey, TensorDesc

        hypers = self.hypers
        return [
            TensorDesc(
                KernelKey(e.dtype, rule_of(self.spec, hypers[e.group])),
                e.rows,
                e.length,
                e.projected,
                self.speculates(e),
                e.aligned if e.operands else False,
                e.bucket,
            )
            for e in self.bound
        ]

    def scalars_keys(self) -> list[Any]:
        """What the scalars of each active tensor depend on beside its group's hyper-parameters: equal keys, equal scalars."""
        counted = {
            i: e.step
            for i, e in enumerate(self.bound)
            if e.operands and e.step is not None and not self.device_hyper(e)
        }
        counts = dict(zip(counted, torch.stack([*counted.values()]).tolist() if counted else (), strict=True))
        return [
            None
            if not e.operands
            else ("on device", i)
            if self.device_hyper(e)
            else (e.group, counts.get(i, 0.0) + 1, e.first_step, e.negative)
            for i, e in enumerate(self.bound)
        ]

    def device_hyper(self, e: BoundParam) -> DeviceHyper | None:
        return self.hypers[e.group].device_hyper

    def has_split(self, keys: list[Any]) -> bool:
        """Whether two tensors of one bucket have different scalars."""
        known: dict[int, Any] = {}
        return any(
            [
                key is not None and known.setdefault(e.bucket, key) != key
                for e, key in zip(self.bound, keys, strict=True)
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
        from ...triton_kernels.launch import DeviceTables
        from ...triton_kernels.plan import ROW_STATS, SCALARS, STATS, TENSOR, VERDICT, plan_of

        descs = self.descs()
        if descs == self.structure:
            return
        if capturing(self.device):
            raise RuntimeError(CAPTURING)
        with torch.device("cpu"):  # whatever the default device is
            plan = plan_of(descs, interpreted=not self.on_gpu)
        projected = [i for i, s in enumerate(descs) if s.projected]
        integers = torch.int64

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=self.device)

        self.sent = DeviceTables(
            plan=plan,
            row_table=self.send(plan.row_table, integers, 1),
            programs=self.send(plan.programs, integers, plan.programs.size(1)),
            unpredicted=self.send([i for i in projected if not descs[i].speculates], integers, 1),
            gated=self.send(projected, integers, 1),
            device_counted=self.send([i for i, e in enumerate(self.bound) if self.device_hyper(e)], integers, 1),
            tensors=empty(0, len(TENSOR)),
            scalars_table=empty(1 + max(e.bucket for e in self.bound), len(SCALARS)),
            device_hypers=empty(0),
            fixed_hypers=empty(0),
            count=plan.row_table.size(1),
            row_stats=empty(len(ROW_STATS), plan.row_table.size(1)),
            stats=empty(len(descs) if self.exchanges else 0, len(STATS)),
            # The next step may be skipped, and does not replace those of the last step then.
            verdicts=empty(len(descs), len(VERDICT)) if self.sent is None else self.sent.verdicts,
            first_steps=self.first_steps,
            square_sum=empty(1),
            no_scaling=self.to_device(torch.tensor([1.0, 0.0], dtype=torch.float64, device="cpu")),
        )
        self.kernel_keys = [s.key for s in descs]
        self.structure, self.device_hypers_key, self.stale = descs, None, True

    def describe(self) -> list[list[int]]:
        """The table of tensors."""
        plan, table = self.sent.plan, []
        for i, e in enumerate(self.bound):
            if not e.operands:
                table.append([0] * 16)
                continue
            h = self.hypers[e.group]
            p, g, m, v = e.addresses()
            g = g or 1  # a tensor without elements is stepped too: its steps count
            step = e.step.data_ptr() if e.step is not None and h.device_hyper is not None else 0
            counter = e.counter.data_ptr() if e.counter is not None else 0
            speculates = 0 if not self.speculates(e) else 1 if self.predicts(e) else 2
            table.append(
                [
                    *(p, g, m, v, step, counter, e.negative, e.first_step),
                    *(e.bucket, e.group, e.rows, e.length, plan.pieces[i], plan.first_row[i], speculates, 0),
                ]
            )
        return table

    def send_scalars(self, keys: list[Any]) -> None:
        """Sends the scalars of every bucket whose steps the host counts."""
        from ...triton_kernels.launch import scalars_of

        known: dict[int, list[float]] = {}
        for e, key in zip(self.bound, keys, strict=True):
            on_device = self.device_hyper(e)
            if key is not None and capturing(self.device) and not (on_device and on_device.capturable):
                raise RuntimeError(
                    f"onepass: the stream is being captured into a CUDA graph, but param group {self.indices[e.group]} has "
                    "capturable=False: the step count and lr of this step would be replayed for ever; use capturable=True"
                )
            if key is None or e.bucket in known or on_device:
                continue
            _, count, first, negated = key
            known[e.bucket] = scalars_of(self.hypers[e.group], self.spec.rule, count, first, negated)
        if known:
            buckets, width = self.sent.scalars_table.shape
            rows = [known.get(bucket, [0.0] * width) for bucket in range(buckets)]
            self.sent.scalars_table = self.send(rows, torch.float64, width)

    def send_device_hypers(self) -> None:
        """Sends the addresses of the hyper-parameters of groups whose steps the device counts, if one has changed."""
        from ...triton_kernels.plan import DEVICE_HYPER, FIXED_HYPER

        given_hypers = [h.device_hyper for h in self.hypers]
        if not any(given_hypers):
            return
        given = [[getattr(group, name) if group else 0.0 for name in DEVICE_HYPER] for group in given_hypers]
        key = [self.hypers, [x.data_ptr() if isinstance(x, Tensor) else x for row in given for x in row]]
        if key == self.device_hypers_key:
            return
        if capturing(self.device):
            raise RuntimeError(CAPTURING)
        numbers = self.send(
            [[0.0 if isinstance(x, Tensor) else x for x in row] for row in given], torch.float64, len(DEVICE_HYPER)
        )
        addresses = [
            [(x.data_ptr(), x.dtype == torch.float64) if isinstance(x, Tensor) else (numbers[i, j].data_ptr(), True)]
            for i, row in enumerate(given)
            for j, x in enumerate(row)
        ]
        self.numbers = numbers
        self.sent.device_hypers = self.send(addresses, torch.int64, 2 * len(DEVICE_HYPER))
        self.sent.fixed_hypers = self.send([self.fixed_hyper(h) for h in self.hypers], torch.float64, len(FIXED_HYPER))
        self.device_hypers_key = key

    def fixed_hyper(self, h: Hyper) -> list[float]:
        """The fields of FIXED_HYPER: the values that are constant."""
        group = h.device_hyper
        return [
            *(h.grad_scale, h.dampening, float(h.nesterov), h.eps, h.delta, h.wd_ratio, float(h.proximal)),
            *(float(h.project_momentum and not h.nesterov), float(h.fixed_gate), float(self.spec.rule == "momentum")),
            *(float(group is not None and group.decay == decay) for decay in ("l2", "metric")),
            float(group is not None and group.decouple_lr),
            float(group is not None and group.over_one_minus_momentum),
        ]

    # ------------------------------------------------------------------ graphs

    def make_spares(self) -> None:
        """Reserves pinned memory for later captures."""
        missing = SPARES - len(self.spares)
        if missing and any(h.device_hyper for h in self.hypers):
            shape = (missing, len(self.bound), 16)
            self.spares += torch.empty(shape, dtype=torch.int64, device="cpu", pin_memory=self.on_gpu).unbind()

    def tables_of_a_graph(self) -> Any:
        """Tables for a capture: with a table of tensors of its own, which every replay sends again from the same memory."""
        if not self.spares:
            raise RuntimeError(CAPTURING)
        host = self.spares.pop()
        host.copy_(torch.tensor(self.describe(), device="cpu"))
        tables = replace(self.sent, tensors=self.to_device(host))
        buffers = [buffer for e in self.bound for buffer in e.buffers.values()]
        self.keep([host, *buffers, *[t for t in (self.numbers, *vars(tables).values()) if isinstance(t, Tensor)]])
        return tables

    def keep(self, tensors: list[Tensor]) -> None:
        """Keeps tensors alive as long as the optimizer."""
        known = set(map(id, self.graph_tensors))
        self.graph_tensors += [t for t in tensors if id(t) not in known]
