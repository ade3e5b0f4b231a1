"""What the CUDA kernels can be expected to reach, by a model: predicted, not measured.

The layout of a launch is the library's own, for any device; instructions are those of tests/builds/rounds.csv, counted in
the machine code. Of the memory only a latency is assumed and, fitted to what BabelStream reaches on an H200 with little in
flight (NVIDIA/cccl, issue 1673), how a kernel approaches the bandwidth of a copy. See docs/prediction.md.

    python bench/predict.py [--kernels]
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from multiprocessor import WARPS_OF_BLOCK, Costs, Item, Work, simulate
from report import table
from shapes import Shape, gpt2_shapes, llama_shapes, numel_of, resnet50_shapes

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
    Gpu("L40S", "sm_89", 142, 2.30, 774, 102400, 2),
)
MODELS: dict[str, tuple[Shape, ...]] = {
    "GPT-2": gpt2_shapes(),
    "ResNet-50": resnet50_shapes(),
    "Llama 1 B": llama_shapes(),
}
STORAGE = {"float32": "float, float, Adam<float>", "bfloat16": "BFloat16, float, Adam<float>"}
BYTES = {"float32": 28, "bfloat16": 22}
DTYPE = {"float32": 0, "bfloat16": 2}  # as emulated.launch_layout_of has it


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
    """Slots are those of the busiest pipe: issue, float64, or the special functions with conversions of 64 bits."""
    own = counted()[gpu.arch, kernel, part]
    of_warp = LANES * 4  # a warp's lanes on a quarter of a multiprocessor
    pipes = (
        own["instructions"],
        own["float64"] * of_warp / gpu.doubles,
        own["special"] * of_warp / 16 + own["conversions"] * of_warp / min(16, gpu.doubles),
    )
    return Work(factor * max(pipes), factor * max(cycles * own["instructions"], *pipes))


def share(most: float, copy: float) -> float:
    """Of a copy's bandwidth, for a kernel that would move `most` if memory had no limit. x = 0.52, 0.79, 1.57 give 0.50,
    0.70, 0.94; measured 0.52, 0.70, 0.935."""
    x = most / copy
    return float(x / (1 + x**3.2) ** (1 / 3.2))


def costs(gpu: Gpu) -> Costs:
    return Costs(gpu.ghz, LATENCY, OPENING, PUBLISHING, MEETING)


def elementwise(gpu: Gpu, dtype: str, kernel: str = "step") -> Item:
    """Items of 8,192 elements, a quarter for each warp."""
    name = f"{kernel}<{STORAGE[dtype]}>"
    own = counted()[gpu.arch, name, "round"]
    rounds = 8192 // WARPS_OF_BLOCK // (2 * VECTOR * LANES)
    moved = float(rounds * LANES * (own["loaded"] + own["stored"]))
    return Item(1, rounds, LANES * own["loaded"], work(gpu, name, "round", CYCLES_IN_ROUND), bytes=moved)


@dataclass(frozen=True)
class Layout:
    """How a launch cuts tensors: its bytes for rows, resident blocks, and of each tensor the rows of an item."""

    row_cache_bytes: int
    blocks: int
    rows_of_item: dict[int, int]
    items: list[tuple[int, int, int, int, int]]
    block_items: int


def layout_of(gpu: Gpu, shapes: Sequence[Shape], dtype: str, projected: bool) -> Layout:
    from emulated_backend import emulated

    names = ("multiprocessors", "shared_per_multiprocessor", "shared_per_block")
    kept = [getattr(emulated.device, name) for name in names]
    try:
        for name, value in zip(names, (gpu.multiprocessors, gpu.shared, gpu.shared - 1024), strict=True):
            setattr(emulated.device, name, value)
        tensors = [(DTYPE[dtype], list(shape), projected and len(shape) > 1, True) for shape in shapes]
        row_cache_bytes, block_items, items = emulated.launch_layout_of(tensors)
    finally:
        for name, value in zip(names, kept, strict=True):
            setattr(emulated.device, name, value)
    storage = emulated.limits["shared_storage"]
    blocks = min(4, gpu.shared // (row_cache_bytes + storage + 1024)) if projected else 4
    rows = {}
    for tensor, _, count, *_ in items:
        rows.setdefault(tensor, count)
    return Layout(row_cache_bytes, blocks, rows, items, block_items)


def updated(gpu: Gpu, dtype: str, layout: Layout, length: int, rows: int) -> Item:
    """Items of `rows` rows that fit on chip."""
    from emulated_backend import emulated

    name = f"update<{STORAGE[dtype]}>"
    vectors = -(-length // VECTOR)
    cached = layout.row_cache_bytes // (2 * 16 * LANES * WARPS_OF_BLOCK)
    reads_p_again = length > (cached * LANES * WARPS_OF_BLOCK - 1) * VECTOR
    width = emulated.subgroup_width(vectors, rows, 2 * cached if reads_p_again else cached, LANES * WARPS_OF_BLOCK)
    of_lane = -(-vectors // width)
    rounds = of_lane / 2
    whole_block = width > LANES
    passes = rows if whole_block else -(-rows // (LANES * WARPS_OF_BLOCK // width))
    own = counted()[gpu.arch, name, "round"]

    round_work = work(gpu, name, "round", CYCLES_IN_ROUND)
    end = work(gpu, name, "row", CYCLES_IN_ROW)
    for part, count in (("sum", min(width, LANES).bit_length() - 1), ("join", 6 - min(width, LANES).bit_length())):
        if count:
            end += work(gpu, name, part, CYCLES_IN_ROW, count)
    end += work(gpu, name, "write", CYCLES_IN_ROUND, rounds)
    moved = float(passes and rows * length * BYTES[dtype] / WARPS_OF_BLOCK / passes)
    return Item(passes, rounds, LANES * own["loaded"], round_work, end, 2 if whole_block else 0, moved)


def tail(times: Sequence[float]) -> float:
    """How much longer a launch takes than if its blocks, that work so long each, ended together. Those that are left share
    the bandwidth, but none works more than twice as fast as with all the others."""
    if not times:
        return 1.0
    left, at, before = len(times), 0.0, 0.0
    for own in sorted(times):
        at += (own - before) * max(left / len(times), 0.5)
        before = own
        left -= 1
    return at / (sum(times) / len(times))


def block_times(gpu: Gpu, layout: Layout, rates: dict[int, float]) -> list[float]:
    """Of the items that fall to each block in turn."""
    grid = gpu.multiprocessors * layout.blocks
    times = [0.0] * grid
    for i, (tensor, _, rows, begin, end) in enumerate(layout.items):
        elements = rows * (end - begin)
        if i < layout.block_items:
            times[i % grid] += elements / rates[tensor]
        else:
            times[(i - layout.block_items) // WARPS_OF_BLOCK % grid] += elements / rates[tensor] / WARPS_OF_BLOCK
    return times


@dataclass(frozen=True)
class Prediction:
    ns: float
    share: float  # of a copy, of the bytes that the step has to move


def adamw(gpu: Gpu, shapes: Sequence[Shape], dtype: str) -> Prediction:
    layout = layout_of(gpu, shapes, dtype, False)
    rate = share(simulate(elementwise(gpu, dtype), costs(gpu), 4, False) * gpu.multiprocessors, gpu.copy)
    least = numel_of(tuple(shapes)) * BYTES[dtype] / gpu.copy
    ns = least / rate * tail(block_times(gpu, layout, defaultdict(lambda: 1.0)))
    return Prediction(ns, least / ns)


def adamp(gpu: Gpu, shapes: Sequence[Shape]) -> Prediction:
    """float32, every matrix projected and predicted."""
    layout = layout_of(gpu, shapes, "float32", True)
    speeds: dict[tuple[int, int], float] = {}
    rates: dict[int, float] = {}
    for i, shape in enumerate(shapes):
        length = numel_of((shape[1:],)) if len(shape) > 1 else 0
        key = (length, layout.rows_of_item[i] if length else 0)
        if key not in speeds:
            item = updated(gpu, "float32", layout, *key) if length else elementwise(gpu, "float32")
            most = simulate(item, costs(gpu), layout.blocks, bool(length)) * gpu.multiprocessors
            speeds[key] = share(most, gpu.copy)
        rates[i] = speeds[key]
    times = block_times(gpu, layout, rates)
    least = numel_of(tuple(shapes)) * BYTES["float32"] / gpu.copy
    ns = sum(times) * BYTES["float32"] / gpu.copy * tail(times) + LAUNCH
    return Prediction(ns, least / ns)


def prediction_rows(gpus: Iterable[Gpu] = GPUS) -> list[dict[str, str]]:
    rows = []
    for gpu in gpus:
        for model, shapes in MODELS.items():
            plain, projecting = adamw(gpu, shapes, "float32"), adamp(gpu, shapes)
            rows.append(
                {
                    "GPU": gpu.name,
                    "model": model,
                    "AdamW": f"{plain.share:.1%}",
                    "AdamW bf16": f"{adamw(gpu, shapes, 'bfloat16').share:.1%}",
                    "AdamP": f"{projecting.share:.1%}",
                    "AdamP / AdamW": f"{projecting.ns / plain.ns:.3f}",
                }
            )
    return rows


def prediction_table(rows: Sequence[dict[str, str]]) -> str:
    return table({name: (lambda row, name=name: row[name]) for name in rows[0]}, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="append", choices=[gpu.name for gpu in GPUS])
    args = parser.parse_args()
    chosen = [gpu for gpu in GPUS if not args.gpu or gpu.name in args.gpu]
    print("Predicted, not measured: share of the bandwidth of a copy\n")
    print(prediction_table(prediction_rows(chosen)))


if __name__ == "__main__":
    main()
