"""A copy of the tree in which mutants are planted, built and tested: never the working tree."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mutate.mutants import Mutant

TEST_SECONDS = 90  # a test that runs longer hangs


class NotCompiled(Exception):
    """The mutant does not compile."""


@dataclass(frozen=True)
class Outcome:
    """`verdict` is killed, timeout (a test hung: killed too), or survived; `by` is the test."""

    verdict: str
    by: str = ""
    finished: bool = True  # False: the time for one mutant was up before all tests had run


class Scratch:
    def __init__(self, root: Path, folder: Path) -> None:
        """Copies the files that git knows, and builds them once."""
        self.tree, self.clean = folder / "tree", folder / "clean"
        self.environment = {**os.environ, "PYTHONPATH": str(self.tree / "python"), "PYTHONSAFEPATH": "1"}
        self.environment |= {"ONEPASS_CUDA": "0", "CXXFLAGS": "-O2"}
        self._sound: set[str] = set()  # tests that were seen to pass without a mutant
        self._broken: list[str] = []  # and those that did not
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
        shutil.copytree(self.tree, self.clean, symlinks=True)

    def restore(self) -> None:
        shutil.rmtree(self.tree)
        shutil.copytree(self.clean, self.tree, symlinks=True)

    def plant(self, mutant: Mutant) -> bool:
        """Builds the tree with this mutant; False if the compiler makes the same machine code of it."""
        self.restore()
        path = self.tree / mutant.file
        path.write_text(mutant.applied(path.read_text()))
        if not mutant.file.startswith("csrc/"):
            return True
        if mutant.file.startswith("csrc/cuda/"):
            parts = ["emulated"]
        elif mutant.file.startswith(("csrc/cpu/", "csrc/module")):
            parts = ["cpu"]
        else:
            parts = ["cpu", "emulated"]
        self._build(*parts)
        return any(
            old.read_bytes() != (self.tree / old.relative_to(self.clean)).read_bytes() for old in self._modules()
        )

    def _modules(self) -> list[Path]:
        return [*(self.clean / "python/onepass").glob("*.so"), *(self.clean / "build/emulated-plain").glob("*.so")]

    def _build(self, *parts: str) -> None:
        commands = {"cpu": ["setup.py", "-q", "build_ext", "--inplace"], "emulated": ["tests/emulated/build.py"]}
        for part in parts:
            command = [sys.executable, *commands[part]]
            # setup.py imports nothing of the tree, but setuptools looks for the project in the working folder.
            done = subprocess.run(command, cwd=self.tree, env=self.environment, text=True, capture_output=True)
            if done.returncode:
                raise NotCompiled(done.stdout + done.stderr)

    def judge(self, mutant: Mutant, tests: list[str], seconds: float) -> Outcome:
        """Runs the test files in this order until a test fails that passes without the mutant, or the time is up."""
        if not self.plant(mutant):
            return Outcome("same")
        while True:
            outcome = self.run(tests, seconds)
            if outcome.verdict == "survived" or outcome.by in self._sound:
                return outcome
            self.restore()
            again = [outcome.by] if outcome.by.startswith("tests/") else tests[:1]
            if self.run(again, seconds).verdict == "survived":
                self._sound.add(outcome.by)
                return outcome
            if "::" not in outcome.by:
                raise RuntimeError(f"pytest does not run without a mutant either: see {self.tree}/build/pytest.log")
            print(f"fails without a mutant, and is left out: {outcome.by}", flush=True)
            self._broken.append(outcome.by)
            self.plant(mutant)

    def run(self, tests: list[str], seconds: float) -> Outcome:
        """Runs the test files in this order until a test fails, or the time is up."""
        command = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
        command += ["-m", "pytest", "-x", "-v", "-p", "no:xdist", "-p", "no:cacheprovider", "--tb=no"]
        command += [f"--timeout={TEST_SECONDS}", "--timeout-method=thread", *tests]
        command += [f"--deselect={test}" for test in self._broken]
        log = self.tree / "build/pytest.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=self.tree, env=self.environment, stdout=file, stderr=file, start_new_session=True
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                return Outcome("survived", finished=False)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        said = log.read_text(errors="replace")
        if code == 0:
            return Outcome("survived")
        names = re.findall(r"^(?:FAILED |ERROR )?(tests/\S+\.py\S*)", said, re.MULTILINE)
        hung = "+ Timeout +" in said
        return Outcome("timeout" if hung else "killed", names[-1] if names else "collection")
