"""CUDA graphs of Triton's interpreter, which has none: what a captured step sends and launches happens at a replay only."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from onepass.triton_kernels import launch
from torch import Tensor

from onepass.backend.triton import backend as triton_backend
from onepass.backend.triton import tables as triton_tables


class Weak:
    """A tensor that a graph points to and does not keep."""

    def __init__(self, t: Tensor):
        self.there = weakref.ref(t)

    def get(self) -> Tensor:
        t = self.there()
        assert t is not None, "the graph points to memory that was freed"
        return t


class Graph:
    """A step, captured and not taken. It must send and launch no tensor but dense ones: others are gathered at once."""

    def __init__(self, step: Callable[[], Any]):
        self.copies: list[tuple[Weak, Weak]] = []
        self.launches: list[tuple[Any, dict[str, Weak], tuple[Any, ...]]] = []
        with pytest.MonkeyPatch.context() as patch:
            for module in (triton_backend, triton_tables):
                patch.setattr(module, "capturing", lambda device: True)
            patch.setattr(triton_tables.TableUploader, "to_device", lambda _, host: self.copy(host))
            patch.setattr(launch, "launch_all", self.launch)
            step()

    def copy(self, host: Tensor) -> Tensor:
        there = torch.zeros_like(host)
        self.copies.append((Weak(there), Weak(host)))
        return there

    def launch(self, tables: Any, *arguments: Any) -> list[str]:
        weak = {name: Weak(table) for name, table in vars(tables).items() if isinstance(table, Tensor)}
        self.launches.append((replace(tables, **dict.fromkeys(weak)), weak, arguments))
        return ["captured"]

    def replay(self) -> None:
        for there, host in self.copies:
            there.get().copy_(host.get())
        for tables, weak, arguments in self.launches:
            launch.launch_all(replace(tables, **{name: t.get() for name, t in weak.items()}), *arguments)
