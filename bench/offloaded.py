"""Times the step of an offloaded optimizer, on CPU tensors: beside torch's fused AdamW and, if it is installed, DeepSpeed's CPUAdam.

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
from cases import Case, Contender, missing
from check import check_all
from cpu_cases import EXACT_ADAMW, EXACT_SHORT_ADAMW, TORCH_ADAMW, stored
from cpu_clock import Wall
from harness import ratio, time_case
from program import RESULTS, say
from results_file import Row, write_csv
from shapes import gpt2_shapes, numel_of

FIELDS = (
    *(
        "name",
        "param_dtype",
        "tensors",
        "parameters",
        "threads",
        "rounds",
        "ms",
        "ms_low",
        "ms_high",
        "over_torch",
        "bytes",
        "gb_per_s",
    ),
    *("copy_gb_per_s", "date", "device", "cores", "load", "isa", "torch", "onepass", "python", "commit"),
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
CONTENDERS = (TORCH_ADAMW, THEIRS, c.ADAMW, EXACT_ADAMW, EXACT_SHORT_ADAMW, THEIRS_BF16)


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


def rows_of(case: Case, threads: int) -> list[Row]:
    torch.set_num_threads(threads)
    copy, timings = copy_speed(), time_case(case, Wall())
    rows: list[Row] = []
    for name, timing in timings.items():
        if timing.failed:
            say(f"Not timed: {name}: {timing.failed}")
            continue
        low, middle, high = timing.quartiles
        dtype = case.dtype_of(timing.contender)
        traffic = timing.contender.traffic[dtype]
        rows.append(
            dict(
                name=name,
                param_dtype=str(dtype).removeprefix("torch."),
                tensors=len(case.shapes),
                parameters=case.numel,
                threads=threads,
                rounds=len(timing.seconds),
                ms=round(1e3 * middle, 4),
                ms_low=round(1e3 * low, 4),
                ms_high=round(1e3 * high, 4),
                over_torch=round(ratio(timings, name, TORCH_ADAMW.name), 4),
                bytes=traffic,
                gb_per_s=round(traffic * case.numel / middle / 1e9, 2),
                copy_gb_per_s=round(copy, 2),
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small tensors, few rounds")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of a step (default: 1 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the CSV goes")
    args = parser.parse_args()
    shapes = gpt2_shapes(width=48, vocabulary=500, positions=64, blocks=2) if args.quick else gpt2_shapes()
    there = []
    for contender in CONTENDERS:
        reason = missing(contender)
        if reason:
            say(f"Not timed: {contender.name}: {reason}")
        else:
            there.append(contender)
    case = Case("offload", "GPT-2", shapes, tuple(there), rounds=5 if args.quick else 15)
    wrong, _ = check_all([case], Wall(), say)
    case, about, rows = case.without(wrong), Wall().about(), []
    for threads in args.threads:
        own = rows_of(case, threads)
        say(f"\n{numel_of(shapes):,} parameters, {threads} threads, a copy moves {own[0]['copy_gb_per_s']} GB/s")
        say("| optimizer | ms | over torch's | bytes | GB/s |\n|---|---|---|---|---|")
        for row in own:
            say(
                f"| {row['name']} | {row['ms']:.1f} | {row['over_torch']:.2f} | {row['bytes']} | {row['gb_per_s']:.1f} |"
            )
        rows += own
    path = args.out / f"{about['date']}-offload{'-quick' * args.quick}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(rows, {key: value for key, value in about.items() if key in FIELDS and key != "threads"}, FIELDS, path)
    say(f"Written: {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
