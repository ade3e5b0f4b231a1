"""Which backend steps which param group, and why a backend cannot be used."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..callers import callers_level
from ..spec import OptimizerSpec
from . import compiled, cuda
from .base import Backend, Groups
from .cpu import CpuBackend
from .cuda import CudaBackend
from .reference import ReferenceBackend
from .triton import backend as triton
from .triton.backend import TritonBackend

# Each is called with the spec, all param groups, the indices of its own, and the list of what captured graphs point to.
_BACKENDS: dict[str, Callable[[OptimizerSpec, Groups, list[int], list[Tensor]], Backend]] = {
    "cpu": CpuBackend,
    "cuda": CudaBackend,
    "triton": TritonBackend,
    "reference": ReferenceBackend,
}
BackendName = Literal["auto", "cpu", "cuda", "triton", "reference"]
NAMES: tuple[str, ...] = get_args(BackendName)
_warned: set[str] = set()


def backends() -> dict[str, str | None]:
    """Every backend's name with None if it can be used, else a sentence saying why not and what to do."""
    return {
        "cpu": compiled.unavailable(),
        "cuda": cuda.unavailable(),
        "triton": triton.unavailable(),
        "reference": None,
    }


def check_name(name: Any) -> None:
    """Raises if `name` is no backend, or one that cannot be used."""
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    reason = None if name == "auto" else backends().get(name)
    if reason is not None:
        raise RuntimeError(f"backend={name!r} cannot be used: {reason}")


def resolve(name: str, device: torch.device) -> str:
    """The backend that `name` stands for on `device`."""
    if name == "auto":
        own = {"cpu": compiled, "cuda": cuda}.get(device.type)
        reason = own.unavailable() if own else f"onepass has no kernels for {device.type} tensors."
        if reason is None:
            return device.type
        if device.type == "cuda":  # which is what torch calls AMD's too
            without_triton = triton.unavailable()
            if without_triton is None:
                return "triton"
            reason = f"{reason} {without_triton}"
        if reason not in _warned:
            _warned.add(reason)
            warnings.warn(f"onepass: stepping with the slow reference backend. {reason}", stacklevel=callers_level())
        return "reference"
    check_name(name)
    if name in ("cpu", "cuda") and device.type != name:
        raise ValueError(
            f"backend={name!r} steps {name.upper()} tensors, got parameters on {device}; use backend='auto'"
        )
    if name == "triton" and device.type != ("cpu" if triton.interpreted() else "cuda"):
        raise ValueError(
            f"backend='triton' steps CUDA and ROCm tensors, or CPU tensors where TRITON_INTERPRET=1 is in the environment, "
            f"got parameters on {device}; use backend='auto'"
        )
    return name


def make_backends(spec: OptimizerSpec, groups: Groups, graph_tensors: list[Tensor]) -> list[Backend]:
    """One backend for each name that the groups ask for, and each device.

    graph_tensors: takes every tensor that a captured CUDA graph points to.
    """
    indices: dict[tuple[str, torch.device], list[int]] = {}
    for i, group in enumerate(groups):
        if group["params"]:
            device = group["params"][0].device
            indices.setdefault((resolve(group["backend"], device), device), []).append(i)
    made = [_BACKENDS[name](spec, groups, members, graph_tensors) for (name, _), members in indices.items()]
    for backend, (name, device), members in zip(made, indices, indices.values(), strict=True):
        for i in members:
            if groups[i]["capturable"] and not backend.capturable:
                raise ValueError(
                    f"param group {i}: capturable=True is for steps that are captured into a CUDA graph, got parameters "
                    f"on {device} with backend {name!r}; use capturable=False"
                )
    return made
