"""`make mutate` on a package of two functions: mutants of the tested one are killed, those of the other survive."""

from __future__ import annotations

import re
import subprocess
from difflib import unified_diff
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="make mutate installs it")
pytest.importorskip("universalmutator")
pytest.importorskip("pytest_timeout")

from mutate import run
from mutate.mutants import between, in_random_order


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    files = {
        "python/onepass/toy.py": "def add(a, b):\n    return a + b\n\n\ndef unseen(a, b):\n    return a - b\n",
        "tests/test_toy.py": "import toy\n\n\ndef test_add():\n    assert toy.add(2, 3) == 5\n",
        "tests/support/mutate/tests.toml": 'first = ["test_toy"]\nnever = []\nmap = []\n',
        "tests/support/mutate/equivalent_mutants.toml": "mutant = []\n",
        "tests/conftest.py": "def pytest_addoption(parser):\n    parser.addoption('--tier')\n",
        ".gitignore": "build/\n",
        "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["python/onepass"]\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def test_killed_and_surviving_mutants(toy: Path) -> None:
    before = (toy / "python/onepass/toy.py").read_text()
    results = run.main(toy, ["--count", "10"])
    assert {r["line"]: (r["verdict"], r["by"]) for r in results} == {
        2: ("killed", "tests/test_toy.py::test_add"),
        6: ("survived", ""),
    }
    assert (toy / "python/onepass/toy.py").read_text() == before
    assert run.main(toy, ["--count", "10", "--resume"]) == results
    survivor = next(r for r in results if r["verdict"] == "survived")
    listed = "\n".join(f"{k} = {str(survivor[k]).strip()!r}" for k in ("file", "old", "new"))
    (toy / "tests/support/mutate/equivalent_mutants.toml").write_text(
        f'[[mutant]]\n{listed}\nreason = "nobody calls it"\n'
    )
    assert [r["line"] for r in run.main(toy, ["--count", "10"])] == [2]


def test_patches(toy: Path) -> None:
    file = "python/onepass/toy.py"
    source = (toy / file).read_text()
    folder = toy / "build/bugs"
    folder.mkdir(parents=True)
    for name, old, new in (("seen", "a + b", "a + 2 * b"), ("unseen", "a - b", "b - a")):
        texts = [text.splitlines(keepends=True) for text in (source, source.replace(old, new))]
        (folder / f"{name}.patch").write_text("".join(unified_diff(*texts, f"a/{file}", f"b/{file}")))
    results = run.main(toy, ["--patches", str(folder)])
    assert {r["line"]: r["verdict"] for r in results} == {2: "killed", 6: "survived"}
    assert (toy / file).read_text() == source


def test_comments_docstrings_and_annotations_are_not_mutated(tmp_path: Path) -> None:
    path = tmp_path / "python/onepass/toy.py"
    path.parent.mkdir(parents=True)
    path.write_text('def f(x: int | None = 1) -> int | float:\n    """1 + 1"""\n    return x  # 1 + 1\n')
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc/toy.h").write_text("// a + b\nint f(int a, int b) {\n  return a + b;  // + 1\n}\n")
    for seed in range(20):
        for mutant in in_random_order(tmp_path, seed):
            code = [re.sub(r"//.*|#.*|\s", "", text) for text in (mutant.old, mutant.new)]
            assert code[0] != code[1]
            assert mutant.file.startswith("csrc") or "int | None = " in mutant.new


def test_mutant_is_applied_at_its_own_location() -> None:
    old = "a\nb\nb\nc\n"
    for new in ("a\nb\nx\nc\n", "a\nb\nb\nb\nc\n", "a\nb\nc\n", "x\nb\nb\nc\n", "a\nb\nb\nc\nd\n"):
        assert between("f", old, new).applied(old) == new
