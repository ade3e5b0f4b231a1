from typing import Any

from torch import Tensor

from .hyper import Hyper

version: str
build_flags: str

def isa() -> str: ...
def isas() -> list[str]: ...

class Plan:
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
    def set_hypers(self, hypers: list[Hyper]) -> None: ...
    def ready(self, params: list[list[Tensor]]) -> bool: ...
    def run(self, threads: int) -> list[Tensor]: ...
    def verdicts(self) -> list[tuple[Tensor, int, float, float, float, bool]]: ...
