"""Runs the tests as on another machine: an older instruction set, other numbers of threads, and load.

python tests/support/elsewhere.py [--configuration N] [--part K/M] [ARGUMENTS OF PYTEST]

By default the commit chooses one of CONFIGURATIONS and a part of the tests, and the run prints the command that repeats
it. `--part 0/1` takes all tests.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from paths import TESTS


class Configuration(NamedTuple):
    torch: str  # ATEN_CPU_CAPABILITY
    onepass: str  # ONEPASS_ISA
    threads: int
    busy: int  # busy processes beside the tests


# They cover every pair of values.
CONFIGURATIONS = [
    Configuration("default", "baseline", 3, 0),
    Configuration("avx2", "avx2", 1, 4),
    Configuration("default", "avx2", 3, 4),
    Configuration("avx2", "baseline", 1, 0),
    Configuration("default", "baseline", 1, 4),
    Configuration("avx2", "avx2", 3, 0),
]
# Mutants, code for GPUs, output of compilers and packaging, and plans, which are integers, do not depend on the processor.
# make test runs them.
SAME_EVERYWHERE = [
    "test_bench_gpu", "test_cuda_mutations", "test_docs", "test_emulated_host", "test_machine_code", "test_mutations",
    "test_native_mutations", "test_packaging", "test_records", "test_sanitized", "test_shape", "test_triton_code",
    "test_triton_mutations", "test_triton_plan",
]  # fmt: skip
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**6))"


def ignored() -> list[str]:
    """pytest arguments that leave out the files of SAME_EVERYWHERE."""
    return [f"--ignore={path}" for name in SAME_EVERYWHERE for path in TESTS.rglob(f"{name}.py")]


def number() -> int:
    """A number for each commit; for each day, where there is no repository."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=TESTS, capture_output=True, text=True)
    return int(done.stdout, 16) if done.returncode == 0 else datetime.date.today().toordinal()


def chosen(number: int, configuration: int | None, part: str | None) -> tuple[int, str]:
    """Configuration and part, chosen by `number` unless given: a third of the tests, or a ninth beside busy processes."""
    rest, index = divmod(number, len(CONFIGURATIONS))
    index = index if configuration is None else configuration
    parts = 9 if CONFIGURATIONS[index].busy else 3
    return index, part or f"{rest % parts}/{parts}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--configuration", type=int, choices=range(len(CONFIGURATIONS)))
    parser.add_argument("--part", metavar="K/M")
    given, arguments = parser.parse_known_args()
    index, part = chosen(number(), given.configuration, given.part)
    configuration = CONFIGURATIONS[index]
    print(
        f"{configuration}. The same again: make test-elsewhere ARGS='--configuration {index} --part {part}'", flush=True
    )
    environment = {
        **os.environ,
        "ATEN_CPU_CAPABILITY": configuration.torch,
        "ONEPASS_ISA": configuration.onepass,
        "ONEPASS_TEST_THREADS": str(configuration.threads),
        "ONEPASS_TEST_PART": part,
        "OMP_WAIT_POLICY": "passive",  # more threads than cores must not spin
    }
    command = ["pytest", "-n", "auto", "--maxprocesses", "16", *ignored(), *arguments]
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(configuration.busy)]
    try:
        return subprocess.run([Path(sys.executable).parent / command[0], *command[1:]], env=environment).returncode
    finally:
        for process in busy:
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
