"""Every figure of the repository (docs/figures/draw.py) is drawn from its CSV file, light and dark, and stands on a page."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from paths import ROOT

pytest.importorskip("matplotlib")
sys.path.append(str(ROOT / "docs/figures"))
import draw as figures

DRAWN = figures.of_the_repository()
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
each_figure = pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.stem)


def test_every_figure_has_a_csv_file() -> None:
    assert set(DRAWN.values()) == set(figures.FIGURES)


@each_figure
def test_figures_are_drawn_from_their_csv_files(path: Path) -> None:
    """By its digest, as another version of matplotlib draws other bytes."""
    for suffix in ("", "-dark"):
        svg = path.with_name(f"{path.stem}{suffix}.svg").read_text(encoding="utf-8")
        assert f"<dc:source>{path.name} {figures.digest(path)}</dc:source>" in svg, (
            "`python docs/figures/draw.py` draws it"
        )


@each_figure
def test_figures_are_shown(path: Path) -> None:
    """In both themes, with words for who cannot see them."""
    found = re.compile(
        rf'<source media="\(prefers-color-scheme: dark\)" srcset="([^"]*{path.stem}-dark\.svg)">\n'
        rf'  <img src="([^"]*{path.stem}\.svg)" alt="[^"]{{20,}}">'
    )
    shown = [(page, match) for page in PAGES for match in found.finditer(page.read_text(encoding="utf-8"))]
    assert shown, f"no page shows {path.stem}"
    for page, match in shown:
        assert all((page.parent / match[i]).is_file() for i in (1, 2)), page


@each_figure
def test_a_figure_shows_what_is_in_the_csv(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes when it is drawn again, other bytes when any column of numbers is other."""
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    name = DRAWN[path]

    def drawn() -> list[str]:
        return [re.sub("<dc:source>.*</dc:source>", "", file.read_text()) for file in figures.draw(name, copy)]

    first, dark = drawn()
    assert first != dark
    monkeypatch.setattr(figures, "THEMES", {"": ("light",)})
    assert drawn() == [first]
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = (
        ["ratio"] if name == "bench" else [c for c, x in rows[-1].items() if re.fullmatch(r"-?[\d.]+(e-?\d+)?", x)]
    )
    assert columns
    for column in columns:
        if column in ("seed", "loss_scale"):
            continue
        changed = [{**row, column: f"{1.25 * float(row[column] or 0):.4g}"} for row in rows]
        figures.write_csv(copy, changed)
        assert drawn() != [first], column


def test_the_demo_writes_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short trainings: its CSV files have the columns of the repository's."""
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import demo
    import demo_norm
    import demo_scale
    from demo_data import digits

    data = digits(torch.device("cpu"))
    monkeypatch.setattr(demo_scale, "BLOCKS", 2)
    monkeypatch.setattr(figures, "THEMES", {"": ("light",)})
    runs = {
        "norm": {name: [demo_norm.train(name, 1, 0, "cpu", data)] for name in demo_norm.OPTIMIZERS},
        "scale": {
            name: {wd: demo_scale.train(name, wd, 1, [0], "cpu", data) for wd in decays}
            for name, decays in demo_scale.DECAYS.items()
        },
    }
    names = demo.draw(runs, tmp_path)
    assert len(names) == 3 and all((tmp_path / name).stat().st_size > 10_000 for name in names)
    for path in DRAWN:
        if (tmp_path / path.name).is_file():
            own, committed = ((tmp_path / path.name).open().readline(), path.open().readline())
            assert own == committed
    assert {row["gate"] for row in demo_norm.gate_rows(runs["norm"])[:-14]} == {"channel"}
