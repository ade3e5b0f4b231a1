"""The CUDA backend: one plan per device, whose memory torch gives. The kernels are in csrc/cuda/."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import native
from .hyper import Hyper
from .last_step import Seen, Taken, rows_of
from .native import PlanRunner
from .scaling import Scaling

if TYPE_CHECKING:
    from .optimizer import Optimizer


def unavailable() -> str | None:
    """None if the CUDA kernels can be used, else a sentence saying why not and what to do."""
    reason = native.unavailable()
    if reason is not None:
        return reason
    if not native._C.cuda_archs:
        return (
            "onepass was built without its CUDA kernels; install the CUDA toolkit, so that nvcc is found, and reinstall "
            "onepass."
        )
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch."
    if not torch.cuda.is_available():
        return "torch finds no CUDA device; see whether nvidia-smi lists one."
    return None


class CudaRunner(PlanRunner):
    """Launches the kernels on torch's current stream of the parameters' device. Nothing waits for the device."""

    name = "cuda"
    capturable = True
    plan: native._C.CudaPlan

    def __init__(self, optimizer: Optimizer, indices: list[int]):
        super().__init__(optimizer, indices)
        self.device = self.params[0][0].device
        self.stream: int | None = None
        self.taken: Taken | None = None  # what the last step has judged, if it may not have been taken
        self.captured = optimizer._runtime.captured
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
        oldest = min(int(arch) for arch in native._C.cuda_archs.split(","))
        if 10 * capability[0] + capability[1] < oldest:
            raise RuntimeError(
                f"{self.device} has compute capability {capability[0]}.{capability[1]}, onepass was built for "
                f"{native._C.cuda_archs}; rebuild it with ONEPASS_CUDA_ARCHS, or use backend='reference'"
            )

    def make_plan(self, **arguments: Any) -> None:
        with self.on_device():
            plan = self.plan_class()(**arguments, device=self.device.index or 0)
        # Of torch's memory, so that its allocator knows of it; on the stream that the steps are launched on.
        memory = torch.empty(max(plan.memory_bytes, 1), dtype=torch.uint8, device=self.device)
        image = bytearray(plan.image(memory.data_ptr()))
        if image:
            memory.copy_(torch.frombuffer(image, dtype=torch.uint8))
        self.plan, self.memory, self.stream = plan, memory, None

    def plan_class(self) -> type[native._C.CudaPlan]:
        return native._C.CudaPlan

    def square_sum(self) -> Tensor:
        with self.on_device():
            self.plan.square_sum(self.indices)
        self.keep()
        at = self.plan.square_sum_at
        return self.memory[at : at + 8].view(torch.float64)[0]

    def run(self, hypers: list[Hyper], scaling: Scaling) -> None:
        here = scaling.to(self.device)
        unsure = self.rule.projected and here.found_inf is not None
        if unsure and self.taken is None:
            self.taken = Taken(self.plan.judged())
        # autograd refuses a backward pass through weights that were written to: it knows by their version.
        with self.on_device():
            increment_version(self.plan.run(self.indices, here.clip, here.grad_scale, here.found_inf))
        if not unsure:
            self.taken = None
        elif self.taken is not None and here.found_inf is not None:
            self.taken.add(self.plan.judged(), here.found_inf)
        self.keep()

    def keep(self) -> None:
        """Keeps the plan's memory for as long as what was launched last may use it."""
        if (
            self.plan.stream != self.stream
        ):  # torch must not give the memory to others before this stream is done with it
            self.stream = self.plan.stream
            self.record_stream()
        if self.plan.captured and not any(memory is self.memory for memory in self.captured):
            self.captured.append(self.memory)

    def on_device(self) -> AbstractContextManager[Any]:
        """Launches go to the current device."""
        return nullcontext() if torch.cuda.current_device() == self.device.index else torch.cuda.device(self.device)

    def record_stream(self) -> None:
        self.memory.record_stream(torch.cuda.current_stream(self.device))

    def verdicts(self) -> list[Seen]:
        judged = self.plan.judged() if self.taken is None else self.taken.last()
        if not judged:
            return []
        tensors, params = zip(*judged, strict=True)
        verdicts = self.memory[self.plan.verdicts_at :][: (max(tensors) + 1) * VERDICT_BYTES].view(-1, VERDICT_BYTES)
        with self.on_device():
            self.record_stream()  # which need not be that of the steps
            return [seen_in(rows_of(verdicts, tensors), list(params))]


# DeviceVerdict of csrc/cuda/plan.cuh, which asserts that it lies so: four int32 and then doubles.
VERDICT_BYTES = 64
GATE, SETTLED = 0, 2
COSINE, PP, GG = 2, 5, 6


def seen_in(verdicts: Tensor, params: list[Tensor]) -> Seen:
    """The fields of verdicts that were copied out of a plan's memory, byte by byte a row to each."""
    integers, doubles = verdicts.view(torch.int32), verdicts.view(torch.float64)
    return Seen(
        params,
        integers[:, GATE],
        doubles[:, COSINE],
        doubles[:, PP].sqrt(),
        doubles[:, GG].sqrt(),
        integers[:, SETTLED] != 0,
    )
