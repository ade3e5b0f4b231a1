"""The GPU's bench on the CPU, with nothing worth quoting."""

from __future__ import annotations

import torch

import onepass
from cpu_clock import Wall
from gpu_cases import BACKENDS
from gpu_clock import QUICK, DeviceClock, Effort, Step
from results_file import Row, commit


class Rehearsal(DeviceClock, Wall):
    """The same calls on the CPU: shows that the bench runs, not how fast anything is.

    stand_in: the backend that is stepped in place of "cuda" and "triton".
    """

    class Graph:
        def __init__(self, step: Step):
            self.replay = step

        def reset(self) -> None:
            pass

    def __init__(self, stand_in: str = "cpu", effort: Effort = QUICK):
        self.stand_in, self.effort = stand_in, effort

    def backend(self, name: str) -> str:
        return self.stand_in if name in BACKENDS else name

    def synchronize(self) -> None:
        pass

    def graph_of(self, step: Step) -> Graph:
        return self.Graph(step)

    def about(self) -> Row:
        return {"device": "rehearsal", "torch": torch.__version__, "onepass": onepass.__version__, "commit": commit()}
