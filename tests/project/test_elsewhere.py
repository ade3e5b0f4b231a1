"""`make test-elsewhere`: its configurations cover all pairs of values, and its parts cover all tests."""

from __future__ import annotations

import itertools

import pytest

import processor
from elsewhere import CONFIGURATIONS, SAME_EVERYWHERE, chosen
from paths import TESTS


def test_every_pair_of_values_is_in_a_configuration() -> None:
    for first, second in itertools.combinations(zip(*CONFIGURATIONS, strict=True), 2):
        assert set(zip(first, second, strict=True)) == set(itertools.product(set(first), set(second)))


def test_excluded_files_exist() -> None:
    assert all([*TESTS.rglob(f"{name}.py")] for name in SAME_EVERYWHERE)


def test_the_commit_chooses_every_configuration_and_part() -> None:
    seen = {chosen(number, None, None) for number in range(54)}
    want = {(i, f"{k}/{m}") for i, c in enumerate(CONFIGURATIONS) for m in [9 if c.busy else 3] for k in range(m)}
    assert seen == want
    assert chosen(7, 0, "0/1") == (0, "0/1")


def test_each_test_is_in_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"tests/test_a.py::test[{i}]" for i in range(300)]
    parts = []
    for part in range(3):
        monkeypatch.setattr(processor, "PART", (part, 3))
        parts.append({name for name in names if processor.in_part(name)})
    assert sorted(itertools.chain(*parts)) == sorted(names)
    assert min(map(len, parts)) > 70
