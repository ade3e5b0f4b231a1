"""tests/emulated, which runs CUDA kernels on a CPU: its self-test kernels run correctly, and it detects errors in kernels."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from paths import ROOT

EMULATED = ROOT / "tests/emulated"
CXX = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or "g++"]
FLAGS = ["-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{EMULATED}", "-include", "cuda_runtime.h"]
BUILDS = {
    "plain": ["-O2"],
    "sanitized": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"],
    # The context switch of other machines, and kernel parameters by reference (__grid_constant__).
    "ucontext": ["-O1", "-DEMULATED_UCONTEXT", "-D__grid_constant__=&"],
}
RIGHT = ["reduction", "os_threads", "missing_syncthreads", "missing_syncwarp", "orders", "exchanges", "poison"]
RIGHT += ["parameters", "capture", "errors", "devices", "traffic"]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    sources = [path for path in sorted(EMULATED.glob("*.cpp")) if path.name != "module.cpp"]
    programs = {}
    for name, flags in BUILDS.items():
        folder = tmp_path_factory.mktemp(name)
        programs[name] = folder / "selftest"
        # -include searches the compiler's working directory first.
        command = [*CXX, *FLAGS, *flags, *sources, "-o", programs[name]]
        subprocess.run(command, check=True, cwd=folder)
    return programs


def _run(program: Path, *cases: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *cases], capture_output=True, text=True)


@pytest.mark.parametrize("build", BUILDS)
def test_correct_kernels(builds: dict[str, Path], build: str) -> None:
    for cases in [*([case] for case in RIGHT), RIGHT]:
        done = _run(builds[build], *cases)
        assert done.returncode == 0, f"{cases}: {done.stderr}"


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("stuck_block", "block 0 would wait forever: thread 0 waits in __syncthreads(), but thread 32 has returned"),
        ("stuck_warp", "block 0 would wait forever: thread 5 has returned, but thread 0 waits in a shuffle"),
        ("wrong_mask", "mask 0x0000ffff: only 0xffffffff is emulated"),
    ],
)
def test_deadlocks_abort(builds: dict[str, Path], build: str, case: str, message: str) -> None:
    done = _run(builds[build], case)
    assert done.returncode < 0 and message in done.stderr


@pytest.mark.parametrize(
    ("case", "message"),
    [("read_past", "AddressSanitizer: use-after-poison"), ("misaligned", "requires 16 byte alignment")],
)
def test_sanitizers_check_kernels(builds: dict[str, Path], case: str, message: str) -> None:
    done = _run(builds["sanitized"], case)
    assert done.stdout == "so far so good\n"
    assert done.returncode != 0 and message in done.stderr


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ("plain", "a block wrote to byte 4 of its shared memory, of which it has 4"),
        ("sanitized", "AddressSanitizer: use-after-poison"),
    ],
)
def test_shared_memory_overflow_is_detected(builds: dict[str, Path], build: str, message: str) -> None:
    done = _run(builds[build], "write_past")
    assert done.returncode != 0 and message in done.stderr


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_selftest_kernels_compile_with_nvcc(tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++20", "-arch=sm_90", "-c", EMULATED / "selftest.cu", "-o", "selftest.o"]
    subprocess.run(command, check=True, cwd=tmp_path)
