"""Times optimizer steps beside torch.optim's fused ones, the adamp package and timm: tables, a CSV and a figure."""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import onepass
import tables
from cases import MEMORY, TIMM_ADAMP, Case, cases, memory_shapes
from harness import WARM, batches, check, time_case
from memory import measure
from report import FIELDS, figure, machine, memory_row, memory_table, target_table, time_rows, time_table
from results_file import DIRTY, Row, write_csv
from traffic import traffic_rows, traffic_table


def arguments(known: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    results = Path(__file__).resolve().parent / "results"
    parser.add_argument(
        "--case", action="append", choices=[*known, "memory", "traffic"], help="only this one; may be repeated"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small tensors and few rounds: a smoke run, no figures to quote"
    )
    parser.add_argument(
        "--readme",
        action="store_true",
        help="run everything from a clean commit, and write the README's tables from it; needs a quiet machine",
    )
    parser.add_argument("--seed", type=int, default=0, help="of parameters and gradients (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=results, help="where CSV and PNG go (default: results beside this file)"
    )
    args = parser.parse_args()
    if args.readme and (args.case or args.quick or args.out != results):
        parser.error(
            "--readme runs every case in full and writes to bench/results: leave out --case, --quick and --out"
        )
    return args


def main() -> None:
    args = arguments([case.name for case in cases()])
    if args.quick:
        torch.set_num_threads(1)  # two threads on steps this short wait for each other whenever the machine is busy
    started = time.perf_counter()
    console = Console()
    about = machine()
    console.print(", ".join(f"{key} {value}" for key, value in about.items() if value != ""), highlight=False)
    if args.readme and (reason := not_for_the_readme(about)):
        sys.exit(reason)
    if about["commit"].endswith(DIRTY):
        console.print("[yellow]Files differ from the commit: the CSV says so, and is not for the README.[/]")
    if not TIMM_ADAMP:
        console.print("Not timed: timm's AdamP and SGDP: timm is not installed.", highlight=False)
    if about["backend"] != "cpu":
        console.print(f"[yellow]The reference is timed: {onepass.backends()['cpu']}[/]")

    if about["load"] and about["load"] > 0.5:
        console.print(
            f"[yellow]Other programs are running (load {about['load']}). torch shares a step evenly among its threads and "
            "waits for the slowest; onepass hands out pieces. So ratios measured now are too good to quote.[/]"
        )

    chosen = [case for case in cases(args.quick) if not args.case or case.name in args.case]
    path = csv_path(args, about)
    rows: list[Row] = []
    for case in chosen:
        own = run_case(console, case, args.seed)
        console.print(time_table(case, own))
        rows += own
        write_csv(rows, about, FIELDS, path)
    if not args.case or "memory" in args.case:
        own = run_memory(console, args.quick)
        console.print(memory_table(own))
        rows += own
        write_csv(rows, about, FIELDS, path)

    counted = None
    if not args.case or "traffic" in args.case:
        with console.status("counting bytes"):
            counted = traffic_rows()
        console.print(traffic_table(counted))

    if rows:
        console.print(target_table(rows))
    if args.quick:
        console.print(
            "[yellow]--quick times small tensors in one thread: the ratios to reach are meant for a full run.[/]"
        )
    written = [path] if rows else []
    if chosen:
        written.append(path.with_suffix(".png"))
        figure({case.name: case.title for case in chosen}, rows, about, written[-1])
    if written:
        console.print(f"Written: {', '.join(os.path.relpath(p) for p in written)}", highlight=False, soft_wrap=True)
    if args.readme:
        tables.write(use=path, counted=counted)
        console.print("Written: the tables of README.md and docs/targets.md", highlight=False)
    console.print(f"Took {time.perf_counter() - started:.0f} s.", highlight=False)


def not_for_the_readme(about: Row) -> str | None:
    """Why a measurement made now cannot go into the README, or None."""
    if not about["commit"]:
        return "--readme records the commit that was measured, and there is no git repository here."
    if about["commit"].endswith(DIRTY):
        return f"--readme measures a clean commit, and files differ from {about['commit']}: commit them first."
    if not TIMM_ADAMP:
        return "--readme shows timm's optimizers, and timm is not installed: `pip install --no-deps timm`."
    return None


def run_case(console: Console, case: Case, seed: int) -> list[Row]:
    """Checks every contender, times them, and frees their tensors."""
    for contender in case.contenders:
        check(case, contender)
    columns = (TextColumn("{task.description:<20}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(case.name, total=len(batches(case)) * (case.rounds + WARM))
        timings = time_case(case, seed, lambda: progress.advance(task))
    gc.collect()
    return time_rows(case, timings)


def run_memory(console: Console, quick: bool) -> list[Row]:
    rows = []
    for contender in MEMORY:
        with console.status(f"memory of {contender.name}"):
            share = measure(contender.name, quick)
        rows.append(memory_row(contender.name, share, memory_shapes(quick), aimed=contender.name.startswith("onepass")))
    return rows


def csv_path(args: argparse.Namespace, about: Row) -> Path:
    """<date>-<device>.csv, with the names of the cases where not all are run."""
    args.out.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", str(about["device"]).lower()).strip("-")
    parts = [about["date"], device, *(args.case or []), *(["quick"] if args.quick else [])]
    return args.out / ("-".join(parts) + ".csv")


if __name__ == "__main__":
    main()
