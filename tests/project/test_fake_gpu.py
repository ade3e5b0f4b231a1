"""The backends' Python code that runs only on a GPU, on a simulated one (fake_gpu.py): streams, pinned memory, captures, and
no synchronization with the device. The kernels of the Triton backend are interpreted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from onepass.triton_kernels import launch
from torch import Tensor

import onepass
from compare import assert_same_bits
from drive import gradient_at, parameters, parameters_of
from emulated_backend import backends, emulated
from fake_gpu import DEVICE, FakeGpu, OnGpu, Waits
from graphs_of_triton import CapturedStep
from onepass.backend import compiled
from onepass.backend.cuda import CudaBackend
from onepass.backend.triton import backend as triton
from records import RECORDS, Record, each_optimizer

SHAPES = [(6, 20), (13,)]


def on_host(x: Any) -> Any:
    return x.host if isinstance(x, OnGpu) else x


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """A simulated GPU: the interpreter gets the host memory of the tables, and captured launches do not run."""
    monkeypatch.setattr(triton, "interpreted", lambda: False)
    step_of, square_sum = launch.Step, launch.square_sum

    def hosted(tables: Any) -> Any:
        return replace(tables, **{name: on_host(table) for name, table in vars(tables).items()})

    def step(tables: Any, scaling: Any, *rest: Any, **named: Any) -> Any:
        if fake.capturing:
            return CapturedStep()
        return step_of(hosted(tables), tuple(map(on_host, scaling)), *rest, **named)

    monkeypatch.setattr(launch, "Step", step)
    monkeypatch.setattr(launch, "square_sum", lambda tables: square_sum(hosted(tables)))
    with FakeGpu()() as fake:
        yield fake


def pair(record: Record, **arguments: Any) -> tuple[Any, Any]:
    """Two equal optimizers, one on the simulated GPU and one in the plain interpreter."""
    own = {**record.typical, **arguments}
    there = record.make(
        [torch.nn.Parameter(OnGpu(p.detach().clone())) for p in parameters(shapes=SHAPES)], backend="triton", **own
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "interpreted", lambda: True)
        here = record.make(parameters(shapes=SHAPES), backend="triton", **own)
    return there, here


def step(opt: Any, time: int, clip: bool = False) -> None:
    there = parameters_of(opt)[0].device == DEVICE
    for p in parameters_of(opt):
        g = gradient_at(p.detach().host if there else p.detach(), time)
        p.grad = OnGpu(g) if there else g
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "interpreted", lambda: not there)
        if clip:
            opt.clip_grad_norm_(0.5)
        opt.step()


@each_optimizer
def test_steps_have_the_bits_of_the_interpreter(gpu: FakeGpu, record: Record) -> None:
    """A step does not synchronize with the device, which would raise."""
    there, here = pair(record)
    for time in range(3):
        step(there, time, clip=time == 2)
        step(here, time, clip=time == 2)
    for p, q in zip(parameters_of(there), parameters_of(here), strict=True):
        assert p.device == DEVICE
        assert_same_bits(p.detach().host, q.detach(), "parameter")
        for key, value in here.state[q].items():
            assert_same_bits(on_host(there.state[p][key]), value, key)
    seen = there.last_step()
    if record.projected:
        assert seen.gate.device == DEVICE
        with pytest.raises(Waits):
            repr(list(seen.values()))


def test_record_stream_of_tables(gpu: FakeGpu) -> None:
    """Tables, buffers of strided tensors and the host's hyper-parameters are recorded on the stream that uses them."""
    p = torch.nn.Parameter(OnGpu(torch.ones(8, 6).T))
    opt = onepass.AdamP([p], backend="triton", capturable=True)

    def stepped(stream: str) -> set[int]:
        gpu.stream, gpu.recorded = stream, []
        p.grad = OnGpu(torch.ones(8, 6).T)
        opt.step()
        assert all(on == stream for _, on in gpu.recorded)
        return {address for address, _ in gpu.recorded}

    stepped("stream 0")
    assert stepped("stream 0") == set()
    (bound,) = opt._execution.backends
    recorded = stepped("another")
    tables = [t for t in vars(bound.tables.sent).values() if isinstance(t, Tensor)]
    buffers = list(bound.bound[0].buffers.values())
    assert buffers and bound.tables.scalars.numbers is not None
    assert recorded >= {t.data_ptr() for t in (*tables, *buffers, bound.tables.scalars.numbers)}
    assert stepped("another") == set()


