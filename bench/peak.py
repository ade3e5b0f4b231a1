"""The kernel's own high-water mark of resident memory: what some code takes beyond what is there before and after it.

Linux only. To be measured in a process that was started with ENVIRONMENT, or a temporary goes into memory that was freed
earlier and never went back to the system, and is not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

# glibc gives freed blocks above this size back to the system at once.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak(run: Callable[[], object]) -> int:
    """The most bytes that are resident while `run` runs, beyond those before it."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def assert_seen(size: int) -> None:
    """Raises unless a temporary tensor of `size` bytes is seen, here and now."""
    seen = peak(lambda: torch.ones(size, dtype=torch.uint8))
    if not 0.7 * size < seen < 1.3 * size:
        raise RuntimeError(f"a temporary of {size} bytes is measured as {seen}; is ENVIRONMENT set in this process?")


def status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")
