"""The tiers: `make check` covers every option of every test, `make test` every pair of options, both with few cases."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paths import SUPPORT, TESTS
from tiers import DEAR, SLOW, TIERS, covering

AXES = {"backend": ["cpu", "triton", "emulated"], "dtype": ["f32", "f64"], "gate": [0, 1, 2], "decay": [False, True]}
PRODUCT = [list(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]


@pytest.mark.parametrize("strength", [1, 2, 3, 4])
@pytest.mark.parametrize("left_out", [None, ("gate", 1), ("decay", True)])
def test_every_combination_of_options_is_covered(strength: int, left_out: tuple[str, object] | None) -> None:
    """For all combinations, and when some never occur."""
    cases = [case for case in PRODUCT if left_out not in case or ("backend", "triton") in case]
    some = [cases[index] for index in covering(cases, strength)]

    def met(chosen: list) -> set:
        return {group for case in chosen for group in itertools.combinations(case, strength)}

    assert met(some) == met(cases)


def test_number_of_cases() -> None:
    """At most twice the lower bound, the product of the `strength` longest lists."""
    longest = sorted(map(len, AXES.values()), reverse=True)
    for strength in (1, 2, 3, 4):
        fewest = math.prod(longest[:strength])
        assert fewest <= len(covering(PRODUCT, strength)) <= 2 * fewest


@pytest.mark.parametrize("order", list(itertools.permutations(AXES["backend"])))
def test_few_cases_are_dear(order: tuple[str, ...]) -> None:
    """No more than their own pairs need, wherever the dear value is in its list."""
    axes = {**AXES, "backend": order}
    cases = [list(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    chosen = [dict(cases[index])["backend"] for index in covering(cases, 2)]
    assert chosen.count(DEAR) == max(map(len, AXES.values())) <= min(map(chosen.count, order))


def test_without_parameters() -> None:
    assert covering([[("", "")]], 1) == covering([[("", "")]], 2) == [0]


def test_slow_tests_exist() -> None:
    for name in SLOW:
        file, _, function = name.partition("::")
        assert f"def {function}" in next(TESTS.rglob(f"{file}.py")).read_text(), name


def _collected(folder: Path, *runs: list[str]) -> list[list[str]]:
    """What pytest collects with each of these arguments, all in one other process: in this one, modules of the same name would be
    shared with its own tests."""
    given = ["-c", "pyproject.toml", "--collect-only", "-q", "-p", "no:cacheprovider", "tests"]
    program = "import pytest, sys; sys.exit(any(print('run') or pytest.main(each) for each in eval(sys.argv[1])))"
    # Of the toy, whatever part of the tests this one is in; and without Triton, which would have to be imported.
    environment = {**os.environ, "ONEPASS_TEST_PART": "0/1", "ONEPASS_GPU_TESTS_ON": "cuda"}
    command = [sys.executable, "-P", "-c", program, repr([[*given, *arguments] for arguments in runs])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = done.stdout.split("run\n")[1:]
    assert len(outputs) == len(runs), done.stdout
    return [[line.partition("::")[2] for line in output.splitlines() if "::" in line] for output in outputs]


def test_tiers_in_pytest(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    files = {
        "pyproject.toml": f"[tool.pytest.ini_options]\naddopts = '--import-mode=importlib'\npythonpath = ['{SUPPORT}']\n",
        "tests/conftest.py": (TESTS / "conftest.py").read_text(),
        "tests/test_toy.py": "import pytest\n"
        "@pytest.mark.parametrize('a', [1, 2, True])\n"
        "@pytest.mark.parametrize('b', [{}, {}])\n"
        "@pytest.mark.parametrize('c', [0.5, 1.5])\n"
        "def test_sum(a, b, c): pass\n",
        "tests/builds/test_wheel.py": "def test_wheel(): pass\n",
        "tests/test_backend.py": "import pytest\n"
        "@pytest.mark.parametrize('backend', ['cpu', 'emulated', 'triton', 'none'])\n"
        "def test_step(backend): pass\n",
        "tests/test_bench.py": "def test_bench(): pass\n",
        "tests/test_backends.py": "def test_without_the_compiled_module(): pass\ndef test_more(): pass\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    marked = {
        "emulated": ["test_step[emulated]"],
        "build": ["test_wheel"],
        "slow": ["test_bench", "test_without_the_compiled_module"],
    }
    runs = [*([f"--tier={tier}"] for tier in TIERS), *(["-m", marker] for marker in marked)]
    of_runs = _collected(tmp_path, *runs)
    found = dict(zip(TIERS, of_runs, strict=False))
    assert [len([n for n in names if n.startswith("test_sum")]) for names in found.values()] == [3, 6, 12]
    for slow in ("test_bench", "test_without_the_compiled_module"):
        assert [slow in names for names in found.values()] == [False, True, True]
    assert all("test_more" in names for names in found.values())
    assert list(map(sorted, of_runs[len(TIERS) :])) == list(marked.values())
