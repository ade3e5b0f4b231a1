"""Predictions of the share of a copy's bandwidth that the CUDA kernels reach, by a model: nothing of it is measured. Prints
those of the Triton kernels too (predict_triton.py).

The layout of a launch is the library's own, for any device; instructions are those of tests/builds/rounds.csv, counted in
the machine code. Of the memory only a latency is assumed and, fitted to what BabelStream reaches on an H200 with little in
flight (NVIDIA/cccl, issue 1673), how a kernel approaches the bandwidth of a copy. See docs/prediction.md.

    python bench/predict.py [--gpu H200]
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from multiprocessor import WARPS_OF_BLOCK, Costs, Item, Work, simulate
from report import table
from shapes import MODELS, Shape, numel_of

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests/support"))  # emulated_backend.py
ROUNDS = ROOT / "tests/builds/rounds.csv"

LANES = 32
VECTOR = 4  # elements
# Estimates. Four elements side by side depend on each other only through one chain of about five cycles an instruction;
# the end of a row is one chain in double.
CYCLES_IN_ROUND, CYCLES_IN_ROW = 1.6, 4.0
LATENCY = 900.0  # ns
OPENING, PUBLISHING, MEETING = 600.0, 2000.0, 40.0  # ns: two reads of a cache; two reads, a release and an atomic
LAUNCH = 2000.0  # ns, of every kernel after the first


@dataclass(frozen=True)
class Gpu:
    name: str
    arch: str
    multiprocessors: int
    ghz: float
    copy: float  # bytes per ns; of an H100 and an H200 as measured by others, else the same share of the data sheet's
    shared: int  # bytes of a multiprocessor
    doubles: int  # float64 operations of a multiprocessor in a cycle


GPUS = (
    Gpu("A100", "sm_80", 108, 1.41, 1830, 167936, 32),
    Gpu("H100", "sm_90", 132, 1.70, 3000, 233472, 64),
    Gpu("H200", "sm_90", 132, 1.70, 4300, 233472, 64),
    Gpu("B200", "sm_100", 148, 1.85, 7170, 233472, 64),
    Gpu("A10", "sm_86", 72, 1.70, 537, 102400, 2),
    Gpu("L40S", "sm_89", 142, 2.30, 774, 102400, 2),
    Gpu("RTX 5090", "sm_120", 170, 2.40, 1605, 102400, 2),
)
STORAGE = {"float32": "float, float, Adam<float>", "bfloat16": "BFloat16, float, Adam<float>"}
DTYPES = ("float32", "float64", "bfloat16")  # as emulated.launch_layout_of numbers them
DTYPES_SHOWN = tuple(STORAGE)
BYTES = {  # of an element
    "float32": {"step": 28, "update": 28, "gate_stats": 8},
    "bfloat16": {"step": 22, "update": 22, "gate_stats": 4},
}
TITLE = "Predicted, not measured: share of the bandwidth of a copy"


@cache
def counted() -> dict[tuple[str, str, str], dict[str, int]]:
    with ROUNDS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (row["arch"], row["kernel"], row["part"]): {
            name: int(number) for name, number in row.items() if name not in ("arch", "kernel", "part")
        }
        for row in rows
    }


def work(gpu: Gpu, kernel: str, part: str, cycles: float, factor: float = 1.0) -> Work:
    return work_of(gpu, counted()[gpu.arch, kernel, part], cycles).times(factor)


def work_of(gpu: Gpu, own: dict[str, int], cycles: float) -> Work:
    """Slots are those of the busiest pipe: issue, float64, or the special functions with conversions of 64 bits."""
    of_warp = LANES * 4  # a warp's lanes on a quarter of a multiprocessor
    pipes = (
        own["instructions"],
        own["float64"] * of_warp / gpu.doubles,
        own["special"] * of_warp / 16 + own["conversions"] * of_warp / min(16, gpu.doubles),
    )
    return Work(max(pipes), max(cycles * own["instructions"], *pipes))


def share(most: float, copy: float) -> float:
    """Of a copy's bandwidth, for a kernel that would move `most` if memory had no limit. x = 0.52, 0.79, 1.57 give 0.50,
    0.70, 0.94; measured 0.52, 0.70, 0.935."""
    x = most / copy
    return float(x / (1 + x**3.2) ** (1 / 3.2))


def costs(gpu: Gpu) -> Costs:
    return Costs(gpu.ghz, LATENCY, OPENING, PUBLISHING, MEETING)


def elementwise(gpu: Gpu, dtype: str) -> Item:
    """Items of 8,192 elements, a quarter for each warp."""
    name = f"step<{STORAGE[dtype]}>"
    rounds = 8192 // WARPS_OF_BLOCK // (2 * VECTOR * LANES)
    moved = 8192 * BYTES[dtype]["step"] / WARPS_OF_BLOCK
    return Item(1, rounds, work(gpu, name, "round", CYCLES_IN_ROUND), bytes=moved)


@dataclass(frozen=True)
class Layout:
    """How a launch cuts tensors."""

    row_cache_bytes: int
    blocks: int  # resident, of a multiprocessor
    items: list[tuple[int, int, int, int, int]]  # tensor, first row, rows, first element and end in the row
    block_items: int  # the first items are for blocks, the others for warps

    def rows_of_item(self, tensor: int) -> int:
        return next(item[2] for item in self.items if item[0] == tensor)


def layout_of(gpu: Gpu, shapes: Sequence[Shape], dtype: str, projected: bool) -> Layout:
    from emulated_backend import emulated

    names = ("multiprocessors", "shared_per_multiprocessor", "shared_per_block")
    kept = [getattr(emulated.device, name) for name in names]
    try:
        for name, value in zip(names, (gpu.multiprocessors, gpu.shared, gpu.shared - 1024), strict=True):
            setattr(emulated.device, name, value)
        tensors = [(DTYPES.index(dtype), list(shape), projected and len(shape) > 1, True) for shape in shapes]
        row_cache_bytes, block_items, items = emulated.launch_layout_of(tensors)
    finally:
        for name, value in zip(names, kept, strict=True):
            setattr(emulated.device, name, value)
    of_block = row_cache_bytes + emulated.limits["shared_storage"] + 1024
    return Layout(row_cache_bytes, min(4, gpu.shared // of_block) if projected else 4, items, block_items)


def rowwise(gpu: Gpu, dtype: str, layout: Layout, function: str, length: int, rows: int) -> Item:
    """Items of `rows` rows in `update`, where they fit on chip, or in `gate_stats`."""
    from emulated_backend import emulated

    name = f"{function}<{STORAGE[dtype]}>"
    vectors, block = -(-length // VECTOR), LANES * WARPS_OF_BLOCK
    most = layout.row_cache_bytes // (2 * 16 * block)  # vectors of a lane, of p and of u
    if length > (most * block - 1) * VECTOR:  # u alone
        most *= 2
    if function == "gate_stats":
        most = 16
    width = emulated.subgroup_width(vectors, rows, most, block)
    halvings = min(width, LANES).bit_length() - 1
    at_a_time = {"update": 2, "gate_stats": 4}[function]
    rounds = -(-vectors // width) / at_a_time
    passes = rows if width > LANES else -(-rows // (block // width))

    end = work(gpu, name, "row", CYCLES_IN_ROW) + work(gpu, name, "sum", CYCLES_IN_ROW, halvings)
    end += work(gpu, name, "join", CYCLES_IN_ROW, 5 - halvings)
    if function == "update":
        end += work(gpu, name, "write", CYCLES_IN_ROUND, rounds)
    moved = rows * length * BYTES[dtype][function] / WARPS_OF_BLOCK / passes
    return Item(passes, rounds, work(gpu, name, "round", CYCLES_IN_ROUND), end, 2 if width > LANES else 0, moved)


def tail(times: Sequence[float]) -> float:
    """How much longer a launch takes than if its blocks, that work so long each, ended together. Those that are left share
    the bandwidth, but none works more than twice as fast as with all the others."""
    left, at, before = len(times), 0.0, 0.0
    for own in sorted(times):
        at += (own - before) * max(left / len(times), 0.5)
        before = own
        left -= 1
    return at / (sum(times) / len(times))


def block_times(gpu: Gpu, layout: Layout, speeds: Sequence[float]) -> list[float]:
    """Of the items that fall to each block in turn, for tensors that are stepped at such speeds."""
    grid = gpu.multiprocessors * layout.blocks
    times = [0.0] * grid
    for i, (tensor, _, rows, begin, end) in enumerate(layout.items):
        time = rows * (end - begin) / speeds[tensor]
        if i < layout.block_items:
            times[i % grid] += time
        else:
            times[(layout.block_items + (i - layout.block_items) // WARPS_OF_BLOCK) % grid] += time
    return times


@dataclass(frozen=True)
class Prediction:
    ns: float
    share: float  # of a copy's bandwidth, for the bytes that the step has to move


def launch(gpu: Gpu, shapes: Sequence[Shape], dtype: str, function: str, layout: Layout) -> float:
    """ns of a kernel over all tensors. Vectors are stepped elementwise by `update`, and passed over by `gate_stats`."""
    known: dict[tuple[int, int], float] = {}
    speeds = []
    for tensor, shape in enumerate(shapes):
        projects = function != "step" and len(shape) > 1
        key = (numel_of((shape[1:],)), layout.rows_of_item(tensor)) if projects else (0, 0)
        if key not in known:
            item = rowwise(gpu, dtype, layout, function, *key) if projects else elementwise(gpu, dtype)
            most = simulate(item, costs(gpu), layout.blocks, projects) * gpu.multiprocessors
            known[key] = share(most, gpu.copy) * gpu.copy / BYTES[dtype][function]
        speeds.append(known[key])
    times = block_times(gpu, layout, speeds)
    return sum(times) * tail(times)


def predict(gpu: Gpu, shapes: Sequence[Shape], dtype: str, projected: bool) -> Prediction:
    """AdamW, or AdamP with every matrix projected: predicted in float32, while bfloat16 takes `gate_stats` first."""
    layout = layout_of(gpu, shapes, dtype, projected)
    kernels = ["step"] if not projected else ["update"] if dtype == "float32" else ["gate_stats", "update"]
    ns = sum(launch(gpu, shapes, dtype, kernel, layout) for kernel in kernels)
    ns += LAUNCH * len(kernels[1:] + ["correct"] * projected)
    least = numel_of(tuple(shapes)) * sum(BYTES[dtype][kernel] for kernel in kernels) / gpu.copy
    return Prediction(ns, least / ns)


def prediction_rows(gpus: Iterable[Gpu] = GPUS) -> list[dict[str, str]]:
    rows = []
    for gpu in gpus:
        for model, shapes in MODELS.items():
            found = {
                f"{name}, {dtype}": predict(gpu, shapes, dtype, name == "AdamP")
                for dtype in DTYPES_SHOWN
                for name in ("AdamW", "AdamP")
            }
            ratio = found["AdamP, float32"].ns / found["AdamW, float32"].ns
            rows.append(
                {"GPU": gpu.name, "model": model}
                | {name: f"{prediction.share:.1%}" for name, prediction in found.items()}
                | {"time of AdamP / AdamW, float32": f"{ratio:.2f}"}
            )
    return rows


def prediction_table(rows: Sequence[dict[str, str]]) -> str:
    return table({name: (lambda row, name=name: str(row[name])) for name in rows[0]}, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="append", choices=[gpu.name for gpu in GPUS], help="may be repeated")
    args = parser.parse_args()
    chosen = [gpu for gpu in GPUS if not args.gpu or gpu.name in args.gpu]
    print(f"{TITLE}:\n\n{prediction_table(prediction_rows(chosen))}")
    import predict_triton  # which has this model's parts

    if rows := predict_triton.prediction_rows(chosen):
        print(
            f"\nThe same of the Triton kernels, where Triton can compile for the GPU here:\n\n{prediction_table(rows)}"
        )


if __name__ == "__main__":
    main()
