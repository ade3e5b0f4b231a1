"""Report of the GPU's bench: rows for a CSV, targets, plain tables, and a table for the README."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from cases import Case
from harness import Timing
from report import Columns, number, percent, quartiles_of, row_of, titled
from results_file import Row
from targets import FASTER, GPU, TIME, Goal, Target
from targets import goals as goals_of

FIELDS = (
    "case", "contender", "dtype", "tensors", "parameters", "rounds", "repeat", "device_us", "q1_us", "q3_us", "host_us",
    "graph_us", "bytes_per_parameter", "gb_per_s", "copy_share", "predicted_share", "baseline", "ratio", "corrected_percent", "in_cache",
    "failed", "copy_best_gb_per_s", "copy_gb_per_s", "date", "device", "driver", "cuda", "archs", "torch", "onepass",
    "commit",
)  # fmt: skip


def rows_of(case: Case, timings: dict[str, Timing], copy: float, cache_bytes: int) -> list[Row]:
    """copy: bytes per second of a device copy. What fits into the cache is not held against it."""
    medians = {name: timing.quartiles[1] for name, timing in timings.items() if timing.seconds}
    in_cache = case.bytes_held <= cache_bytes
    rows = []
    for name, timing in timings.items():
        row = row_of(case, timing) | {"in_cache": "yes" if in_cache else "no", "failed": timing.failed}
        rows.append(row)
        if name not in medians:
            continue
        traffic, baseline = row["bytes_per_parameter"], row["baseline"]
        speed = traffic * case.numel / medians[name] if traffic and not case.launch_bound else None
        row |= quartiles_of(timing, "device", "us", 1e6, 2) | {
            "repeat": timing.repeat,
            "host_us": micro(timing.host),
            "graph_us": micro(timing.graph),
            "gb_per_s": None if speed is None else round(speed / 1e9, 1),
            "copy_share": None if speed is None or in_cache else round(speed / copy, 4),
            "ratio": round(medians[name] / medians[baseline], 4) if baseline in medians else None,
        }
    return rows


# Cases of the models that predict.py knows.
PREDICTED = {
    "gpt2-tangent": "GPT-2",
    "resnet50-tangent": "ResNet-50",
    "llama-1b-tangent": "Llama 1 B",
    "gpt2-bf16": "GPT-2",
    "llama-1b-bf16": "Llama 1 B",
}


def add_predictions(rows: list[Row], device: str, predicted: list[Row]) -> None:
    """Puts what the model predicts for this GPU beside what was measured; `predicted` as in docs/prediction.md."""
    known = {(row["GPU"], row["model"]): row for row in predicted}
    gpu = next((name for name, _ in known if name in device), None)
    for row in rows:
        own = known.get((gpu, PREDICTED.get(row["case"])), {})
        share = own.get(f"{row['contender'].removeprefix('onepass ')}, {row['dtype']}")
        row["predicted_share"] = round(float(share.rstrip("%")) / 100, 4) if share else None


def micro(seconds: list[float]) -> float | None:
    return round(1e6 * median(seconds), 2) if seconds else None


def goals(rows: list[Row]) -> Iterator[Goal]:
    """Of all rows that have been timed."""
    timed = {(row["case"], row["contender"]): row for row in rows if row.get("device_us")}
    for (case, contender), row in timed.items():

        def measured(target: Target, case: str = case, row: Row = row) -> float | None:
            if target.measure not in (TIME, FASTER):
                return row[target.measure]
            other = timed.get((case, target.against or row["baseline"]))
            if other is None:
                return None
            ratio = row["device_us"] / other["device_us"]
            return ratio if target.measure == TIME else 1 / ratio

        yield from goals_of(GPU, case, contender, row["baseline"], measured)


# ------------------------------------------------------------------ tables


def device(row: Row) -> str:
    waits = row["host_us"] is not None and row["host_us"] > row["device_us"]
    return number(row["device_us"]) + "*" * waits


COLUMNS: Columns = {
    "contender": lambda row: row["contender"],
    "device us": device,
    "quartiles": lambda row: f"{number(row['q1_us'])}-{number(row['q3_us'])}",
    "host us": lambda row: number(row["host_us"]),
    "graph us": lambda row: number(row["graph_us"]),
    "bytes/param": lambda row: number(row["bytes_per_parameter"]),
    "GB/s": lambda row: number(row["gb_per_s"]),
    "of a copy": lambda row: "" if row["copy_share"] is None else percent(100 * row["copy_share"]),
    "predicted": lambda row: "" if row.get("predicted_share") is None else percent(100 * row["predicted_share"]),
    "ratio": lambda row: "" if row["ratio"] is None else f"{row['ratio']:.3f}",
    "to": lambda row: "" if row["ratio"] is None else row["baseline"],
    "corrected": lambda row: percent(row["corrected_percent"]),
}
LEGEND = """device us: median time of a step by the device's clock; *: the host is slower, so the device waits for it.
host us: until step() returns. graph us: a replay of the captured step. of a copy: share of the measured bandwidth of a
device copy; predicted: by the model of docs/prediction.md. ratio: device us over that of the contender in the next column."""
IN_README = ("contender", "device us", "host us", "graph us", "bytes/param", "GB/s", "of a copy", "ratio", "to")


def case_table(case: Case, rows: list[Row], cache_bytes: int) -> str:
    notes = []
    if case.bytes_held <= cache_bytes:
        notes.append(f"all of it fits into the L2 cache of {cache_bytes / 2**20:.0f} MiB: no figures of the memory")
    elif case.bytes_held <= 10 * cache_bytes:
        notes.append(f"{case.bytes_held / cache_bytes:.0f} times the L2 cache: some of it may stay there")
    if case.launch_bound:
        notes.append("the time of a step includes what the device waits for the host; graph us is without")
    failed = [f"  {row['contender']}: not timed: {row['failed']}" for row in rows if not row.get("device_us")]
    timed = [row for row in rows if row.get("device_us")]
    return "\n".join([titled(case, notes, COLUMNS, timed), *failed])


def markdown_table(rows: list[Row]) -> str:
    """For the README."""
    lines = ["| " + " | ".join(("case", *IN_README)) + " |", "|---|---|" + "---:|" * (len(IN_README) - 1)]
    known = ""
    for row in rows:
        if row.get("device_us"):
            case, known = ("" if row["case"] == known else row["case"]), row["case"]
            lines.append("| " + " | ".join([case, *(COLUMNS[name](row) for name in IN_README)]) + " |")
    return "\n".join(lines)
