"""The README and docs/: their snippets run, and their links, make targets and tables of arguments are right."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import onepass
from onepass.arguments import OF_TOOLS
from pages import PAGES, text_of
from paths import ROOT
from records import RECORDS

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The code blocks of a language, each with its first line number."""
    text = text_of(page)
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [(1 + text.count("\n", 0, match.start(1)), match[1]) for match in found]


def run(page: Path) -> None:
    """Runs the Python blocks of a page in order, in one namespace."""
    seen: dict[str, Any] = {}
    for line, block in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + block, str(page), "exec"), seen)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_snippets(page: Path) -> None:
    run(page)


def test_the_first_snippet_prints(capsys: pytest.CaptureFixture[str]) -> None:
    run(PAGES[0])
    assert "(32, 8): 'channel'" in capsys.readouterr().out


def test_failing_snippet_is_located_in_its_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError) as failure:
        run(page)
    assert failure.traceback[-1].lineno == 9 and str(failure.traceback[-1].path) == str(page)


@each_page
def test_commands_of_make(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text_of(page), flags=re.MULTILINE))
    assert named <= targets
    assert named or page.name != "README.md"


@each_page
def test_links(page: Path) -> None:
    """Links go to existing files and headings."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        if heading:
            assert heading in headings(there), target


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_the_readme_links_every_page(page: Path) -> None:
    assert f"(docs/{page.name})" in text_of(PAGES[0])


@pytest.mark.parametrize("name", RECORDS)
def test_every_optimizer_has_a_page(name: str) -> None:
    """The page's table of arguments has the defaults of the class."""
    assert f"| [`{name}`](docs/{name.lower()}.md) |" in text_of(PAGES[0])
    assert f"| [`{name}`]({name.lower()}.md) |" in text_of(ROOT / "docs/optimizers.md")
    text = text_of(ROOT / "docs" / f"{name.lower()}.md")
    assert text.startswith(f"# {name}\n")
    lr = {"lr": 1.0} if name == "SGDP" else {}
    defaults = getattr(onepass, name)([torch.zeros(1)], **lr).defaults
    documented = {
        argument: default
        for arguments, default in re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", text, flags=re.MULTILINE)
        for argument in re.findall(r"`(\w+)`", arguments)
        if argument in defaults
    }
    common = {"maximize", "master_weights", "state_dtype", "stochastic_rounding", "seed", "capturable", "backend"}
    common |= {"decouple_lr"} if name in ("Adam", "SGD") else set()
    assert set(documented) == set(defaults) - common
    assert {a: ast.literal_eval(d) for a, d in documented.items() if d != "required"} == {
        argument: value
        for argument, value in defaults.items()
        if argument in documented and documented[argument] != "required"
    }


def test_arguments_that_every_class_takes() -> None:
    """migration.md has a table of the common arguments, and the keys that other tools put into param groups."""
    _, _, section = text_of(ROOT / "docs" / "migration.md").partition("## Arguments that every class takes\n")
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", section.partition("\n## From")[0], flags=re.MULTILINE)
    documented = {name: ast.literal_eval(default) for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    classes = [inspect.signature(record.make).parameters.values() for record in RECORDS.values()]
    takes = [{p.name: p.default for p in each if p.kind is p.KEYWORD_ONLY} for each in classes]
    common = set.intersection(*(set(each) for each in takes))
    assert documented == {name: takes[0][name] for name in common}
    assert all(f"`{key}`" in section for key in OF_TOOLS)