@each_optimizer
def test_capture_uses_only_capturable_operations(gpu: FakeGpu, record: Record) -> None:
    """A capture allocates no pinned memory, copies no pageable memory and does not synchronize."""
    opt, _ = pair(record, capturable=True)
    step(opt, 0)
    step(opt, 1)
    gpu.capturing = True
    step(opt, 2)
    assert opt._execution.backends[0].launches == ["captured"] and opt._execution.graph_tensors
    gpu.capturing = False
    step(opt, 3)


@pytest.mark.parametrize("capturable", [True, False])
def test_invalid_captures_are_refused(gpu: FakeGpu, capturable: bool) -> None:
    opt, _ = pair(RECORDS["AdamP"], capturable=capturable)
    if not capturable:
        step(opt, 0)
        step(opt, 1)
    gpu.capturing = True
    message = "take a step before the capture" if capturable else "has capturable=False"
    with pytest.raises(RuntimeError, match=message):
        step(opt, 2)


def test_fake_gpu_refuses_forbidden_operations(gpu: FakeGpu) -> None:
    there = OnGpu(torch.ones(3))
    for wait in (there.sum().item, there.tolist, there.cpu):
        with pytest.raises(Waits):
            wait()
    gpu.capturing = True
    with pytest.raises(AssertionError, match="pageable"):
        torch.ones(3).to(DEVICE, non_blocking=True)
    with pytest.raises(AssertionError, match="pinned"):
        torch.ones(3).pin_memory()


# ------------------------------------------------------------------ the CUDA backend


class _Cuda(CudaBackend):
    """The CUDA backend with the emulation's kernels."""

    def plan_class(self) -> Any:
        return emulated.CudaPlan


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Mocks torch.cuda as on a GPU; the tensors are on the CPU, for the emulation."""
    fake = FakeGpu()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: fake.stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: fake.capturing)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: fake.capability)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(Tensor, "record_stream", lambda t, stream: fake.recorded.append((t.data_ptr(), stream)))
    monkeypatch.setattr(compiled._C, "cuda_archs", "80,90")
    monkeypatch.setitem(backends._BACKENDS, "emulated", _Cuda)
    return fake


def test_record_stream_of_the_cuda_plan(cuda: FakeGpu) -> None:
    opt = onepass.AdamP(parameters(shapes=SHAPES), backend="emulated")
    step(opt, 0)
    memory = opt._execution.backends[0].memory
    assert cuda.recorded == [(memory.data_ptr(), "stream 0")]
    step(opt, 1)
    assert len(cuda.recorded) == 1
    assert opt.last_step().gate.numel() == 1
    assert len(cuda.recorded) == 2, "what is read for last_step may be read on another stream"


def test_cuda_refuses_a_device_that_is_too_old(cuda: FakeGpu) -> None:
    cuda.capability = (7, 5)
    opt = onepass.AdamW(parameters(shapes=SHAPES), backend="emulated")
    with pytest.raises(RuntimeError, match=r"compute capability 7.5, onepass was built for 80,90; rebuild it"):
        step(opt, 0)


def test_cuda_refuses_to_make_a_plan_in_a_capture(cuda: FakeGpu) -> None:
    cuda.capturing = True
    opt = onepass.AdamW(parameters(shapes=SHAPES), backend="emulated", capturable=True)
    with pytest.raises(RuntimeError, match="take a step before the capture"):
        step(opt, 0)
    assert not opt.state
