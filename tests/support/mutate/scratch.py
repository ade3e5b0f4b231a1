"""A copy of the tree in which mutants are planted, built and tested: never the working tree."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from mutate.mutants import Mutant

TEST_SECONDS = 90  # a test that runs longer hangs
# The parts of a build, and their modules.
MODULES = {"cpu": "python/onepass/*.so", "emulated": "build/emulated-quick/*.so"}


def _builds(file: str) -> list[tuple[str, ...]]:
    """The parts to build with a mutant of this file for the first run of the tests, and for the next one: most mutants of
    what both backends share fail on the CPU, and need no build for the other."""
    if not file.startswith("csrc/"):
        return [()]
    if file.startswith("csrc/cuda/"):
        return [("emulated",)]
    if file.startswith(("csrc/cpu/", "csrc/module")):
        return [("cpu",)]
    return [("cpu",), ("emulated",)]


class NotCompiled(Exception):
    """The mutant does not compile."""


@dataclass(frozen=True)
class Outcome:
    """`verdict` is killed, timeout (a test hung: killed too), or survived; `by` is the test."""

    verdict: str
    by: str = ""
    finished: bool = True  # False: the time for one mutant was up before all tests had run


@dataclass
class Tests:
    """The tests that pass and fail without a mutant. All copies of the tree share one record."""

    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)


class Scratch:
    def __init__(self, root: Path, folder: Path, tests: Tests) -> None:
        """Copies the files that git lists, and builds them once."""
        self.tree, self.clean, self.tests = folder / "tree", folder / "clean", tests
        bytecode = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
        self.environment = {key: value for key, value in os.environ.items() if key not in bytecode}
        self.environment |= {"PYTHONSAFEPATH": "1"}
        # tests/support: for the processes that tests start.
        self.environment["PYTHONPATH"] = os.pathsep.join(
            str(self.tree / folder) for folder in ("python", "tests/support")
        )
        self.environment |= {"ONEPASS_CUDA": "0", "CXXFLAGS": "-O1"}
        # The module of build.py's "quick", which exists by the time that a test is run.
        self.environment["ONEPASS_EMULATED"] = str(
            self.tree / "build/emulated-quick" / f"emulated{EXTENSION_SUFFIXES[0]}"
        )
        for old in (self.tree, self.clean):
            shutil.rmtree(old, ignore_errors=True)
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.check_output(listed, cwd=root, text=True).split("\0")[:-1]:
            if (root / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, self.tree / name)
        if (self.tree / "setup.py").exists():
            # Else the package's kernels would be those of the working tree, where it is installed from.
            (self.tree / "python/onepass/triton_kernels").symlink_to("../../triton_kernels")
            self._build("cpu", "emulated")
        self._pytest(["tests", "--collect-only", "-q"], 300)  # compiles the tests to bytecode
        shutil.copytree(self.tree, self.clean, symlinks=True)

    def restore(self) -> None:
        shutil.rmtree(self.tree)
        shutil.copytree(self.clean, self.tree, symlinks=True)

    def plant(self, mutant: Mutant, parts: Sequence[str]) -> bool:
        """Builds these parts with the mutant; False if the compiler makes the same machine code of it."""
        self.restore()
        path = self.tree / mutant.file
        path.write_text(mutant.applied(path.read_text()))
        for bytecode in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            bytecode.unlink()  # which Python takes for the mutant's if that is of the same size and second
        self._build(*parts)
        modules = [path.relative_to(self.clean) for part in parts for path in self.clean.glob(MODULES[part])]
        same = [(self.clean / path).read_bytes() == (self.tree / path).read_bytes() for path in modules]
        return not (same and all(same))

    def _build(self, *parts: str) -> None:
        commands = {
            "cpu": ["setup.py", "-q", "build_ext", "--inplace"],
            "emulated": ["tests/emulated/build.py", "quick"],
        }
        for part in parts:
            command = [sys.executable, *commands[part]]
            # setup.py imports nothing of the tree, but setuptools looks for the project in the working folder.
            done = subprocess.run(command, cwd=self.tree, env=self.environment, text=True, capture_output=True)
            if done.returncode:
                raise NotCompiled(done.stdout + done.stderr)

    def judge(self, mutant: Mutant, stages: list[list[str]], seconds: float) -> Outcome:
        """Runs pytest with the arguments of each stage until a test fails that passes without the mutant, or the time is
        up."""
        verdict = "same"
        for parts in _builds(mutant.file):
            if not self.plant(mutant, parts):
                continue
            verdict, end = "survived", time.monotonic() + seconds
            for stage in stages:
                outcome = self.run(stage, end - time.monotonic())
                while outcome.verdict != "survived" and not self._passes(outcome.by, stage):
                    self.plant(mutant, parts)
                    outcome = self.run(stage, end - time.monotonic())
                if outcome.verdict != "survived" or not outcome.finished:
                    return outcome
        return Outcome(verdict)

    def _passes(self, test: str, stage: list[str]) -> bool:
        """Whether this test passes without a mutant; of an error in the collection, whether any does."""
        known = "::" in test
        if not known or test not in self.tests.passed | self.tests.failed:
            self.restore()
            good = self.run([test] if known else [*stage, "--collect-only"], 2 * TEST_SECONDS).verdict == "survived"
            if not known and not good:
                log = self._log().read_text(errors="replace")
                raise RuntimeError(f"pytest does not run without a mutant either: {log}")
            (self.tests.passed if good else self.tests.failed).add(test)
            if not good:
                print(f"fails without a mutant, and is left out: {test}", flush=True)
        return test in self.tests.passed

    def run(self, arguments: list[str], seconds: float) -> Outcome:
        """Runs pytest until a test fails, or the time is up."""
        left_out = [f"--deselect={test}" for test in sorted(self.tests.failed)]
        code, said = self._pytest(["-x", "-v", "--tb=no", *arguments, *left_out], seconds)
        if code is None:
            # pytest cannot end a test that never returns to Python.
            running = re.findall(r"^(tests/\S+?\.py::\w+(?:\[.*?\])?) *\Z", said, re.MULTILINE)
            hangs = running and time.time() - self._log().stat().st_mtime > TEST_SECONDS
            return Outcome("timeout", running[0]) if hangs else Outcome("survived", finished=False)
        if code in (0, 5):  # 5: no tests are left
            return Outcome("survived")
        # A process that died leaves no summary, but the name of its running test.
        names = re.findall(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", said, re.MULTILINE)
        names = names or re.findall(r"^(tests/\S+?\.py::\w+(?:\[.*?\])?)(?: *$| [A-Z])", said, re.MULTILINE)
        hung = "+ Timeout +" in said
        return Outcome("timeout" if hung else "killed", names[-1] if names else "collection")

    def _log(self) -> Path:
        return self.tree / "build/pytest.log"

    def _pytest(self, arguments: list[str], seconds: float) -> tuple[int | None, str]:
        """The exit status, None if the time was up, and what it printed."""
        command = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
        command += ["-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider"]
        command += [f"--timeout={TEST_SECONDS}", "--timeout-method=thread", *arguments]
        log = self._log()
        log.parent.mkdir(exist_ok=True)
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=self.tree, env=self.environment, stdout=file, stderr=file, start_new_session=True
            )
            try:
                return process.wait(max(seconds, 1)), log.read_text(errors="replace")
            except subprocess.TimeoutExpired:
                return None, log.read_text(errors="replace")
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
