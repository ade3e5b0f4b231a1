"""onepass on real data: what two papers claim, measured on scikit-learn's digits.

(a) SGD, SGDP, AdamW and AdamP on a conv net with batch norm; (b) Adam-l2, AdamW and AdamProx on a deep net without
normalisation whose loss is multiplied by 1, 10 and 100; then the time of an optimizer step. Prints tables and which
claims showed, and draws figures.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[1] / "docs/figures"))

import draw as figures

import demo_norm
import demo_scale
import onepass
from demo_data import digits
from demo_jobs import Job, run_jobs
from demo_tables import norm_claims, norm_table, scale_claims, scale_table, time_table
from demo_timing import time_steps

HERE = Path(__file__).resolve().parent
MODEST = (
    "A gain in accuracy that does not show on 899 test images of digits is no evidence against it: the papers trained on "
    "CIFAR-10, ImageNet and larger."
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--epochs", type=int, default=20, help="epochs of part (a); part (b) takes 0.7 of it (default: 20)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default: 3)")
    parser.add_argument(
        "--out", type=Path, default=HERE / "figures", help="where the figures go (default: beside this file)"
    )
    parser.add_argument("--backend", default="auto", help="backend of onepass (default: auto)")
    chosen = parser.parse_args()
    if chosen.epochs < 2 or chosen.seeds < 1:
        parser.error("--epochs must be at least 2 and --seeds at least 1")
    return chosen


def main() -> None:
    args = arguments()
    started = time.perf_counter()
    console = Console()
    device = torch.device("cuda" if torch.cuda.is_available() and args.backend != "cpu" else "cpu")
    backend = announce(console, args.backend, device)
    runs, times = measure(console, args, device)

    console.print()
    console.print(norm_table(runs["norm"]))
    bullets(console, norm_claims(runs["norm"]))
    console.print(scale_table(runs["scale"]))
    bullets(console, [*scale_claims(runs["scale"], runs["bits"]), MODEST])
    for net, own in times.items():
        console.print(time_table(net, own, backend))
    names = draw(runs, args.out)
    console.print(f"\nFigures in {os.path.relpath(args.out)}: {', '.join(names)}", highlight=False)
    console.print(f"Took {time.perf_counter() - started:.0f} s.", highlight=False)


def announce(console: Console, asked: str, device: torch.device) -> str:
    """Says what runs where; returns the name of the backend."""
    reasons = onepass.backends()
    fast = reasons.get(device.type, "there is none for this device") is None
    backend = asked if asked != "auto" else device.type if fast else "reference"
    # Said once and here, instead of by each process.
    warnings.filterwarnings("ignore", message="onepass: stepping with the slow reference")
    console.print(f"onepass {onepass.__version__}, torch {torch.__version__}, {device}, backend {backend}")
    if asked == "auto" and not fast:
        console.print(f"[yellow]No fast backend: {reasons.get(device.type)}[/]")
    return backend


def measure(console: Console, args: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs everything under one progress bar: what each training left behind, and the step times."""
    seeds = list(range(args.seed, args.seed + args.seeds))
    jobs = [
        *demo_norm.jobs(args.epochs, seeds, args.backend),
        *demo_scale.jobs(max(1, 7 * args.epochs // 10), seeds, args.backend),
        *demo_scale.bit_jobs(args.seed, args.backend),
    ]
    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=len(jobs) + 2)
        results = {}
        for job, result in run_jobs(jobs, device):
            results[job.key] = result
            progress.update(task, advance=1, description=f"done: {job.key[1]}")
        progress.update(task, description="timing the steps")
        times = time_steps(digits(device), args.backend, lambda: progress.advance(task))
    return filed(jobs, results), times


def filed(jobs: list[Job], results: dict[tuple, Any]) -> dict[str, Any]:
    """The results by part: norm runs by optimizer and seed, scale runs by optimizer and decay, bits by optimizer."""
    parts: dict[str, Any] = {"norm": {}, "scale": {}, "bits": {}}
    for part, name, *rest in (job.key for job in jobs):
        result = results[(part, name, *rest)]
        if rest:
            parts[part].setdefault(name, {})[rest[0]] = result
        else:
            parts[part][name] = result
    parts["norm"] = {name: list(by_seed.values()) for name, by_seed in parts["norm"].items()}
    return parts


def bullets(console: Console, lines: list[str]) -> None:
    grid = Table.grid(padding=(0, 1))
    for line in lines:
        grid.add_row(" •", line)
    console.print(grid, "")


def draw(runs: dict[str, Any], folder: Path) -> list[str]:
    """Writes a CSV file for each figure, and the figure from it; returns the names of the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "gates": demo_norm.gate_rows(runs["norm"]),
        "norm-growth": demo_norm.growth_rows(runs["norm"]),
        "loss-scale": demo_scale.scale_rows(runs["scale"]),
    }
    names = []
    for name, rows in files.items():
        figures.write_csv(folder / f"{name}.csv", rows)
        names += [path.name for path in figures.draw(name, folder / f"{name}.csv")]
    return names


if __name__ == "__main__":
    main()
