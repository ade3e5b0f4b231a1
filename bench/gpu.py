"""Times optimizer steps on an NVIDIA GPU beside torch's fused ones, adamp and timm: tables, a CSV, and a table for the
README. Every contender is checked against onepass's reference first."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu_cases import ALL, Case, Contender, cases, missing
from gpu_device import Gpu, Rehearsal
from gpu_harness import QUICK, Effort, attempt, check, copy_bandwidth, time_case
from gpu_report import FIELDS, LEGEND, case_table, goals, markdown_table, rows_of
from results_file import Row, write_csv

COPY_NUMEL = 2**30  # 4 GiB, read once and written once


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    results = Path(__file__).resolve().parent / "results"
    known = sorted({case.name for quick in (False, True) for case in cases(quick)})
    parser.add_argument("--case", action="append", choices=known, help="only this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="small tensors and few rounds: no figures to quote")
    parser.add_argument(
        "--rehearse", action="store_true", help="on the CPU, as --quick: shows that the bench runs, without a GPU"
    )
    parser.add_argument("--seed", type=int, default=0, help="of parameters and gradients (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=results, help="where the CSV goes (default: results beside this file)"
    )
    args = parser.parse_args(given)
    args.quick |= args.rehearse
    return args


def main(given: list[str]) -> None:
    args = arguments(given)
    started = time.perf_counter()
    if not args.rehearse and (reason := Gpu.missing()):
        sys.exit(reason)
    if args.rehearse:
        torch.set_num_threads(1)  # two threads on steps this short wait for each other
    place = Rehearsal() if args.rehearse else Gpu()
    effort = QUICK if args.quick else Effort()

    best, usual = copy_bandwidth(place, COPY_NUMEL // 1024 if args.quick else COPY_NUMEL)
    place.release()
    about: Row = {
        **place.about(),
        "date": date.today().isoformat(),
        "copy_best_gb_per_s": round(best / 1e9, 1),
        "copy_gb_per_s": round(usual / 1e9, 1),
    }
    say(", ".join(f"{key} {value}" for key, value in about.items()))
    say(
        f"The ceiling: a copy on the device moves {usual / 1e9:,.0f} GB/s (median; best {best / 1e9:,.0f}), read and written."
    )
    absent = absentees()
    chosen = [without(case, absent) for case in cases(args.quick) if not args.case or case.name in args.case]
    wrong = check_all(chosen, place)
    say(f"Checked against the reference: {len(wrong[1])} contenders. {since(started)}")

    path, rows = csv_path(args, about), []
    for case in (without(case, wrong[0]) for case in chosen):
        timings = time_case(case, place, effort, args.seed)
        own = rows_of(case, timings, usual, place.cache_bytes)
        say(f"\n{case_table(case, own, place.cache_bytes)}\n{since(started)}")
        rows += own
        write_csv(rows, about, FIELDS, path)

    say("\nTo reach:" + " (--quick: meant for a full run)" * args.quick)
    for goal in goals(rows):
        say(f"  {goal}")
    say(f"\nWritten: {os.path.relpath(path)}. {since(started)}\n\n{markdown_table(rows)}\n\n{LEGEND}")


def say(words: str) -> None:
    print(words, flush=True)


def since(started: float) -> str:
    return f"[{time.perf_counter() - started:.0f} s]"


def absentees() -> set[str]:
    """The contenders that are not installed, each told in a line."""
    reasons = {contender.name: missing(contender) for contender in ALL}
    for name, reason in reasons.items():
        if reason:
            say(f"Not timed: {name}: {reason}")
    return {name for name, reason in reasons.items() if reason}


def without(case: Case, names: set[str]) -> Case:
    kept = tuple(contender for contender in case.contenders if contender.name not in names)
    return Case(**{**vars(case), "contenders": kept})


def check_all(chosen: list[Case], place: Any) -> tuple[set[str], dict[str, float]]:
    """Names of the contenders that compute something else, each told in a line, and how far off the others are."""
    wrong: set[str] = set()
    right: dict[str, float] = {}
    pairs: dict[tuple[str, Any], Contender] = {
        (c.name, case.dtype_of(c)): c for case in chosen for c in case.contenders
    }
    for (name, dtype), contender in pairs.items():
        for kind in ("random", "tangent"):
            off, failed = attempt(partial(check, contender, dtype, kind, place))
            if failed:
                say(f"Not timed: {name}: {failed}")
                wrong.add(name)
            else:
                right[name] = max(right.get(name, 0.0), off)
    return wrong, {name: off for name, off in right.items() if name not in wrong}


def csv_path(args: argparse.Namespace, about: Row) -> Path:
    """<date>-<device>.csv, with the names of the cases where not all are run."""
    args.out.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", str(about["device"]).lower()).strip("-")
    return args.out / ("-".join([about["date"], device, *(args.case or []), *["quick"] * args.quick]) + ".csv")


if __name__ == "__main__":
    main(sys.argv[1:])
