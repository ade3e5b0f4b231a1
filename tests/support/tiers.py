"""Tiers of the tests: `make check` after every change, `make test` before a release, `make test-all` occasionally.

A test over seven optimizers, four backends and four dtypes has 112 cases. Nearly every bug depends on one option or on a pair.
So `check` runs every option of a test once, `test` every pair of options, and `all` every combination.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path

import pytest

# The size of the combinations of options that a tier covers.
TIERS = {"check": 1, "test": 2, "all": None}

# Left out of `check`.
SLOW = {
    # They compile, install, or plant bugs, each of which compiles or runs tests.
    "test_cuda_mutations", "test_cuda_plans", "test_emulated_host", "test_gpu_suite", "test_machine_code", "test_mutate",
    "test_mutations", "test_native_mutations", "test_packaging", "test_sanitized", "test_triton_code",
    "test_triton_mutations",
    # They import frameworks, start processes, or train.
    "test_accelerate", "test_bench", "test_bench_gpu", "test_compile", "test_distributed", "test_fast_interpreter",
    "test_hf_trainer", "test_hypothesis", "test_lightning", "test_main", "test_tools", "test_toy2d",
    "test_backends::test_the_warning_points_at_the_step",
    "test_backends::test_triton_is_imported_lazily",
    "test_backends::test_without_the_compiled_module",
    "test_determinism::test_from_run_to_run", "test_determinism::test_instruction_sets",
    "test_determinism::test_unknown_instruction_set",
}  # fmt: skip

# Cases with this value of a parameter are taken where no other adds as much: Triton's kernels, interpreted, take ten times as long.
DEAR = "triton"

Options = Sequence[tuple[str, Hashable]]  # of one case: (parameter, value)


# For example, pytest -m "emulated and not slow".
MARKERS = {
    **{backend: f"runs on this backend: {backend}" for backend in ("reference", "cpu", "emulated", "triton")},
    "slow": "left out of `make check`",
    "build": "compiles, packages, or reads what compilers made",
}


def is_left_out(file: Path, tier: str) -> bool:
    return tier == "check" and file.stem in SLOW


def markers_of(item: pytest.Item) -> list[str]:
    """The names in MARKERS that hold for a case."""
    callspec = getattr(item, "callspec", None)
    backend = callspec.params.get("backend") if callspec else None
    return [
        *([backend] if backend in MARKERS else []),
        *(["slow"] if _is_slow(item) else []),
        *(["build"] if item.path.parent.name == "builds" else []),
    ]


def _is_slow(item: pytest.Item) -> bool:
    function = item.nodeid.partition("[")[0].rpartition("::")[2]
    return item.path.stem in SLOW or f"{item.path.stem}::{function}" in SLOW


def chosen(items: list[pytest.Item], tier: str) -> list[pytest.Item]:
    """The cases of every test function that `covering` chooses, in their order."""
    strength = TIERS[tier]
    if strength is None:
        return items
    functions = defaultdict(list)
    for item in items:
        function = item.nodeid.partition("[")[0]
        if tier != "check" or not _is_slow(item):
            functions[function].append(item)
    kept = set()
    for cases in functions.values():
        options = [_options(case) for case in cases]
        kept.update(cases[index].nodeid for index in covering(options, strength))
    return [item for item in items if item.nodeid in kept]


def covering(cases: Sequence[Options], strength: int) -> list[int]:
    """Indices, in order, of cases that cover every combination of `strength` options in any of all cases.

    Greedy: each next case is the one that adds most; of equals one that is not dear, so that the dear ones cover what no other
    does; of these the one whose options were taken least, which spreads parameters of many values over those of few; of these
    the first.
    """
    groups = [_groups(case, strength) for case in cases]
    spread = [_groups(case, 1) | _groups(case, 2) for case in cases]
    dear = [any(_is_dear(value) for _, value in case) for case in cases]
    missing = set().union(*groups)
    adds = [len(own) for own in groups]  # at most: it only shrinks
    taken: Counter[Hashable] = Counter()  # options, and pairs of them
    indices = []
    while missing:
        best: tuple[int, bool, int, int] = (0, False, 0, 0)
        for index in sorted(range(len(cases)), key=adds.__getitem__, reverse=True):
            if adds[index] < best[0]:
                break
            adds[index] = len(groups[index] & missing)
            if (adds[index], not dear[index]) >= best[:2]:
                least = -sum(map(taken.__getitem__, spread[index]))
                best = max(best, (adds[index], not dear[index], least, -index))
        index = -best[3]
        indices.append(index)
        missing -= groups[index]
        adds[index] = 0
        taken.update(spread[index])
    return sorted(indices)


def _groups(case: Options, strength: int) -> set[tuple[tuple[str, Hashable], ...]]:
    ordered = sorted(case, key=lambda option: option[0])
    return set(itertools.combinations(ordered, min(strength, len(ordered))))


def _options(item: pytest.Item) -> Options:
    """Equal values are one option, in the list of any decorator. A test without parameters has one case."""
    callspec = getattr(item, "callspec", None)
    return [(name, _key(value)) for name, value in callspec.params.items()] if callspec else [("", "")]


def _is_dear(option: Hashable) -> bool:
    return option in (DEAR, _key(DEAR))


def _key(value: object) -> Hashable:
    try:
        hash(value)
    except TypeError:  # a dictionary of arguments, say
        return id(value)
    return type(value), value
