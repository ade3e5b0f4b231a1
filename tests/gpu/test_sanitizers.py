"""compute-sanitizer finds nothing: no access out of bounds, no race in shared memory, no missing barrier."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu.subprocesses import HERE, python, start
from gpu.target import ON_CUDA, cuda_only

SCRIPT = str(HERE / "sanitized.py")
TOOLS = ("memcheck", "racecheck", "synccheck")
SECONDS = 100


def sanitizer() -> str | None:
    """compute-sanitizer, on the PATH or beside nvcc."""
    nvcc = shutil.which(os.environ.get("NVCC", "nvcc")) or "/usr/local/cuda/bin/nvcc"
    root = Path(nvcc).resolve().parent
    places = ("compute-sanitizer", root / "compute-sanitizer", root.parent / "compute-sanitizer/compute-sanitizer")
    return next(filter(None, map(shutil.which, map(str, places))), None)


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All tools at once, as each spends its time on one core."""
    path = sanitizer()
    if not ON_CUDA or path is None:
        yield {}
        return
    # Every tensor its own allocation, so that memcheck knows where each ends.
    command = [path, "--error-exitcode", "9", "--print-limit", "10"]
    programs = {
        tool: start([*command, "--tool", tool, sys.executable, SCRIPT], PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        for tool in TOOLS
    }
    yield programs
    for program in programs.values():
        program.kill()
        program.wait()


@cuda_only
@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_is_found(tool: str, running: dict[str, subprocess.Popen[str]]) -> None:
    if not running:
        pytest.skip("compute-sanitizer is neither on the PATH nor beside nvcc")
    try:
        said, _ = running[tool].communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"compute-sanitizer --tool {tool} was not done after {SECONDS} s")
    if "not supported" in said and "ERROR SUMMARY: 0 errors" not in said:
        pytest.skip(f"compute-sanitizer cannot look at this device: {said.strip().splitlines()[-1]}")
    assert running[tool].returncode == 0 and " steps" in said, said[-5000:]


def test_the_script_runs() -> None:
    assert "56 steps" in python(SCRIPT)
