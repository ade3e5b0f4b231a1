"""The backend and the device of the tests in tests/gpu.

ONEPASS_GPU_TESTS_ON
    not set    the CUDA backend; where torch finds no GPU, everything is skipped
    cuda       the same, but no GPU is an error: for `make test-gpu`
    triton     the Triton backend, likewise
    emulated   the same kernels on the CPU (tests/emulated), so that these tests are tested without a GPU: fewer dtypes
               and smaller tensors, and what needs CUDA itself is skipped
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

CHOICE = os.environ.get("ONEPASS_GPU_TESTS_ON", "")
if CHOICE not in ("", "cuda", "triton", "emulated"):
    raise ValueError(f"ONEPASS_GPU_TESTS_ON must be cuda, triton or emulated, got {CHOICE!r}")

ON_CUDA = CHOICE != "emulated"
HAS_GPU = torch.cuda.is_available()
BACKEND = CHOICE or "cuda"
DEVICE = torch.device("cuda", 0) if ON_CUDA else torch.device("cpu")

# A machine with a GPU may lack the packages of the other tests. records.py imports the oracles in adamp and the emulated
# device, which takes a while to build; tests/gpu needs neither.
if importlib.util.find_spec("adamp") is None:
    sys.modules["adamp"] = types.ModuleType("adamp")
if CHOICE in ("cuda", "triton"):
    sys.modules.setdefault("emulated_backend", types.ModuleType("emulated_backend"))

if CHOICE == "emulated":
    importlib.import_module("emulated_backend")  # makes the backend known

cuda_only = pytest.mark.skipif(not ON_CUDA, reason="needs CUDA itself, not its emulation")


def missing() -> str | None:
    """Why no step can run here, or None."""
    if ON_CUDA and not HAS_GPU:
        return f"torch {torch.__version__} finds no CUDA device"
    return None


def pick(on_cuda: Any, emulated: Any) -> Any:
    """The value for a GPU, or the one that the emulation can run in the same time."""
    return on_cuda if ON_CUDA else emulated


def to_device(t: Tensor) -> Tensor:
    return t.detach().to(DEVICE, copy=True)


def to_host(t: Tensor) -> Tensor:
    return t.detach().to("cpu", copy=True)


def synchronize() -> None:
    if ON_CUDA:
        torch.cuda.synchronize()
