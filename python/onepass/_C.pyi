from typing import Any

from torch import Tensor

from .hyper import Hyper

version: str
build_flags: str
cuda_archs: str

def isa() -> str: ...
def isas() -> list[str]: ...

class Plan:
    def set_hypers(self, hypers: list[Hyper]) -> None: ...
    def ready(self, params: list[list[Tensor]]) -> bool: ...

class CpuPlan(Plan):
    def __init__(
        self,
        params: list[list[Tensor]],
        state: Any,
        moments: list[str],
        sgd: bool,
        projected: bool,
        lazy_buffer: bool,
        first: list[Tensor],
    ) -> None: ...
    def run(self, threads: int) -> list[Tensor]: ...
    def verdicts(self) -> list[tuple[Tensor, int, float, float, float, bool]]: ...

class CudaPlan(Plan):
    captured: bool
    memory_bytes: int
    launches: list[str]
    room_bytes: int
    stream: int
    verdicts_at: int
    def __init__(
        self,
        params: list[list[Tensor]],
        state: Any,
        moments: list[str],
        sgd: bool,
        projected: bool,
        lazy_buffer: bool,
        first: list[Tensor],
        device: int,
    ) -> None: ...
    def image(self, address: int) -> bytes: ...
    def run(self, group_numbers: list[int]) -> list[Tensor]: ...
    def judged(self) -> list[tuple[int, Tensor]]: ...
