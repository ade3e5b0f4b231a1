"""Work in a process that was forked from one that has imported onepass.

The threads of OpenMP, which torch and the kernels share, exist in the parent only. If the parent has used them, a
parallel region in the child waits for them forever. Results do not depend on the number of threads, so in a child
everything runs on one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_forked = False


def _mark_child() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_mark_child)


def one_thread_after_fork(func: Callable[P, R]) -> Callable[P, R]:
    """`func`, in a forked child with `torch.get_num_threads() == 1` for as long as it runs."""

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _forked:
            return func(*args, **kwargs)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return func(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return wrapper
