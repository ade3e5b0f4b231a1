"""Times AdamW and AdamP with weights and moments stored otherwise, on CPU tensors, beside torch's fused AdamW in float32 and, if
it is installed, DeepSpeed's CPUAdam: GPT-2 with one and two threads, where memory is the bound or nearly, and a matrix that stays
in the cache, where computing is. Writes a CSV; `--readme` also the tables made of it.

DeepSpeed compiles its kernel when it is first used, which takes a C++ compiler and ninja.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import cases as c
import onepass
import tables
from cases import Case, Contender
from check import absentees, check_all
from cpu_cases import TORCH_ADAMW
from cpu_clock import Wall
from cpu_report import COLUMNS, time_rows
from harness import time_case
from program import RESULTS, say, say_about, say_goals
from report import Columns, titled
from results_file import DIRTY, Row, write_csv
from shapes import gpt2_shapes

FIELDS = (
    "case", "contender", "dtype", "tensors", "parameters", "threads", "rounds", "median_ms", "q1_ms", "q3_ms", "baseline", "ratio",
    "bytes_per_parameter", "gb_per_s", "copy_gb_per_s", "target", "measured", "reached",
    "date", "device", "cores", "load", "isa", "backend", "torch", "onepass", "python", "commit",
)  # fmt: skip
SHORT: dict[str, Any] = {"state_dtype": c.BF16}
BLOCKS: dict[str, Any] = {"state_dtype": "8bit"}
EXACT: dict[str, Any] = {"master_weights": True}
STOCHASTIC: dict[str, Any] = {"stochastic_rounding": True}


def stored(contender: Contender, name: str, dtype: torch.dtype, traffic: float, **options: Any) -> Contender:
    """With parameters and moments that are stored otherwise."""
    return replace(
        contender,
        name=f"{contender.name} {name}",
        dtype=dtype,
        options={**contender.options, **options},
        twin_options={**contender.twin_options, **options},
        traffic={dtype: traffic},
    )


def deepspeed() -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Its kernel is compiled by a ninja that it looks for on the PATH.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam


# Float32 weights and moments, as exact as ours; then bfloat16 weights alone, which lose what is below their last place.
THEIRS = Contender("DeepSpeed CPUAdam", deepspeed, onepass.AdamW, "adam", {"adamw_mode": True}, {}, {c.FP32: 28})
THEIRS_BF16 = replace(stored(THEIRS, "bf16", c.BF16, 22), loose=True)
CONTENDERS = (
    TORCH_ADAMW,
    THEIRS,
    c.ADAMW,
    stored(c.ADAMW, "short", c.FP32, 20, **SHORT),
    stored(c.ADAMW, "8-bit", c.FP32, 16.02, **BLOCKS),
    stored(c.ADAMW, "bf16 exact", c.BF16, 26, **EXACT),
    stored(c.ADAMW, "bf16 exact short", c.BF16, 18, **EXACT, **SHORT),
    stored(c.ADAMW, "bf16 exact 8-bit", c.BF16, 14.02, **EXACT, **BLOCKS),
    stored(c.ADAMW, "bf16 stochastic short", c.BF16, 14, **STOCHASTIC, **SHORT),
    stored(c.ADAMW, "bf16 stochastic 8-bit", c.BF16, 10.02, **STOCHASTIC, **BLOCKS),
    c.ADAMP,
    stored(c.ADAMP, "bf16 exact", c.BF16, 26, **EXACT),
    stored(c.ADAMP, "bf16 exact short", c.BF16, 18, **EXACT, **SHORT),
    stored(c.ADAMP, "bf16 exact 8-bit", c.BF16, 14.02, **EXACT, **BLOCKS),
    THEIRS_BF16,
)


def cases(quick: bool = False) -> list[tuple[int, Case]]:
    """Each with its number of threads. Gradients are orthogonal to the rows, so that AdamP projects and predicts it."""
    small: dict[str, Any] = {"width": 48, "vocabulary": 500, "positions": 64, "blocks": 2}
    gpt2 = gpt2_shapes(**small) if quick else gpt2_shapes()
    rounds = 5 if quick else 15
    return [
        (1, Case("gpt2-1", "GPT-2, one thread", gpt2, CONTENDERS, gradients="tangent", rounds=rounds)),
        (2, Case("gpt2-2", "GPT-2, two threads", gpt2, CONTENDERS, gradients="tangent", rounds=rounds)),
        (1, Case("in-cache", "a matrix in the cache, one thread", ((64, 1024),), CONTENDERS, gradients="tangent",
                 rounds=rounds if quick else 40, repeat=2 if quick else 20)),
    ]  # fmt: skip


def copy_speed() -> float:
    """GB/s of a copy, read and written bytes together, the best of five."""
    a, b = torch.ones(1 << 27), torch.empty(1 << 27)
    b.copy_(a)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        b.copy_(a)
        times.append(time.perf_counter() - begin)
    return 2 * a.nbytes / min(times) / 1e9


def ns(row: Row) -> str:
    return f"{1e6 * row['median_ms'] / row['parameters']:.3f}"


SHOWN: Columns = {
    **{name: COLUMNS[name] for name in ("contender", "ms", "quartiles", "ratio", "GB/s")},
    "bytes": lambda row: f"{row['bytes_per_parameter']:g}",
    "ns/element": ns,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--quick", action="store_true", help="small tensors, few rounds")
    parser.add_argument("--readme", action="store_true", help="also write the tables of the pages, from a clean commit")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the CSV goes")
    args = parser.parse_args()
    if args.readme and (args.quick or args.out != RESULTS):
        parser.error("--readme runs every case in full and writes to bench/results: leave out --quick and --out")
    clock = Wall()
    about = clock.about()
    say_about(about)
    if args.readme and (not about["commit"] or about["commit"].endswith(DIRTY)):
        sys.exit(f"--readme measures a clean commit; this is {about['commit'] or 'no repository'}: commit first.")
    chosen = cases(args.quick)
    absent = absentees(CONTENDERS, say)
    wrong, _ = check_all([chosen[0][1].without(absent)], clock, say)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{about['date']}-precision{'-quick' * args.quick}.csv"
    rows: list[Row] = []
    goals = []
    for threads, case in chosen:
        torch.set_num_threads(threads)
        copy = round(copy_speed(), 2)
        timings = time_case(case.without(absent | wrong), clock)
        own, found = time_rows(case, timings)
        rows += [{**row, "threads": threads, "copy_gb_per_s": copy} for row in own]
        goals += found
        say(f"\na copy moves {copy} GB/s\n{titled(case, [f'ratios to {TORCH_ADAMW.name}'], SHOWN, own)}")
        known = {key: value for key, value in about.items() if key != "threads"}
        write_csv([{key: row[key] for key in FIELDS if key in row} for row in rows], known, FIELDS, path)
    say_goals(goals, args.quick)
    say(f"Written: {os.path.relpath(path)}")
    if args.readme:
        tables.write(use=path, switched=tables.STORED)


if __name__ == "__main__":
    main()
