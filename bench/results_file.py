"""The CSV file of a bench run, and the commit of the code that was measured."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path
from typing import Any

Row = dict[str, Any]


DIRTY = "+dirty"


def commit(folder: Path = Path(__file__).parents[1]) -> str:
    """The commit of the repository in `folder`, with "+dirty" if files differ from it; empty where there is none.

    Earlier results do not count as a difference.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.resolve():
            return ""
        changed = git("status", "--porcelain", "--", ".", ":!bench/results")
        return git("rev-parse", "--short=12", "HEAD") + DIRTY * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return ""


def write_csv(rows: list[Row], about: Row, fields: tuple[str, ...], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
