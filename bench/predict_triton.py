"""Predictions of the share of a copy's bandwidth that the Triton kernels reach, by the model of predict.py: nothing is measured.

The launches are those of triton_kernels/plan.py; instructions and registers of each tile configuration are those of
tests/builds/programs.csv, counted in the machine code. A program is a block that steps one tile and ends.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from math import ceil

from onepass.triton_kernels.plan import KernelKey, Launch, Plan, TensorDesc, plan_of

from multiprocessor import Item, simulate
from predict import (
    BYTES,
    CYCLES_IN_ROUND,
    CYCLES_IN_ROW,
    DTYPES_SHOWN,
    GPUS,
    LANES,
    LAUNCH,
    ROOT,
    Gpu,
    Prediction,
    costs,
    share,
    tail,
    work_of,
)
from shapes import MODELS, Shape, numel_of

PROGRAMS = ROOT / "tests/builds/programs.csv"
ARCHS = ("sm_80", "sm_90", "sm_100")  # that Triton compiles for here
PARAM = {"float32": "fp32", "bfloat16": "bf16"}
# Estimates. A read that the second-level cache serves, of which predict.py's OPENING has two; and what passes before a
# program begins where another has ended.
CACHED = START = 300.0  # ns
ROWS_OF_LOOP, CORRECTING = 1024, 1024  # of launch.py: BLOCK and CORRECTING

Counts = dict[str, int]


@cache
def counted() -> dict[tuple[str, ...], Counts]:
    with PROGRAMS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    key = ("arch", "kernel", "param", "width", "aligned", "part")
    return {tuple(row[k] for k in key): {k: int(x) for k, x in row.items() if k not in key} for row in rows}


def parts(gpu: Gpu, kernel: str, launch: Launch | None, dtype: str = "") -> dict[str, Counts]:
    vector = {"float32": "4", "bfloat16": "8"}.get(dtype, "0")
    where = (
        (PARAM[dtype], str(launch.config.width), vector if launch.config.vector else "0") if launch else ("", "0", "0")
    )
    return {key[-1]: own for key, own in counted().items() if key[:-1] == (gpu.arch, kernel, *where)}


def resident(gpu: Gpu, own: Counts) -> int:
    """Programs on a multiprocessor. Registers are allocated to warps 256 at a time."""
    registers = ceil(own["registers"] * LANES / 256) * 256 * own["threads"] // LANES
    return min(32, 2048 // own["threads"], 65536 // registers, gpu.shared // (own["shared"] + 1024))


def plan_for(shapes: Sequence[Shape], dtype: str, projected: bool) -> Plan:
    key = KernelKey(dtype, "float32", "adam")
    descs = []
    for shape in shapes:
        projects = projected and len(shape) > 1
        rows = shape[0] if projects else 1
        descs.append(TensorDesc(key, rows, numel_of((shape,)) // rows, projects, dtype == "float32", True, 0))
    return plan_of(descs)


def elements_of(plan: Plan, launch: Launch) -> int:
    return int(plan.row_table[2, launch.first : launch.first + launch.programs * launch.rows].sum())


def streaming(gpu: Gpu, kernel: str, plan: Plan, launch: Launch, dtype: str) -> float:
    """ns of a launch that visits elements."""
    found = parts(gpu, kernel, launch, dtype)
    own, row = found["elements"], found.get("row")
    moved = elements_of(plan, launch) * BYTES[dtype][kernel]
    warps = own["threads"] // LANES
    blocks = resident(gpu, own)
    item = Item(
        passes=1,
        rounds=1,
        round=work_of(gpu, own, CYCLES_IN_ROUND),
        row=work_of(gpu, row, CYCLES_IN_ROW) if row else None,
        row_meets=own["barriers"] + (row["barriers"] if row else 0),
        bytes=moved / launch.programs / warps,
        warps=warps,
        ends_together=True,
    )
    known = replace(costs(gpu), opening=START + 2 * CACHED)  # its row, and the addresses of the row's tensor
    most = simulate(item, known, blocks, False) * gpu.multiprocessors
    slots = gpu.multiprocessors * blocks
    each, more = divmod(launch.programs, slots)
    times = [each + 1.0] * more + [float(each)] * (slots - more)
    return moved / (share(most, gpu.copy) * gpu.copy) * tail(times)


def waiting(gpu: Gpu, own: Counts, programs: int, reads: int) -> float:
    """ns of a launch whose programs read that there is nothing to do."""
    each = START + reads * CACHED + own["instructions"] * CYCLES_IN_ROW / gpu.ghz
    return ceil(programs / (gpu.multiprocessors * resident(gpu, own))) * each


def deciding(gpu: Gpu, shapes: Sequence[Shape], kernel: str) -> float:
    """ns of `decide`, a program for each projected tensor, which begins where one is free. The statistics are in the cache."""
    found = parts(gpu, kernel, None)
    loop, once = found["loop"], found["row"]
    slots = [0.0] * gpu.multiprocessors * resident(gpu, loop)
    round_ns = CACHED + loop["instructions"] * CYCLES_IN_ROW / gpu.ghz
    for shape in shapes:
        if len(shape) > 1:
            at = slots.index(min(slots))
            slots[at] += START + 2 * CACHED + once["instructions"] * CYCLES_IN_ROW / gpu.ghz
            slots[at] += round_ns * ceil(shape[0] / ROWS_OF_LOOP)
    return max(slots)


def times_of(gpu: Gpu, shapes: Sequence[Shape], dtype: str, projected: bool) -> list[tuple[str, float]]:
    """ns of every launch."""
    plan = plan_for(shapes, dtype, projected)
    gated = [launch for launch in plan.launches if launch.projected]
    times = []

    def run(kernel: str, launches: list[Launch]) -> None:
        times.extend((kernel, streaming(gpu, kernel, plan, launch, dtype)) for launch in launches)

    if gated and dtype != "float32":
        run("gate_stats", gated)
        times.append(("decide", deciding(gpu, shapes, "decide before")))
    run("step", [launch for launch in plan.launches if not launch.projected])
    if gated:
        run("update", gated)
        times.append(("decide", deciding(gpu, shapes, "decide")))
        times += [
            ("correct", waiting(gpu, parts(gpu, "correct", x, dtype)["idle"], min(x.programs, CORRECTING), 1))
            for x in gated
        ]
    return times


def predict(gpu: Gpu, shapes: Sequence[Shape], dtype: str, projected: bool) -> Prediction:
    """AdamW, or AdamP with every matrix projected: predicted in float32, while bfloat16 takes `gate_stats` first."""
    times = times_of(gpu, shapes, dtype, projected)
    ns = sum(time for _, time in times) + LAUNCH * (len(times) - 1)
    kernels = ["step"] if not projected else ["update"] if dtype == "float32" else ["gate_stats", "update"]
    return Prediction(ns, numel_of(tuple(shapes)) * sum(BYTES[dtype][kernel] for kernel in kernels) / gpu.copy / ns)


def prediction_rows(gpus: Iterable[Gpu] = GPUS) -> list[dict[str, str]]:
    return [
        {"GPU": gpu.name, "model": model}
        | {
            f"{name}, {dtype}": f"{predict(gpu, shapes, dtype, name == 'AdamP').share:.1%}"
            for dtype in DTYPES_SHOWN
            for name in ("AdamW", "AdamP")
        }
        for gpu in gpus
        if gpu.arch in ARCHS
        for model, shapes in MODELS.items()
    ]
