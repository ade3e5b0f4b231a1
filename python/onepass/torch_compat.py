"""Every private name of torch that onepass uses, each with its reason. Checked with torch 2.13.0.

Also what torch reads of an optimizer under private names: `TorchOptimizer`.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

# Tensors without memory, which tell tools what a program would make, and the mode in which all new tensors are such.
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch.autograd import profiler

# The hooks of all optimizers; there is no public way to ask whether there are any.
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

# Whether a tensor is a subclass that wraps others (DTensor, quantized tensors), whose memory is not its own.
from torch.utils._python_dispatch import is_traceable_wrapper_subclass as is_traceable_wrapper_subclass

# Applies a function to the tensors in nested containers; torch.utils has no public one.
from torch.utils._pytree import tree_map_only as tree_map_only
from typing_extensions import TypeIs

P = ParamSpec("P")
R = TypeVar("R")


# Keeps torch.compile from tracing a method. `torch.compiler.disable` would do, but takes longer at every call.
disable_dynamo: Callable[[Callable[P, R]], Callable[P, R]] = torch._disable_dynamo  # type: ignore[attr-defined]


# Functions of torch's stable C interface that say what a tensor is. The last is C++, since that interface does not tell of
# the sign. They take a handle, which is a pointer to an at::Tensor.
TENSOR_READS = {
    "data_ptr": "aoti_torch_get_data_ptr",
    "dim": "aoti_torch_get_dim",
    "sizes": "aoti_torch_get_sizes",
    "strides": "aoti_torch_get_strides",
    "dtype": "aoti_torch_get_dtype",
    "device_type": "aoti_torch_get_device_type",
    "device_index": "aoti_torch_get_device_index",
    "is_neg": "_ZN2at6native6is_negERKNS_6TensorE",
}


def torch_library() -> ctypes.CDLL:
    """What this process has loaded of torch, in which C functions are found by name."""
    return ctypes.CDLL(torch._C.__file__)


@contextmanager
def handle_of(t: Tensor) -> Iterator[int]:
    """A handle of a tensor."""
    capsule = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(t)
    get = ctypes.pythonapi["PyCapsule_GetPointer"]  # not the attribute, whose types others may set
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    handle = get(capsule, None)
    try:
        yield handle
    finally:
        torch_library().aoti_torch_delete_tensor_object(ctypes.c_void_p(handle))


def has_exchange_table() -> bool:
    """Whether torch has DLPack's C exchange table, through which the compiled module reads tensors: since torch 2.10."""
    return hasattr(Tensor, "__dlpack_c_exchange_api__")


def is_faking() -> bool:
    """Whether torch only pretends to compute at present. Nearly always there is no mode at all, which is told faster."""
    return bool(torch._C._len_torch_dispatch_stack()) and active_fake_mode() is not None


def version_of(t: Tensor) -> int:
    """The number of writes to a tensor, by which autograd detects in-place changes; 0 for one of inference mode."""
    try:
        return t._version + (t._local_tensor._version if is_dtensor(t) else 0)
    except RuntimeError:
        return 0


def base_of(t: Tensor) -> Tensor | None:
    """The tensor that `t` is a view of."""
    return t._base


class DTensorLike(Tensor):
    """What is used of torch.distributed.tensor.DTensor, for annotations: importing that takes a while, and most have none."""

    device_mesh: Any
    placements: tuple[Any, ...]
    _spec: Any
    _local_tensor: Tensor

    def redistribute(self, *args: Any, **kwargs: Any) -> DTensorLike:
        raise NotImplementedError

    def full_tensor(self) -> Tensor:
        raise NotImplementedError


