"""Runs the tests of the CPU backend under sanitizers, on its own build below build/.

python tests/support/sanitize.py [address | thread] [ARGUMENTS OF PYTEST]

address: AddressSanitizer and UndefinedBehaviorSanitizer. thread: ThreadSanitizer, with LLVM's OpenMP in place of gcc's, whose
synchronization a sanitizer does not see, so that it would report every parallel loop. Both by default. Before the tests each
sanitizer has to report a planted mistake. Each instruction set runs a part of the tests.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from edits import edited
from paths import ROOT, SUPPORT, TESTS

CXX = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or "g++"]


class Sanitizer(NamedTuple):
    flag: str
    libraries: tuple[str, ...]  # loaded before all others
    options: dict[str, str]
    threads: tuple[int, int]  # for alternating instruction sets
    left_out: str  # added to the -k expression
    mistake: tuple[str, str, str]  # file, code, and what it becomes
    report: str  # of the mistake


SANITIZERS = {
    "address": Sanitizer(
        "-fsanitize=address,undefined -fno-sanitize-recover=all",
        ("asan", "ubsan"),
        # Python and torch do not free all memory before they end.
        {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"},
        (1, 3),
        "",
        ("csrc/plan.cpp", "std::min(rows_per_item, t.rows - row)", "std::min(rows_per_item + INT64_MAX, t.rows - row)"),
        "runtime error: signed integer overflow",
    ),
    "thread": Sanitizer(
        "-fsanitize=thread",
        ("tsan",),
        # torch and Python are not instrumented, so it cannot judge their accesses.
        {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1"},
        (4, 2),
        # It allows no new threads in a child forked from a multi-threaded process.
        " and not test_child_clips_loads_and_steps",
        (
            "csrc/cpu/executor.cpp",
            "row_stats_[index] = step.kernels->update(tile)",
            "row_stats_[0] = step.kernels->update(tile)",
        ),
        "WARNING: ThreadSanitizer: data race",
    ),
}
# Reports are not captured: a process ends at its first one.
PYTEST = ("-m", "pytest", "-q", "-p", "sanitize", "--capture=sys", "--disable-warnings")
PARALLEL = ("-n", "auto", "--maxprocesses", "16")
SHARED_OUT = "test_large_tensors and cpu and AdamP and float32"  # stepped by several threads
OPERANDS = 4  # of sanitized_cases.py


class Missing(Exception):
    """A missing dependency, and how to install it."""


def library(name: str) -> str:
    path = subprocess.check_output([*CXX, f"-print-file-name=lib{name}.so"], text=True).strip()
    if not Path(path).is_absolute():
        raise Missing(f"{CXX[0]} has no lib{name}.so to load into Python: take g++, with its sanitizers")
    return path


def preloaded(kind: str) -> dict[str, str]:
    """The environment in which Python can import a module that is compiled with a sanitizer."""
    libraries = [library(name) for name in SANITIZERS[kind].libraries]
    options = dict(SANITIZERS[kind].options)
    if kind == "thread":
        archers = [path for folder in ("lib", "lib64") for path in Path("/usr", folder).glob("**/libarcher.so")]
        if not archers:
            raise Missing("no LLVM OpenMP with libarcher.so: install libomp-dev (Debian, Ubuntu) or libomp (Fedora)")
        options["OMP_TOOL_LIBRARIES"] = str(max(archers))
        libraries.append(str(max(archers).with_name("libomp.so")))
    return {**options, "LD_PRELOAD": " ".join(libraries)}


def build(kind: str, root: Path = ROOT) -> Path:
    """Builds onepass into a folder of its own, and returns it."""
    folder = Path("build", f"sanitized-{kind}")
    command = ["setup.py", "-q", "build", "--build-lib", str(folder), "--build-temp", str(folder / "objects")]
    environment = {**os.environ, "CXXFLAGS": f"-O1 -g1 {SANITIZERS[kind].flag}", "ONEPASS_CUDA": "0"}
    done = subprocess.run([sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-5000:] + done.stderr)
    return root / folder


def build_with_mistake(kind: str) -> Path:
    (file, code, wrong), copy = SANITIZERS[kind].mistake, ROOT / "build/sanitized-mistake"
    shutil.rmtree(copy, ignore_errors=True)
    # Includes the build's objects, of which ninja rebuilds those of the edited file.
    for folder in ("csrc", "python", "triton_kernels", f"build/sanitized-{kind}"):
        shutil.copytree(ROOT / folder, copy / folder)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / file).write_text(edited((copy / file).read_text(), code, wrong))
    return build(kind, copy)


def run(folder: Path, kind: str, *command: str, isa: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        **preloaded(kind),
        "ONEPASS_SANITIZED": str(folder),
        "PYTHONPATH": os.pathsep.join([str(folder), str(SUPPORT)]),
        "ONEPASS_ISA": isa,
        "OMP_WAIT_POLICY": "passive",  # more threads than cores must not spin
        **options.pop("environment", {}),
    }
    return subprocess.run([sys.executable, *command], cwd=TESTS, env=environment, text=True, **options)


def refuse_others(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook that stops a Python process that would import another onepass."""
    if event == "subprocess.Popen" and Path(os.fsdecode(arguments[0])).name.startswith("python"):
        environment = os.environ if arguments[3] is None else arguments[3]
        path = environment.get("PYTHONPATH", "").split(os.pathsep)
        ours = os.environ["ONEPASS_SANITIZED"] in path and environment.get("LD_PRELOAD")
        assert ours, f"no sanitizer would be in {arguments[1]}"


