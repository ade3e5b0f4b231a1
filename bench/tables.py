"""Writes the tables of the README and docs/: from the CSV files that their markers name, by counting bytes, by the model of
predict.py, and from targets.py.

A block of a page between `<!-- bench: NAME from bench/results/FILE.csv -->` and `<!-- /bench -->` is what the function
NAME of BLOCKS makes of that file (see blocks.py). No figure in it is written by hand.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Collection
from pathlib import Path

from blocks import BLOCKS, STORED, TARGETS, Counted, Row, predicted_table, targets, traffic

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PREDICTED = ("predicted", "predicted_triton")  # of predict.py and predict_triton.py
MEASURED = ROOT / "docs/measured.md"
PAGES = (README, MEASURED, ROOT / "docs/targets.md", ROOT / "docs/prediction.md")
BLOCK = re.compile(r"<!-- bench: (\w+)(?: from (\S+\.csv))? -->\n(.*?)<!-- /bench -->", re.DOTALL)


def read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def source(name: str, rows: list[Row], up: str) -> str:
    """The heading of the tables of a file: its machine, versions, commit and figure. `up` leads from the page to the root."""
    about, threads = rows[0], " or ".join(sorted({row["threads"] for row in rows}))
    busy = f" Other programs were running (load {about['load']})." if float(about["load"] or 0) > 0.5 else ""
    return (
        f"Measured on {about['date']}: {about['device']}, {threads} threads, {about['isa']}, torch {about['torch']},"
        f" commit {about['commit']} ([CSV]({up}{name})).{busy}\n\n" + picture(name.removesuffix(".csv"), up)
    )


def picture(name: str, up: str) -> str:
    """The figure of a file, light or dark as the page is; nothing where there is none."""
    if not (ROOT / f"{name}.svg").is_file():
        return ""
    return (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{up}{name}-dark.svg">\n'
        f'  <img src="{up}{name}.svg" alt="Bars: time of a step over that of torch\'s fused step, for models and optimizers">\n'
        "</picture>\n\n"
    )


def sources(text: str) -> list[str]:
    """The CSV files that a page names, in its order."""
    return list(dict.fromkeys(match[2] for match in BLOCK.finditer(text) if match[2]))


def render(
    text: str,
    root: Path = ROOT,
    use: str | None = None,
    switched: Collection[str] = BLOCKS,
    counted: Counted | None = None,
    predicted: dict[str, list[Row]] | None = None,
    up: str = "",
) -> str:
    """The page with its blocks made anew, those of `switched` from the file `use` if that is given, else from the files that the
    markers name.

    The tables of bytes and of predictions are left alone where those are not given. up: what leads from the page to the root.
    """
    seen: set[str] = set()

    def block(match: re.Match[str]) -> str:
        name, file = match[1], match[2]
        if name == "traffic":
            return match[0] if counted is None else f"<!-- bench: traffic -->\n{traffic(counted)}<!-- /bench -->"
        if name in PREDICTED:
            rows = None if predicted is None else predicted[name]
            return match[0] if rows is None else f"<!-- bench: {name} -->\n{predicted_table(rows)}<!-- /bench -->"
        if name in TARGETS:
            return f"<!-- bench: {name} -->\n{targets(TARGETS[name])}<!-- /bench -->"
        made = BLOCKS | STORED
        if name not in made or file is None:
            raise ValueError(
                f"`{match[0].splitlines()[0]}` names none of {', '.join([*made, *TARGETS, *PREDICTED])}, traffic, or no CSV file"
            )
        file = use if use and name in switched else file
        rows = read(root / file)
        head = "" if file in seen else source(file, rows, up)
        seen.add(file)
        return f"<!-- bench: {name} from {file} -->\n{head}{made[name](rows)}<!-- /bench -->"

    return BLOCK.sub(block, text)


def shown(page: Path, name: str) -> list[Row]:
    """The rows of a table of a page."""
    (table,) = (match[3] for match in BLOCK.finditer(page.read_text(encoding="utf-8")) if match[1] == name)
    header, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


def up_from(page: Path) -> str:
    return "../" if page.parent.name == "docs" else ""


def write(
    use: Path | None = None,
    switched: Collection[str] = BLOCKS,
    counted: Counted | None = None,
    predicted: dict[str, list[Row]] | None = None,
) -> None:
    name = None if use is None else use.resolve().relative_to(ROOT).as_posix()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = render(text, use=name, switched=switched, counted=counted, predicted=predicted, up=up_from(page))
        page.write_text(new, encoding="utf-8")


def main(given: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description="Writes the tables of measurements of the README and docs/ from the CSV files they name."
    )
    parser.add_argument("--check", action="store_true", help="write nothing: fail if the tables differ")
    parser.add_argument(
        "--use", type=Path, metavar="CSV", help="take this file of run.py in place of those that the pages name"
    )
    parser.add_argument(
        "--no-traffic",
        action="store_true",
        help="leave out the tables of bytes and of predictions, which take a minute",
    )
    args = parser.parse_args(given)
    counted = predicted = None
    if not args.no_traffic:
        import predict
        import predict_triton
        from traffic import traffic_rows

        counted = traffic_rows()
        predicted = {
            name: module.prediction_rows() for name, module in zip(PREDICTED, (predict, predict_triton), strict=True)
        }
    if not args.check:
        write(use=args.use, counted=counted, predicted=predicted)
        return
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if render(text, counted=counted, predicted=predicted, up=up_from(page)) != text:
            sys.exit(f"{page.name} differs from its CSV files: write its tables with `make bench-tables`, not by hand.")


if __name__ == "__main__":
    main(sys.argv[1:])
