"""Mutation tests of the CPU backend in csrc/: the checks must detect each mutant."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator
from itertools import chain

import pytest

import checks
import native_mutants
from native_mutants import MUTANTS
from records import COMPILED


@pytest.fixture(scope="module")
def switch() -> Iterator[ctypes.c_int]:
    """Selects the mutant that the "cpu" backend runs; 0 is the unmodified code."""
    module = native_mutants.build()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("onepass.backend.compiled"), "_C", module)
        yield native_mutants.switch_of(module)


def _checks() -> Iterator:
    return chain(checks.of_the_kernels(COMPILED[0]), checks.of_the_rule(COMPILED[0]))


def test_checks_pass_without_a_mutation(switch: ctypes.c_int) -> None:
    switch.value = 0
    assert checks.first_failure(_checks()) is None


@pytest.mark.parametrize("number", range(1, len(MUTANTS) + 1), ids=lambda n: MUTANTS[n - 1].name)
def test_mutant_of_the_kernels(switch: ctypes.c_int, number: int) -> None:
    switch.value = number
    assert checks.first_failure(_checks()), f"undetected: {MUTANTS[number - 1].name}"
