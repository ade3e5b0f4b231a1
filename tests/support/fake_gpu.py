"""A fake GPU: tensors that report cuda:0 but are in host memory, and mocks of the functions of torch.cuda that onepass calls.
The backends' own Python code runs as on a GPU; kernels do not run.

It raises where a GPU would raise or wait: when a value is read back, and, during a capture, when pinned memory is
allocated or pageable memory is copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten
# Without kernels, large operands need no numbers, and untouched memory costs nothing.
UNTOUCHED = 1 << 20


class Waits(AssertionError):
    """The host would wait for the device."""


class OnGpu(Tensor):
    """A tensor that reports to be on the GPU; its data is `host`."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> OnGpu:
        t: OnGpu = Tensor._make_subclass(
            cls, host, host.requires_grad, dispatch_device=True, device_for_backend_keys=DEVICE
        )
        t.host = host.detach()
        return t

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    # Methods that torch does not send through __torch_dispatch__ without CUDA.
    def __getitem__(self, index: Any) -> OnGpu:
        return OnGpu(self.host[index])

    def copy_(self, other: Tensor, non_blocking: bool = False) -> OnGpu:
        assert isinstance(other, OnGpu)
        self.host.copy_(other.host)
        return self

    def record_stream(self, stream: Any) -> None:
        assert gpu is not None
        gpu.recorded.append((self.data_ptr(), stream))

    def tolist(self) -> Any:
        raise Waits("tolist")


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.prim.device.default:
        return DEVICE
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = any(isinstance(x, OnGpu) for x in tensors)
    there = here if kwargs.get("device") is None else torch.device(kwargs["device"]).type == "cuda"
    if here and (func is aten._local_scalar_dense.default or not there):
        raise Waits(f"{func}")
    if func is aten._to_copy.default and there and not here:
        assert gpu is not None
        gpu.check_copy(tensors[0])
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if func is aten.zeros_like.default and args[0].numel() > UNTOUCHED:
        func = aten.empty_like.default
    args, kwargs = tree_map_only(OnGpu, lambda t: t.host, (args, kwargs))
    out = func(*args, **kwargs)
    return tree_map_only(Tensor, OnGpu, out) if there else out


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


class _Pinned(TorchFunctionMode):
    """Allocates ordinary memory instead of pinned memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        pinned = kwargs.pop("pin_memory", False)
        out = func(*args, **kwargs)
        if pinned:
            assert gpu is not None
            gpu.pin(out)
        return out


class FakeGpu:
    """capturing: the current stream is being captured. recorded: address and stream of every `record_stream`."""

    def __init__(self, capability: tuple[int, int] = (9, 0)):
        self.capability = capability
        self.capturing = False
        self.stream: Any = "stream 0"
        self.pinned: set[int] = set()  # first addresses of storages
        self.recorded: list[tuple[int, Any]] = []

    def pin(self, t: Tensor) -> Tensor:
        assert not self.capturing, "pinned memory cannot be made while a stream is captured"
        self.pinned.add(t.untyped_storage().data_ptr())
        return t

    def check_copy(self, host: Tensor) -> None:
        if self.capturing:
            assert host.untyped_storage().data_ptr() in self.pinned, "a captured copy is from pageable memory"

    @contextlib.contextmanager
    def __call__(self) -> Iterator[FakeGpu]:
        global gpu
        said = {
            "is_available": lambda: True,
            "current_device": lambda: 0,
            "current_stream": lambda device=None: self.stream,
            "is_current_stream_capturing": lambda: self.capturing,
            "get_device_capability": lambda device=None: self.capability,
            "_lazy_init": lambda: None,
        }
        with contextlib.ExitStack() as stack:
            for name, answer in said.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, answer))
            stack.enter_context(mock.patch.object(Tensor, "pin_memory", lambda t: self.pin(t.clone())))
            stack.enter_context(_Pinned())
            stack.enter_context(_Dispatch())
            gpu = self
            try:
                yield self
            finally:
                gpu = None


gpu: FakeGpu | None = None


def empty_on_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> OnGpu:
    """Uninitialized, so that it takes no memory for any size."""
    return OnGpu(torch.empty(shape, dtype=dtype))
