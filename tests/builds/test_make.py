"""Installations and builds of each make target; stubs in .venv log their arguments."""

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
    """The installations and builds that a target runs, in order."""
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


def test_demo_does_not_install_test_requirements(folder: Path) -> None:
    """Without a GPU the demo builds no CUDA kernels; the tests build them once, and the demo reuses that build."""
    assert calls(folder, "demo") == [BUILD, DEMO, "build, ONEPASS_CUDA 0"]
    assert calls(folder, "demo") == []
    assert calls(folder, "test") == [TEST, TIMM, "build, ONEPASS_CUDA auto"]
    assert calls(folder, "demo") == calls(folder, "test") == calls(folder, "test-elsewhere") == []


def test_changed_source_is_rebuilt(folder: Path) -> None:
    """The tests do not reuse a build without CUDA kernels made for the demo."""
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


def test_forced_cuda_build(folder: Path) -> None:
    assert calls(folder, "demo", ONEPASS_CUDA="1")[-1] == "build, ONEPASS_CUDA 1"


def test_changed_requirements_are_reinstalled(folder: Path) -> None:
    calls(folder, "test")
    newer = (folder / ".venv" / ".test").stat().st_mtime + 5
    os.utime(folder / "requirements" / "test.txt", (newer, newer))
    assert calls(folder, "demo") == []
    assert calls(folder, "test") == [TEST, TIMM]


def test_requirements_begin_with_torch_pinned() -> None:
    """build.txt pins torch first, and each file includes it first: the default torch would install gigabytes of CUDA."""
    for path in (ROOT / "requirements").glob("*.txt"):
        first = next(line for line in path.read_text().splitlines() if line and not line.startswith("#"))
        assert first in {"build": ["torch==2.13.0"], "test": ["-r demo.txt"], "mutate": ["-r test.txt"]}.get(
            path.stem, ["-r build.txt"]
        )