def is_dtensor(t: Any) -> TypeIs[DTensorLike]:
    """Whether a tensor is spread over a device mesh. Without an import: where none was made, there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and type(t) is module.DTensor


def local_of(t: Tensor) -> Tensor:
    """What a DTensor holds on this rank, with its memory; any other tensor itself. `to_local()` would make a view, and takes ten
    times as long."""
    return t._local_tensor if is_dtensor(t) else t


NOTHING = nullcontext()


def without_torch_function(some: bool) -> AbstractContextManager[Any]:
    """A context in which torch finds the `.grad` of a DTensor in half the time, as it looks for no `__torch_function__`. DTensor has
    that disabled anyway.

    some: whether there are DTensors; without, the context does nothing.
    """
    return torch._C.DisableTorchFunctionSubclass() if some else NOTHING


def is_under_way(t: DTensorLike) -> bool:
    """Whether what a DTensor holds may still be received (AsyncCollectiveTensor)."""
    return type(t._local_tensor) is not Tensor


def have_one_spec(t: DTensorLike, other: DTensorLike) -> bool:
    """Whether two DTensors are described by one object, as gradients under FSDP2 and their parameters are."""
    return t._spec is other._spec


def like_local(local: Tensor, t: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """A DTensor with this local tensor, placed as the DTensor `t`; `local` itself if t is none.

    shape: of the whole, (rows, numbers of a row), where these are numbers of the rows of t. A t of one dimension is one row.
    """
    if not is_dtensor(t):
        return local
    from torch.distributed.tensor import DTensor, Shard

    size, stride, placements = t.shape, t.stride(), t.placements
    if shape is not None:
        size = torch.Size(shape)
        stride = (size[1], 1)
        if t.dim() == 1:
            placements = tuple(Shard(1) if placement.is_shard() else placement for placement in placements)
    return DTensor.from_local(local, t.device_mesh, placements, run_check=False, shape=size, stride=stride)


def waited_for(t: DTensorLike) -> Tensor:
    """The same DTensor, of one whose collective may be under way."""
    return like_local(t._local_tensor.wait(), t)  # type: ignore[attr-defined]


def all_gather(every: Tensor, own: Tensor, group: Any) -> None:
    """Its name is new in torch 2.13, which warns of the old one."""
    gather = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor
    gather(every, own, group=group)


def is_fsdp(p: Tensor) -> bool:
    """Whether FSDP1 has flattened the parameter: its own mark, which the original parameters have (use_orig_params)."""
    return bool(getattr(p, "_fsdp_flattened", False))


def is_flat_parameter(p: Tensor) -> bool:
    """Whether it is the flat parameter of an FSDP1 unit."""
    return type(p).__name__ == "FlatParameter"


def hooked(func: Callable[P, R]) -> Callable[P, R]:
    """A step with its hooks and its name in profiles, and never traced by torch.compile.

    torch's own wrapper takes as long as the rest of a small step, so it is called only where it has something to do.
    Traced, a step would be dozens of graphs, guarded by the values of hyper-parameters.
    """
    with_hooks = torch.optim.Optimizer.profile_hook_step(func)

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return (with_hooks if _has_listeners(cast(torch.optim.Optimizer, args[0])) else func)(*args, **kwargs)

    reason = "onepass steps in compiled code of its own; call step outside of a region compiled with fullgraph=True"
    untraced: Callable[P, R] = torch.compiler.disable(wrapper, reason=reason)  # type: ignore[no-untyped-call]
    return untraced


def _has_listeners(opt: torch.optim.Optimizer) -> bool:
    return bool(
        opt._optimizer_step_pre_hooks
        or opt._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or profiler._is_profiler_enabled
    )


class TorchOptimizer(torch.optim.Optimizer):
    """torch.optim.Optimizer with the private attributes that torch reads."""

    profile_hook_step = staticmethod(hooked)  # torch's base class applies it to `step` of every subclass

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Read by torch.amp.GradScaler, which then leaves the gradients as they are, and sets `grad_scale` and `found_inf`
        for the step. Lightning reads it too, and would refuse to clip, although it only need call `unscale_` first: so it
        is True for the scaler alone."""
        caller: Any = sys._getframe(1).f_globals.get("__name__")
        return bool(caller == torch.amp.GradScaler.__module__)
