"""CUDA graphs for Triton's interpreter, which has none: a captured step uploads and launches at a replay only."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from onepass.triton_kernels import launch
from torch import Tensor

from onepass.backend.triton import upload


class Weak:
    """A tensor that a graph points to but does not keep alive."""

    def __init__(self, t: Tensor):
        self.there = weakref.ref(t)

    def get(self) -> Tensor:
        t = self.there()
        assert t is not None, "the graph points to memory that was freed"
        return t


class CapturedStep:
    """In place of the launches of a captured step: none."""

    PHASES = ("device_scalars", "gate_stats", "update", "decide", "correct")

    def __init__(self) -> None:
        self.launched = ["captured"]

    def nothing(self) -> None:
        pass

    device_scalars = gate_stats = update = decide = correct = nothing


class Graph:
    """A step, captured but not taken. It must upload and launch dense tensors only: others are gathered during the capture."""

    def __init__(self, step: Callable[[], Any]):
        self.copies: list[tuple[Weak, Weak]] = []
        self.steps: list[tuple[Any, dict[str, Weak], tuple[Any, ...], dict[str, Any]]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(upload, "capturing", lambda device: True)
            patch.setattr(upload, "to_device", lambda host, device: self.copy(host))
            patch.setattr(launch, "Step", self.captured)
            step()

    def copy(self, host: Tensor) -> Tensor:
        there = torch.zeros_like(host)
        self.copies.append((Weak(there), Weak(host)))
        return there

    def captured(self, tables: Any, *arguments: Any, **named: Any) -> CapturedStep:
        weak = {name: Weak(table) for name, table in vars(tables).items() if isinstance(table, Tensor)}
        self.steps.append((replace(tables, **dict.fromkeys(weak)), weak, arguments, named))
        return CapturedStep()

    def replay(self) -> None:
        for there, host in self.copies:
            there.get().copy_(host.get())
        for tables, weak, arguments, named in self.steps:
            there = replace(tables, **{name: t.get() for name, t in weak.items()})
            step = launch.Step(there, *arguments, **named)
            for phase in CapturedStep.PHASES:
                getattr(step, phase)()
