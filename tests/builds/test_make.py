"""What make installs and builds for each target, with programs in .venv that only write down how they were called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from paths import ROOT

PROGRAMS = {
    **dict.fromkeys((".venv/bin/pip", ".venv/bin/python", ".venv/bin/pytest"),
                    'echo "$(basename "$0") ${ONEPASS_CUDA:-auto} $*" >> calls'),
    "gpu/nvidia-smi": "echo 9.0",
    "none/nvidia-smi": "exit 1",
}  # fmt: skip
BUILD, DEMO, LINT, TEST = (f"pip -r requirements/{name}.txt" for name in ("build", "demo", "lint", "test"))
TIMM = "pip --no-deps timm"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Makefile", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "plan.cpp").touch()
    for program, text in PROGRAMS.items():
        path = tmp_path / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    return tmp_path


def calls(folder: Path, target: str, gpu: bool = False, **environment: str) -> list[str]:
    """What is installed for a target, and how the package is built for it, in order."""
    log = folder / "calls"
    log.write_text("")
    path = f"{folder / ('gpu' if gpu else 'none')}:{os.environ['PATH']}"
    subprocess.run(["make", target], cwd=folder, env={"PATH": path, **environment}, check=True, capture_output=True)
    found = []
    for line in log.read_text().splitlines():
        program, cuda, *arguments = line.split()
        if program == "pip" and arguments[-2:] == ["-e", "."]:
            found.append(f"build, ONEPASS_CUDA {cuda}")
        elif program == "pip" and "-r" in arguments:
            found.append(f"pip -r {arguments[-1]}")
        elif program == "pip":
            found.append(f"pip {arguments[-2]} {arguments[-1].partition('=')[0]}")
    return found


def test_the_demo_needs_nothing_of_the_tests(folder: Path) -> None:
    """And no CUDA kernels, where there is no GPU; then the tests have them built, once, and the demo takes these."""
    assert calls(folder, "demo") == [BUILD, DEMO, "build, ONEPASS_CUDA 0"]
    assert calls(folder, "demo") == []
    assert calls(folder, "test") == [TEST, TIMM, "build, ONEPASS_CUDA auto"]
    assert calls(folder, "demo") == calls(folder, "test") == calls(folder, "test-elsewhere") == []


def test_a_source_that_changes(folder: Path) -> None:
    """A demo without CUDA kernels does not pass for the build of the tests."""
    assert calls(folder, "test") == [BUILD, DEMO, TEST, TIMM, "build, ONEPASS_CUDA auto"]
    newer = (folder / ".venv" / ".built").stat().st_mtime + 5
    os.utime(folder / "csrc" / "plan.cpp", (newer, newer))
    assert calls(folder, "demo") == ["build, ONEPASS_CUDA 0"]
    assert calls(folder, "test") == ["build, ONEPASS_CUDA auto"]


def test_a_debug_build_is_undone_by_the_next_target(folder: Path) -> None:
    calls(folder, "test")
    assert calls(folder, "debug") == ["build, ONEPASS_CUDA 0"]
    assert calls(folder, "test") == ["build, ONEPASS_CUDA auto"]


def test_the_demo_on_a_gpu(folder: Path) -> None:
    assert calls(folder, "demo", gpu=True)[-1] == "build, ONEPASS_CUDA auto"
    assert calls(folder, "demo", gpu=True) == []


def test_what_is_asked_for_is_built(folder: Path) -> None:
    assert calls(folder, "demo", ONEPASS_CUDA="1")[-1] == "build, ONEPASS_CUDA 1"


def test_requirements_that_change(folder: Path) -> None:
    calls(folder, "test")
    newer = (folder / ".venv" / ".test").stat().st_mtime + 5
    os.utime(folder / "requirements" / "test.txt", (newer, newer))
    assert calls(folder, "demo") == []
    assert calls(folder, "test") == [TEST, TIMM]


def test_requirements_begin_with_torch_pinned() -> None:
    """Each file includes build.txt first, or one that does, and that pins torch first: plain torch would bring gigabytes of CUDA."""
    for path in (ROOT / "requirements").glob("*.txt"):
        first = next(line for line in path.read_text().splitlines() if line and not line.startswith("#"))
        assert first in {"build": ["torch==2.13.0"], "test": ["-r demo.txt"], "mutate": ["-r test.txt"]}.get(
            path.stem, ["-r build.txt"]
        )
