"""The CUDA backend: one plan per device, whose memory torch gives. The kernels are in csrc/cuda/."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..hyperparams import Hyper
from ..last_step import GateStatistics
from ..scaling import NO_SCALING, Scaling
from ..spec import OptimizerSpec
from . import compiled
from .base import STATS, Groups
from .compiled import CompiledBackend
from .decided import DecidedParams, rows_of


def unavailable() -> str | None:
    """None if the CUDA kernels can be used, else a sentence saying why not and what to do."""
    reason = compiled.unavailable()
    if reason is not None:
        return reason
    if not compiled._C.cuda_archs:
        return (
            "onepass was built without its CUDA kernels, where there was no nvcc or ONEPASS_CUDA was 0; to have them, reinstall "
            "onepass with nvcc on the PATH."
        )
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch."
    if not torch.cuda.is_available():
        return "torch finds no CUDA device; see whether nvidia-smi lists one."
    return None


class CudaBackend(CompiledBackend):
    """Launches the kernels on torch's current stream of the parameters' device. Nothing waits for the device."""

    name = "cuda"
    capturable = True
    plan: compiled._C.CudaPlan

    def __init__(self, spec: OptimizerSpec, groups: Groups, indices: list[int], graph_tensors: list[Tensor]):
        super().__init__(spec, groups, indices, graph_tensors)
        self.device = self.params[0][0].device
        self.stream: int | None = None
        self.decided: DecidedParams | None = None  # by the last step, if it may have been skipped
        self.graph_tensors = graph_tensors
        self.scaling = NO_SCALING
        self.check_device()

    def check_device(self) -> None:
        with self.on_device():
            capturing = torch.cuda.is_current_stream_capturing()
        if capturing:
            raise RuntimeError(
                "this step has to make state or a plan, which must not happen while the stream is captured into a CUDA "
                "graph; take a step before the capture, and change no parameter, state or group in between"
            )
        capability = torch.cuda.get_device_capability(self.device)
        oldest = min(int(arch) for arch in compiled._C.cuda_archs.split(","))
        if 10 * capability[0] + capability[1] < oldest:
            raise RuntimeError(
                f"{self.device} has compute capability {capability[0]}.{capability[1]}, onepass was built for "
                f"{compiled._C.cuda_archs}; rebuild it with ONEPASS_CUDA_ARCHS, or use backend='reference'"
            )

    def make_plan(self, **arguments: Any) -> None:
        with self.on_device():
            plan = self.plan_class()(**arguments, device=self.device.index or 0)
        # Allocated by torch on the stream that the steps are launched on.
        memory = torch.empty(max(plan.memory_bytes, 1), dtype=torch.uint8, device=self.device)
        content = bytearray(plan.initial_bytes(memory.data_ptr()))
        if content:
            memory.copy_(torch.frombuffer(content, dtype=torch.uint8))
        self.plan, self.memory, self.stream = plan, memory, None
        self.split_coefficients = torch.tensor(plan.split_coefficients, dtype=torch.int64, device=self.device)

    def plan_class(self) -> type[compiled._C.CudaPlan]:
        return compiled._C.CudaPlan

    def square_sum(self) -> Tensor:
        with self.on_device():
            self.plan.square_sum(self.indices, total=True)
        self.keep()
        return self.doubles(self.plan.square_sum_at, 1)[0]

    def square_sums(self, members: Tensor) -> Tensor:
        with self.on_device():
            each = self.doubles(self.plan.square_sums_at, members.size(1))
            each.zero_()  # of tensors without a gradient too
            self.plan.square_sum(self.indices, total=False)
        self.keep()
        sums = torch.where(members, each, 0).sum(dim=1)
        each.zero_()
        return sums

    def doubles(self, at: int, count: int) -> Tensor:
        """Of the plan's memory."""
        return self.memory[at:][: 8 * count].view(torch.float64)

    def unstepped(self) -> list[Tensor]:
        candidates = self.plan.unstepped()
        if not candidates:
            return []
        with self.on_device():
            self.record_stream()  # it need not be the stream of the steps
            not_on_device = self.memory[self.plan.first_steps_at :][: candidates[-1][0] + 1].tolist()
        return [p for number, p in candidates if not_on_device[number]]

    def begin(self, hypers: list[Hyper], scaling: Scaling) -> bool:
        self.scaling = scaling.to(self.device)
        if self.unsure and self.decided is None:
            self.decided = DecidedParams(self.plan.decided())
        with self.on_device():
            self.plan.begin(self.indices, self.scaling.clip, self.scaling.grad_scale, self.scaling.found_inf)
        return True

    def gate_stats(self) -> None:
        with self.on_device():
            super().gate_stats()

    def update(self) -> None:
        with self.on_device():
            if self.exchanges:
                self.stats.zero_()  # of tensors without a gradient too
                self.row_sums.zero_()
            super().update()

    @property
    def stats(self) -> Tensor:
        count = sum(map(len, self.params))
        return self.doubles(self.plan.stats_at, len(STATS) * count).view(count, len(STATS))

    @property
    def row_sums(self) -> Tensor:
        return self.doubles(self.plan.row_sums_at, 4 * len(self.split_coefficients)).view(-1, 4)

    def complete_rows(self, sums: Tensor, c: Tensor) -> None:
        with self.on_device():
            self.memory[self.plan.coefficients_at :].view(torch.float64)[self.split_coefficients] = c

    def decide(self) -> None:
        with self.on_device():
            super().decide()

    def correct(self) -> None:
        with self.on_device():
            super().correct()
        if not self.unsure:
            self.decided = None
        elif self.decided is not None and self.scaling.found_inf is not None:
            self.decided.add(self.plan.decided(), self.scaling.found_inf)
        self.keep()

    @property
    def unsure(self) -> bool:
        """Whether only the device knows if gates are decided."""
        return self.spec.projected and self.scaling.found_inf is not None

    def keep(self) -> None:
        """Keeps the plan's memory for as long as launched kernels or a captured graph may use it."""
        if self.plan.stream != self.stream:  # torch must not reuse the memory before this stream is done with it
            self.stream = self.plan.stream
            self.record_stream()
        if self.plan.captured and not any(memory is self.memory for memory in self.graph_tensors):
            self.graph_tensors.append(self.memory)

    def on_device(self) -> AbstractContextManager[Any]:
        """Launches go to the current device."""
        return nullcontext() if torch.cuda.current_device() == self.device.index else torch.cuda.device(self.device)

    def record_stream(self) -> None:
        self.memory.record_stream(torch.cuda.current_stream(self.device))

    def verdicts(self) -> list[GateStatistics]:
        decided = self.plan.decided() if self.decided is None else self.decided.last()
        if not decided:
            return []
        tensors, params = zip(*decided, strict=True)
        verdicts = self.memory[self.plan.verdicts_at :][: (max(tensors) + 1) * VERDICT_BYTES].view(-1, VERDICT_BYTES)
        with self.on_device():
            self.record_stream()  # it need not be the stream of the steps
            return [gate_statistics_in(rows_of(verdicts, tensors), list(params))]


# The layout of Verdict in csrc/rules/verdict.h, which csrc/cuda/plan.cuh asserts: four int32 and then doubles.
VERDICT_BYTES = 64
GATE, CORRECTED = 0, 2
COSINE, PP, GG = 2, 5, 6


def gate_statistics_in(verdicts: Tensor, params: list[Tensor]) -> GateStatistics:
    """The fields of verdicts copied out of a plan's memory, a row of bytes each."""
    integers, doubles = verdicts.view(torch.int32), verdicts.view(torch.float64)
    return GateStatistics(
        params,
        integers[:, GATE],
        doubles[:, COSINE],
        doubles[:, PP].sqrt(),
        doubles[:, GG].sqrt(),
        integers[:, CORRECTED] != 0,
    )
