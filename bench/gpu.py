"""Times optimizer steps on an NVIDIA GPU beside torch's fused ones, adamp and timm: tables, a CSV, and a table for the
README. Every contender is checked against onepass's reference first."""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import date

import torch

from check import absentees, check_all
from gpu_cases import ALL, cases
from gpu_clock import FULL, QUICK, Gpu
from gpu_report import FIELDS, LEGEND, add_predictions, case_table, goals, markdown_table, rows_of
from harness import time_case
from program import csv_path, parser_of, say, say_about, say_goals, since
from rehearsal import Rehearsal
from results_file import Row, write_csv
from tables import ROOT, shown

COPY_NUMEL = 2**30  # 4 GiB, read once and written once


def arguments(given: list[str]) -> argparse.Namespace:
    known = sorted({case.name for quick in (False, True) for case in cases(quick)})
    parser = parser_of(__doc__, known, "the CSV goes")
    parser.add_argument(
        "--rehearse", action="store_true", help="on the CPU, as --quick: shows that the bench runs, without a GPU"
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
    clock = Rehearsal() if args.rehearse else Gpu(QUICK if args.quick else FULL)

    best, usual = clock.copy_bandwidth(COPY_NUMEL // 1024 if args.quick else COPY_NUMEL)
    clock.release()
    about: Row = {
        **clock.about(),
        "date": date.today().isoformat(),
        "copy_best_gb_per_s": round(best / 1e9, 1),
        "copy_gb_per_s": round(usual / 1e9, 1),
    }
    say_about(about)
    say(
        f"The ceiling: a copy on the device moves {usual / 1e9:,.0f} GB/s (median; best {best / 1e9:,.0f}), read and written."
    )
    absent = absentees(ALL, say)
    chosen = [case.without(absent) for case in cases(args.quick) if not args.case or case.name in args.case]
    wrong, right = check_all(chosen, clock, say)
    say(f"Checked against the reference: {len(right)} contenders. {since(started)}")

    path, rows, predicted = csv_path(args, about), [], shown(ROOT / "docs/prediction.md", "predicted")
    for case in (case.without(wrong) for case in chosen):
        own = rows_of(case, time_case(case, clock, args.seed), usual, clock.cache_bytes)
        add_predictions(own, str(about["device"]), predicted)
        say(f"\n{case_table(case, own, clock.cache_bytes)}\n{since(started)}")
        rows += own
        write_csv(rows, about, FIELDS, path)

    say_goals(goals(rows), args.quick)
    say(f"\nWritten: {os.path.relpath(path)}. {since(started)}\n\n{markdown_table(rows)}\n\n{LEGEND}")


if __name__ == "__main__":
    main(sys.argv[1:])
