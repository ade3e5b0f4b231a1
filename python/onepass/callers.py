"""The stack above onepass, for warnings."""

from __future__ import annotations

import sys


def callers_level() -> int:
    """The stacklevel that makes a warning point at the line that called into onepass, or into torch on the way."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("onepass", "torch"):
        level, frame = level + 1, frame.f_back
    return level
