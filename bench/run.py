"""Times optimizer steps beside torch.optim's fused ones, the adamp package and timm: tables, a CSV and a figure of it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "docs/figures"))

import draw as figures

import onepass
import tables
from blocks import traffic as traffic_table
from check import absentees, check_all
from cpu_cases import MEMORY, cases, memory_shapes
from cpu_clock import Wall
from cpu_report import FIELDS, memory_row, memory_table, time_rows, time_table
from harness import time_case
from memory import measure
from predict import GPUS, TITLE, prediction_rows, prediction_table
from program import RESULTS, csv_path, parser_of, say, say_about, say_goals, since
from results_file import DIRTY, Row, write_csv
from traffic import traffic_rows


def arguments(known: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, [*known, "memory", "traffic", "scale"], "CSV and figures go")
    parser.add_argument(
        "--readme",
        action="store_true",
        help="run everything from a clean commit, and write the README's tables from it; needs a quiet machine",
    )
    args = parser.parse_args()
    if args.readme and (args.case or args.quick or args.out != RESULTS):
        parser.error(
            "--readme runs every case in full and writes to bench/results: leave out --case, --quick and --out"
        )
    return args


def main() -> None:
    args = arguments([case.name for case in cases()])
    if args.quick:
        torch.set_num_threads(1)  # two threads on steps this short wait for each other whenever the machine is busy
    started = time.perf_counter()
    clock = Wall()
    about = clock.about()
    say_about(about)
    chosen = [case for case in cases(args.quick) if not args.case or case.name in args.case]
    absent = absentees({c.name: c for case in chosen for c in case.contenders}.values(), say)
    if args.readme and (reason := not_for_the_readme(about, absent)):
        sys.exit(reason)
    warn(about)

    chosen = [case.without(absent) for case in chosen]
    if check_all(chosen, clock, say)[0]:
        sys.exit("Nothing is timed.")
    path = csv_path(args, about)
    rows: list[Row] = []
    goals = []
    for case in chosen:
        own, found = time_rows(case, time_case(case, clock, args.seed))
        say(f"\n{time_table(case, own)}\n{since(started)}")
        rows += own
        goals += found
        write_csv(rows, about, FIELDS, path)
    if not args.case or "memory" in args.case:
        pairs = [
            memory_row(c.name, measure(c.name, args.quick), memory_shapes(args.quick))
            for c in MEMORY
            if c.name not in absent
        ]
        own = [row for row, _ in pairs]
        say(f"\n{memory_table(own)}\n{since(started)}")
        rows += own
        goals += [goal for _, found in pairs for goal in found]
        write_csv(rows, about, FIELDS, path)

    counted = None
    if not args.case or "traffic" in args.case:
        counted = traffic_rows()
        say(f"\nBytes per parameter, counted:\n{traffic_table(counted)}{since(started)}")
        predicted = prediction_rows(gpu for gpu in GPUS if gpu.name in ("H100", "H200"))
        say(f"\n{TITLE} (docs/prediction.md):\n{prediction_table(predicted)}\n{since(started)}")

    if not args.case or "scale" in args.case:
        # A program of its own, which has torch's fake process group.
        program = Path(__file__).with_name("scale.py")
        subprocess.run([sys.executable, str(program), *["--quick"] * args.quick], check=True)

    if rows:
        say_goals(goals, args.quick)
    written = [path] if rows else []
    if figures.BARS.keys() & {case.name for case in chosen}:
        written += figures.draw("bench", path)
    if written:
        say(f"\nWritten: {', '.join(os.path.relpath(p) for p in written)}. {since(started)}")
    if args.readme:
        tables.write(use=path, counted=counted)
        say("Written: the tables of the README and docs/")


def warn(about: Row) -> None:
    if about["commit"].endswith(DIRTY):
        say("Files differ from the commit: the CSV says so, and is not for the README.")
    if about["backend"] != "cpu":
        say(f"The reference is timed: {onepass.backends()['cpu']}")
    if about["load"] and about["load"] > 0.5:
        say(
            f"Other programs are running (load {about['load']}). torch shares a step evenly among its threads and waits for"
            " the slowest; onepass hands out pieces. So ratios measured now are too good to quote."
        )


def not_for_the_readme(about: Row, absent: set[str]) -> str | None:
    """Why a measurement made now cannot go into the README, or None."""
    if not about["commit"]:
        return "--readme records the commit that was measured, and there is no git repository here."
    if about["commit"].endswith(DIRTY):
        return f"--readme measures a clean commit, and files differ from {about['commit']}: commit them first."
    if absent:
        return "--readme shows the optimizers of adamp and timm: `pip install adamp`, `pip install --no-deps timm`."
    return None


if __name__ == "__main__":
    main()
