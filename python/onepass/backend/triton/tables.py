"""The Triton backend's tables on the device: the plan and addresses, uploaded when they have changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...dtypes import PARAM_DTYPES
from ...hyperparams import DeviceHyper, Hyper, predicts, rule_of
from ...spec import OptimizerSpec
from . import upload
from .bound_param import BoundParam
from .graph_tables import GraphTables
from .scalars import ScalarsUploader

# The fields of TENSOR in triton_kernels/plan.py, which is imported when the backend is used, and the number of one of them.
TENSOR_WIDTH, GRADIENT = 21, 1


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
        self.spec, self.bound = spec, bound
        self.device, self.on_gpu = device, device.type == "cuda"
        self.exchanges = exchanges
        self.scalars = ScalarsUploader(spec, indices, bound, device)
        self.graphs = GraphTables(device, graph_tensors)
        self.sent: Any = None  # the tables of the last step that was not captured
        self.structure: Any = None
        self.stale = True  # whether the table of tensors must be made and sent
        self.moved = False  # whether it must be sent
        self.gradients: Tensor | None = None  # their addresses, if they have moved since they were read one by one
        self.table = torch.zeros(0)  # of tensors, on the host
        self.hypers: list[Hyper] = []
        self.planned: Any = None  # what the plan depends on of them
        # Of every tensor: 1 until its first step that the device counts.
        self.first_steps = torch.ones(len(bound), dtype=torch.float64, device=device)

    def update(self, hypers: list[Hyper], changed: bool) -> Any:
        """The tables to launch a step with. changed: whether the tensors have been read one by one since the last."""
        self.hypers = self.scalars.hypers = hypers
        planned = [
            (rule_of(self.spec, h), *(predicts(h, dtype) for dtype in PARAM_DTYPES), h.device_hyper is None)
            for h in hypers
        ]
        self.stale |= changed or planned != self.planned
        if changed or self.structure is None or not self.scalars.read_counts():
            self.look()
        if self.stale:
            self.make_tables()
            self.planned = planned
            self.table = torch.tensor(self.describe(), dtype=torch.int64, device="cpu")
        if self.gradients is not None and (self.stale or self.moved):
            self.table[self.table[:, GRADIENT] != 0, GRADIENT] = self.gradients.clamp(min=1)
        self.scalars.send_scalars(self.sent)
        self.scalars.send_device_hypers(self.sent)
        if upload.capturing(self.device):
            buffers = [buffer for e in self.bound for buffer in e.buffers.values()]
            numbers = [t for t in (self.scalars.numbers,) if t is not None]
            self.moved |= self.stale
            self.stale = False
            return self.graphs.tables(self.sent, self.table, [*buffers, *numbers])
        if self.stale or self.moved:
            self.sent.tensors = upload.send(self.table.clone(), torch.int64, TENSOR_WIDTH, self.device)
            self.stale = self.moved = False
        if any(h.device_hyper for h in hypers):
            self.graphs.reserve(len(self.bound), TENSOR_WIDTH)
        return self.sent

    def look(self) -> None:
        """Looks at every tensor: which share their scalars."""
        keys = self.scalars.keys()
        if self.structure is None or self.scalars.has_split(keys):
            self.scalars.split(keys)
            self.stale = True
        self.scalars.look()
        self.scalars.read_counts()

    def move(self, addresses: Tensor) -> bool:
        """Takes new addresses of all gradients, none of which is copied; False if the plan may have to be another."""
        old = self.gradients
        if old is None:
            old = torch.tensor([e.keys[1][0] for e in self.bound if e.operands], dtype=torch.int64, device="cpu")
        if bool((((old == 0) != (addresses == 0)) | ((old ^ addresses) % 16 != 0)).any()):
            return False
        self.gradients, self.moved = addresses, True
        return True

    def device_hyper(self, e: BoundParam) -> DeviceHyper | None:
        return self.scalars.device_hyper(e)

    # ------------------------------------------------------------------ the plan

    def predicts(self, e: BoundParam) -> bool:
        return e.projected and predicts(self.hypers[e.group], e.p.dtype)

    def speculates(self, e: BoundParam) -> bool:
        """Whether it is updated before its gate is decided: under the predicted gate, or without a write of p."""
        return e.projected and (self.exchanges or self.predicts(e))

    def descs(self) -> list[Any]:
        from ...triton_kernels.plan import KernelKey, TensorDesc

        hypers = self.hypers
        return [
            TensorDesc(
                KernelKey(
                    e.dtype,
                    e.moment_dtype,
                    rule_of(self.spec, hypers[e.group]),
                    e.master,
                    e.stochastic,
                    e.other_gradient,
                ),
                e.rows,
                e.length,
                e.projected,
                self.speculates(e),
                e.aligned if e.operands else False,
                e.bucket,
                e.first,
                e.whole_length,
            )
            for e in self.bound
        ]

    # ------------------------------------------------------------------ tables

    def make_tables(self) -> None:
        """Makes the plan and its tables, if anything but addresses and numbers has changed."""
        from ...triton_kernels.launch import DeviceTables, device
        from ...triton_kernels.plan import ROW_STATS, SCALARS, STATS, TENSOR, VERDICT, plan_of

        descs = self.descs()
        if descs == self.structure:
            return
        upload.refuse_capture(self.device)
        with torch.device("cpu"):  # whatever the default device is
            plan = plan_of(descs, interpreted=not self.on_gpu)
        projected = [i for i, s in enumerate(descs) if s.projected]
        row_table = pad(plan.row_table, (0, 1))  # with a spare one
        split_pieces, is_piece = self.split_rows(plan, row_table.size(1) - 1)
        integers = torch.int64

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=self.device)

        lanes, nvidia = device()
        self.sent = DeviceTables(
            plan=plan,
            row_table=upload.send(row_table, integers, 1, self.device),
            unpredicted=upload.send([i for i in projected if not descs[i].speculates], integers, 1, self.device),
            gated=upload.send(projected, integers, 1, self.device),
            device_counted=upload.send(
                [i for i, e in enumerate(self.bound) if self.device_hyper(e)], integers, 1, self.device
            ),
            tensors=empty(0, len(TENSOR)),
            scalars_table=empty(1 + max(e.bucket for e in self.bound), len(SCALARS)),
            device_hypers=empty(0),
            fixed_hypers=empty(0),
            count=row_table.size(1),
            lanes=lanes,
            nvidia=nvidia,
            row_stats=empty(len(ROW_STATS), row_table.size(1)),
            stats=empty(len(descs) if self.exchanges else 0, len(STATS)),
            # The next step may be skipped, and does not replace those of the last step then.
            verdicts=empty(len(descs), len(VERDICT)) if self.sent is None else self.sent.verdicts,
            corrects=empty(1),
            first_steps=self.first_steps,
            square_sum=empty(1),
            split_pieces=split_pieces,
            is_piece=is_piece,
            no_scaling=upload.to_device(torch.tensor([1.0, 0.0], dtype=torch.float64, device="cpu"), self.device),
        )
        self.kernel_keys = [s.key for s in descs]
        self.structure, self.stale = descs, True
        self.scalars.forget()

    def split_rows(self, plan: Any, spare: int) -> tuple[Tensor, Tensor]:
        """Of every split row, the pieces that it has in the table of rows, filled up by a spare row; and which are no filling."""
        split = [(i, e) for i, e in enumerate(self.bound) if e.projected and e.split]
        most = max([plan.pieces[i] for i, _ in split], default=1)
        numbers = []
        for i, e in split:
            pieces = plan.pieces[i] if e.elements else 0
            for r in range(e.rows):
                first = plan.first_row[i] + r * pieces
                numbers.append([first + j if j < pieces else spare for j in range(most)])
        there = [[number != spare for number in row] for row in numbers]
        return upload.send(numbers, torch.int64, most, self.device), upload.send(there, torch.bool, most, self.device)

    def describe(self) -> list[list[int]]:
        """The table of tensors."""
        plan, table = self.sent.plan, []
        for i, e in enumerate(self.bound):
            h = self.hypers[e.group]
            p = g = m = v = r = m_scale = v_scale = step = counter = speculates = 0
            if e.operands:
                p, g, m, v, r = e.addresses()
                m_scale, v_scale = e.scale_addresses()
                g = g or 1  # a tensor without elements is stepped too: its steps count
                step = e.step.data_ptr() if e.step is not None and h.device_hyper is not None else 0
                counter = e.counter.data_ptr() if e.counter is not None else 0
                speculates = 0 if not self.speculates(e) else 1 if self.predicts(e) else 2
            table.append(
                [
                    *(p, g, m, v, step, counter, e.negative, e.first_step),
                    *(e.bucket, e.group, e.rows, e.length, plan.pieces[i], plan.first_row[i], speculates),
                    *(r, e.number, m_scale, v_scale, e.whole_length, e.split),
                ]
            )
        return table
