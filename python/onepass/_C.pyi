"""The compiled module. tests/api/test_stub.py compares this file with what pybind11 says of it."""

from typing import Any

from torch import Tensor

from .hyperparams import Hyper

version: str
build_flags: str
cuda_archs: str

def isa() -> str: ...
def isas() -> list[str]: ...

class Plan:
    def set_hypers(self, hypers: list[Hyper]) -> None: ...
    def ready(self, params: list[list[Tensor]]) -> bool: ...
    def release_gradients(self) -> None: ...

class CpuPlan(Plan):
    def __init__(
        self,
        params: list[list[Tensor]],
        state: dict[Any, Any],
        moments: list[str],
        rule: str,
        projected: bool,
        lazy_buffer: bool,
        first: list[Tensor],
    ) -> None: ...
    def square_sum(self, threads: int) -> float: ...
    def run(self, threads: int, factor: float) -> list[Tensor]: ...
    def verdicts(self) -> list[tuple[Tensor, int, float, float, float, bool]]: ...

class CudaPlan(Plan):  # absent from a build without CUDA
    @property
    def memory_bytes(self) -> int: ...
    @property
    def square_sum_at(self) -> int: ...
    @property
    def verdicts_at(self) -> int: ...
    @property
    def captured(self) -> bool: ...
    @property
    def stream(self) -> int: ...
    @property
    def launches(self) -> list[str]: ...
    @property
    def row_cache_bytes(self) -> int: ...
    def __init__(
        self,
        params: list[list[Tensor]],
        state: dict[Any, Any],
        moments: list[str],
        rule: str,
        projected: bool,
        lazy_buffer: bool,
        first: list[Tensor],
        device: int,
    ) -> None: ...
    def initial_bytes(self, address: int) -> bytes: ...
    def square_sum(self, group_numbers: list[int]) -> None: ...
    def run(
        self,
        group_numbers: list[int],
        clip: Tensor | None,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> list[Tensor]: ...
    def decided(self) -> list[tuple[int, Tensor]]: ...
