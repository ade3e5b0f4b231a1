"""Figures in the README and docs/ equal those of its CSV files and of counted traffic; the CSV files were measured on commits."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT

sys.path.append(str(ROOT / "bench"))
import blocks
import tables
from results_file import commit

PAGES = {page: page.read_text(encoding="utf-8") for page in tables.PAGES}
SOURCES = tables.sources("".join(PAGES.values()))
README, MEASURED = PAGES[tables.README], PAGES[tables.MEASURED]
SECTION = README[README.index("## Measured\n") : README.index("## Try it\n")]


def git(*arguments: str, folder: Path = ROOT) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


# ------------------------------------------------------------------ figures


def test_tables_match_the_csv_files() -> None:
    for page, text in PAGES.items():
        assert tables.render(text, up=tables.up_from(page)) == text, "write the tables with `make bench-tables`"
    found = {match[1] for text in PAGES.values() for match in tables.BLOCK.finditer(text)}
    assert found == {*blocks.BLOCKS, *blocks.STORED, *blocks.TARGETS, "traffic", *tables.PREDICTED}
    assert not any("quick" in name for name in SOURCES)


@pytest.mark.parametrize("text", [SECTION, MEASURED], ids=["README", "measured"])
def test_pages_have_only_generated_figures(text: str) -> None:
    """No ratios, percentages or times outside of the generated tables, since only those are compared."""
    words = tables.BLOCK.sub("", text)
    assert len(words) < len(text) and not re.findall(r"\d+\.\d+|\d+ ?%|\d+ ?x\b|\d+ ?[mun]s\b", words)


def changed(text: str, number: int) -> str:
    """Changes the last digit of one figure, given its index among those of all cells."""
    figures = list(re.finditer(r"(?<=\| )[\d.]+(?=%? \|)", text))
    place = figures[number % len(figures)].end() - 1
    return f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}"


@pytest.mark.parametrize("original", [tables.README, tables.MEASURED], ids=lambda page: page.name)
def test_a_figure_edited_by_hand_is_detected(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits one figure of each table; rendering restores it."""
    page = tmp_path / original.relative_to(ROOT)
    page.parent.mkdir(exist_ok=True)
    text, up = PAGES[original], tables.up_from(page)
    monkeypatch.setattr(tables, "PAGES", (page,))
    for match in tables.BLOCK.finditer(text):
        if match[1] not in ("spread", "traffic"):
            edited = text.replace(match[3], changed(match[3], -1))
            assert edited != text
            page.write_text(edited, encoding="utf-8")
            with pytest.raises(SystemExit, match="differs from its CSV files"):
                tables.main(["--check", "--no-traffic"])
            assert tables.render(edited, up=up) == text
    page.write_text(text, encoding="utf-8")
    tables.main(["--check", "--no-traffic"])


@pytest.mark.parametrize("name", SOURCES)
def test_a_figure_changed_in_the_csv_is_detected(name: str, tmp_path: Path) -> None:
    for source in SOURCES:
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, tmp_path / source)
    path = tmp_path / name
    assert tables.render(MEASURED, root=tmp_path, up="../") == MEASURED
    rows = tables.read(path)
    for row in rows:
        if row["ratio"] and row["ratio"] != "1.0":
            row["ratio"] = str(float(row["ratio"]) + 0.01)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert tables.render(MEASURED, root=tmp_path, up="../") != MEASURED


def test_ratio_to_a_baseline() -> None:
    row = {"baseline": "a", "ratio": "1.06", "target": "<= 1.3 x b; <= 2 x c", "measured": "1.2000 x b; 3 x c",
           "reached": "yes; no"}  # fmt: skip
    assert blocks.ratio_to(row, "a") == 1.06 and blocks.ratio_to(row, "b") == 1.2 and blocks.ratio_to(row, "c") == 3
    assert blocks.ratio_to(row, "d") is None
    rows = [{**row, "case": "case", "contender": "e"}]
    assert [blocks.cell(rows, "case", "e", to) for to in "abcd"] == ["1.06", "1.20", "3.0", ""]


def test_switch_to_another_csv_file() -> None:
    """Then all markers name the new file, and its description is printed once."""
    page = "".join(f"<!-- bench: {name} from old.csv -->\nold\n<!-- /bench -->\n" for name in ("memory", "spread"))
    found = tables.render(page, use=SOURCES[0])
    assert tables.sources(found) == [SOURCES[0]] and found.count("Measured on ") == 1 and "old" not in found
    with pytest.raises(ValueError, match=r"`<!-- bench: nothing from a\.csv -->` names none of"):
        tables.render("<!-- bench: nothing from a.csv -->\n<!-- /bench -->")


# ------------------------------------------------------------------ traffic

(TRAFFIC,) = (match[3] for match in tables.BLOCK.finditer(MEASURED) if match[1] == "traffic")
TRAFFIC_LINES = TRAFFIC.splitlines()[2:]


@pytest.mark.parametrize("number", range(len(TRAFFIC_LINES)))
def test_bytes_match_the_counted_traffic(number: int) -> None:
    pytest.importorskip("adamp")
    from traffic import LINES

    assert len(LINES) == len(TRAFFIC_LINES)
    assert blocks.traffic([LINES[number].count()]).splitlines()[2] == TRAFFIC_LINES[number]


# ------------------------------------------------------------------ commits


def why_no_history() -> str:
    """Why commits cannot be looked up, e.g. a source distribution or a shallow clone; empty if they can."""
    try:
        if Path(git("rev-parse", "--show-toplevel")) != ROOT:
            return "this is not a git repository of its own"
        return "the clone is shallow" if git("rev-parse", "--is-shallow-repository") == "true" else ""
    except (OSError, subprocess.CalledProcessError):
        return "there is no git repository here"


@pytest.mark.parametrize("name", SOURCES)
def test_measurements_are_of_a_commit(name: str) -> None:
    """All rows are of one clean commit, an ancestor of HEAD."""
    (measured,) = {row["commit"] for row in tables.read(ROOT / name)}
    assert re.fullmatch("[0-9a-f]{7,40}", measured), (
        f"{name} was measured on changed files: measure it again from a commit"
    )
    if reason := why_no_history():
        pytest.skip(reason)
    git("merge-base", "--is-ancestor", measured, "HEAD")


def test_changed_files_are_marked(tmp_path: Path) -> None:
    assert commit(tmp_path) == ""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    git("init", "-q", folder=tmp_path)
    code = tmp_path / "code"
    code.write_text("1")
    git("add", "code", folder=tmp_path)
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first", folder=tmp_path)
    head = git("rev-parse", "HEAD", folder=tmp_path)
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    assert commit(results) == ""  # a folder of another project's repository
    (results / "earlier.csv").write_text("")
    assert commit(tmp_path) == head[:12]
    code.write_text("2")
    assert commit(tmp_path) == f"{head[:12]}+dirty"
    git("checkout", "-q", "code", folder=tmp_path)
    (tmp_path / "new").write_text("")
    assert commit(tmp_path) == f"{head[:12]}+dirty"
