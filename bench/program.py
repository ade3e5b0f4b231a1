"""Common part of both programs: arguments, the name of the CSV file, and unbuffered output."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable
from pathlib import Path

from results_file import Row

RESULTS = Path(__file__).resolve().parent / "results"


def parser_of(description: str | None, known: Iterable[str], written: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--case", action="append", choices=[*known], help="only this one; may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help="small tensors and few rounds: a smoke run, no figures to quote"
    )
    parser.add_argument("--seed", type=int, default=0, help="of parameters, gradients and the order (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help=f"where {written} (default: results beside this file)"
    )
    return parser


def csv_path(args: argparse.Namespace, about: Row) -> Path:
    """<date>-<device>.csv, with the names of the cases where not all are run."""
    args.out.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", str(about["device"]).lower()).strip("-")
    return args.out / ("-".join([about["date"], device, *(args.case or []), *["quick"] * args.quick]) + ".csv")


def say(words: str) -> None:
    print(words, flush=True)


def say_about(about: Row) -> None:
    say(", ".join(f"{key} {value}" for key, value in about.items() if value != ""))


def since(started: float) -> str:
    return f"[{time.perf_counter() - started:.0f} s]"


def say_goals(goals: Iterable[object], quick: bool) -> None:
    say("\nTo reach:" + " (--quick: meant for a full run)" * quick)
    for goal in goals:
        say(f"  {goal}")
