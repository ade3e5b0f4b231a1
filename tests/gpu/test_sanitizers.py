"""Kernels under compute-sanitizer: no access out of bounds, no race in shared memory, no missing barrier."""

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
    """The path of compute-sanitizer, on the PATH or beside nvcc."""
    nvcc = shutil.which(os.environ.get("NVCC", "nvcc")) or "/usr/local/cuda/bin/nvcc"
    root = Path(nvcc).resolve().parent
    places = ("compute-sanitizer", root / "compute-sanitizer", root.parent / "compute-sanitizer/compute-sanitizer")
    return next(filter(None, map(shutil.which, map(str, places))), None)


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Starts all tools at once, since each uses one core."""
    path = sanitizer()
    if not ON_CUDA or path is None:
        yield {}
        return
    # Without the caching allocator each tensor is an allocation, whose bounds memcheck checks.
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
def test_no_errors(tool: str, running: dict[str, subprocess.Popen[str]]) -> None:
    if not running:
        pytest.skip("compute-sanitizer is neither on the PATH nor beside nvcc")
    try:
        output, _ = running[tool].communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"compute-sanitizer --tool {tool} was not done after {SECONDS} s")
    if "not supported" in output and "ERROR SUMMARY: 0 errors" not in output:
        pytest.skip(f"compute-sanitizer cannot look at this device: {output.strip().splitlines()[-1]}")
    assert running[tool].returncode == 0 and " steps" in output, output[-5000:]


def test_the_script_runs() -> None:
    assert "56 steps" in python(SCRIPT)
