"""What both benches leave behind: rows of a CSV, and where the code that was measured comes from."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def commit() -> str:
    """The commit that is checked out, with a + if files differ from it; empty outside a git repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except OSError:
        return ""


def write_csv(rows: list[Row], about: Row, fields: tuple[str, ...], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
