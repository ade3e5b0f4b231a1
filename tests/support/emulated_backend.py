"""The backend "emulated": the CUDA backend on a CPU, for tests. See tests/emulated/."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onepass
from onepass.backend.cuda import CudaBackend
from paths import TESTS

sys.path.insert(0, str(TESTS / "emulated"))  # before any installed package named build
from build import build


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("emulated", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ONEPASS_EMULATED: the build for tests that another test runs in its own process.
emulated = load(Path(os.environ.get("ONEPASS_EMULATED") or build()))


backends = importlib.import_module("onepass.backend.registry")


class EmulatedBackend(CudaBackend):
    name = "emulated"

    def check_device(self) -> None:
        pass

    def on_device(self) -> Any:
        return contextlib.nullcontext()

    def record_stream(self) -> None:
        pass

    def plan_class(self) -> Any:
        return emulated.CudaPlan


backends._BACKENDS["emulated"] = EmulatedBackend
backends.NAMES += ("emulated",)


def plan_of(opt: onepass.Adam) -> Any:
    """The plan of an optimizer of one group that has stepped."""
    (bound,) = opt._execution.backends
    return bound.plan
