"""How the functions that kernels call are declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton


def device(fn: Callable[..., Any]) -> Any:
    """`triton.jit` for a function that kernels call. Triton's interpreter takes a plain function as well, and is some
    twenty times faster with it: it patches triton.language at each call of a function that is marked."""
    marked = triton.jit(fn)
    return marked if isinstance(marked, triton.JITFunction) else fn