def pytest_sessionstart() -> None:
    """Runs in every process of the tests, of which this file is a plugin."""
    from onepass.backend import compiled

    assert compiled._C is not None and compiled._C.__file__.startswith(os.environ["ONEPASS_SANITIZED"]), compiled._C
    assert "-fsanitize=" in compiled._C.build_flags
    sys.addaudithook(refuse_others)


def check_that_it_sees(kind: str) -> None:
    file, _, wrong = SANITIZERS[kind].mistake
    done = run(
        build_with_mistake(kind),
        kind,
        *PYTEST,
        "--tier=all",
        "rule/test_parity.py",
        "-k",
        SHARED_OUT,
        capture_output=True,
    )
    if SANITIZERS[kind].report not in done.stderr or "onepass::" not in done.stderr:
        sys.exit(f"{wrong!r} in {file} went unnoticed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    print(f"{wrong!r} in {file}: found out", flush=True)


def check_that_it_sees_the_end(folder: Path, isa: str, place: str, report: str) -> None:
    done = run(folder, "address", "support/sanitized_cases.py", "cpu", place, isa=isa, capture_output=True)
    ends = done.stdout.count("found out"), done.stderr.count(f"ERROR: AddressSanitizer: {report}")
    if ends != (OPERANDS, OPERANDS):
        sys.exit(f"one element beyond an operand went unnoticed ({isa}, {place}):\n{done.stdout}{done.stderr[-3000:]}")
    print(f"one element beyond each operand ({isa}, {place}): found out", flush=True)


def check(kind: str, arguments: list[str]) -> bool:
    preloaded(kind)  # reports missing dependencies before any build
    from elsewhere import ignored
    from emulated_backend import build as build_emulated

    folder = build(kind)
    check_that_it_sees(kind)
    code = "from onepass.backend.compiled import _C; print(*_C.isas())"
    isas = run(folder, kind, "-c", code, check=True, stdout=subprocess.PIPE).stdout.split()
    if kind == "address":
        check_that_it_sees_the_end(folder, "baseline", "heap", "heap-buffer-overflow")
        check_that_it_sees_the_end(folder, isas[0], "page", "SEGV")
    left_out = ["--ignore=gpu", *ignored()]
    chosen = "cpu and not emulated and not triton" + SANITIZERS[kind].left_out
    codes = []
    for i, isa in enumerate(isas):
        threads = SANITIZERS[kind].threads[i % 2]
        print(f"{kind}: {isa}, {threads} threads", flush=True)
        # The tests of every backend import the emulated one.
        environment = {"ONEPASS_EMULATED": str(build_emulated()), "ONEPASS_TEST_THREADS": str(threads)}
        part = {**environment, "ONEPASS_TEST_PART": f"{i}/{len(isas)}"}
        command = [*PYTEST, *PARALLEL, *left_out, "-k", chosen, *arguments]
        codes.append(run(folder, kind, *command, isa=isa, environment=part).returncode)
        if kind == "address":
            command = [*PYTEST, *PARALLEL, "support/sanitized_cases.py", "-k", "cpu"]
            codes.append(run(folder, kind, *command, isa=isa, environment=environment).returncode)
    return not any(codes)


def main() -> int | str:
    kinds, arguments = list(SANITIZERS), sys.argv[1:]
    if arguments[:1] and arguments[0] in SANITIZERS:
        kinds = [arguments.pop(0)]
    try:
        return 0 if all([check(kind, arguments) for kind in kinds]) else 1
    except Missing as what:
        return f"sanitize: {what}"


if __name__ == "__main__":
    sys.exit(main())
