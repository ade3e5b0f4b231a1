"""The most memory that some code has allocated at one time.

memray counts every malloc and mmap of the process, C++ and OpenMP included, so the figure is exact and the same on every
machine. Resident memory is neither: the kernel keeps it per processor core, and is off by up to 128 kB for each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import memray


def peak(run: Callable[[], object]) -> int:
    """The most bytes allocated while `run` runs, beyond those allocated before it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "allocations"
        with memray.Tracker(file):
            run()
        with memray.FileReader(file) as reader:
            return reader.metadata.peak_memory
