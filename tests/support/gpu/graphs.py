"""Captured steps, and a guard against synchronization with the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpu.target import ON_CUDA


class Captured:
    """A step, captured but not yet taken."""

    def __init__(self, step: Callable[[], Any]):
        self.replay = step
        if ON_CUDA:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            self.replay = graph.replay


@contextmanager
def no_synchronization() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
