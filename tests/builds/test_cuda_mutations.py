"""Mutation tests of csrc/cuda/: the checks must detect each mutant. The kernels run on a CPU, see emulated/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import checks
import cuda_mutants
from cuda_mutants import MUTANTS, NOTICED_BY
from paths import SUPPORT

Detect = Callable[[int], str | None]


@pytest.fixture(scope="module")
def detect() -> Iterator[Detect]:
    """Returns the first check that detects a mutant, given its number from 1 on; 0 is the unmodified code."""
    module = cuda_mutants.build()
    environment = {**os.environ, "ONEPASS_EMULATED": str(module), "PYTHONSAFEPATH": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SUPPORT), *sys.path]))
    command = [sys.executable, cuda_mutants.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdin is not None and server.stdout is not None

        def ask(number: int) -> str | None:
            print(number, file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        yield ask


def test_checks_pass_without_a_mutation(detect: Detect) -> None:
    assert detect(0) is None


@pytest.mark.parametrize("number", range(1, len(MUTANTS) + 1), ids=lambda n: MUTANTS[n - 1].name)
def test_mutant_of_the_cuda_kernels(detect: Detect, number: int) -> None:
    assert detect(number), f"undetected: {MUTANTS[number - 1].name}"


def test_what_notices_them_exists() -> None:
    assert NOTICED_BY.keys() <= {mutant.name for mutant in MUTANTS}
    assert set(NOTICED_BY.values()) <= {check.func.__name__ for check in checks.cuda()}
