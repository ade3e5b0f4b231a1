"""What the GPU bench leaves: rows for a CSV, what was to be reached, plain tables, and one for the README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpu_cases import Case
from gpu_harness import Timing
from results_file import Row

FIELDS = (
    "case", "contender", "dtype", "tensors", "parameters", "rounds", "repeat", "device_us", "q1_us", "q3_us", "host_us",
    "graph_us", "bytes_per_parameter", "gb_per_s", "copy_share", "baseline", "ratio", "corrected_percent", "in_cache",
    "failed", "copy_best_gb_per_s", "copy_gb_per_s", "date", "device", "driver", "cuda", "archs", "torch", "onepass",
    "commit",
)  # fmt: skip


def rows_of(case: Case, timings: list[Timing], copy: float, cache_bytes: int) -> list[Row]:
    """copy: bytes per second of a device copy. What fits into the cache is not held against it."""
    medians = {t.contender.name: t.quartiles[1] for t in timings if t.device}
    return [row_of(case, timing, medians, copy, cache_bytes) for timing in timings]


def row_of(case: Case, timing: Timing, medians: dict[str, float], copy: float, cache_bytes: int) -> Row:
    contender, dtype = timing.contender, case.dtype_of(timing.contender)
    in_cache = case.bytes_held <= cache_bytes
    row: Row = {
        "case": case.name,
        "contender": contender.name,
        "dtype": str(dtype).removeprefix("torch."),
        "tensors": len(case.shapes),
        "parameters": case.numel,
        "bytes_per_parameter": contender.traffic.get(dtype),
        "in_cache": "yes" if in_cache else "no",
        "failed": timing.failed,
    }
    if not timing.device:
        return row
    low, middle, high = timing.quartiles
    baseline = case.baseline_of(contender).name
    traffic = row["bytes_per_parameter"]
    speed = traffic * case.numel / middle if traffic and not case.launch_bound else None
    return row | {
        "rounds": len(timing.device),
        "repeat": timing.repeat,
        "device_us": round(1e6 * middle, 2),
        "q1_us": round(1e6 * low, 2),
        "q3_us": round(1e6 * high, 2),
        "host_us": micro(timing.host_median),
        "graph_us": micro(timing.graph_median),
        "gb_per_s": None if speed is None else round(speed / 1e9, 1),
        "copy_share": None if speed is None or in_cache else round(speed / copy, 4),
        "baseline": baseline,
        "ratio": round(middle / medians[baseline], 4) if baseline in medians else None,
        "corrected_percent": None if timing.corrected is None else round(100 * timing.corrected, 2),
    }


def micro(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e6 * seconds, 2)


# ------------------------------------------------------------------ what was to be reached


@dataclass(frozen=True)
class Goal:
    """What was to be reached in one case, and what was measured."""

    case: str
    what: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "reached" if self.reached else "MISSED"
        return f"{verdict:<8} {self.case:<18} {self.what}: {self.measured:.3g}, to be {sign} {self.limit:.3g}"


def goals(rows: list[Row]) -> Iterator[Goal]:
    """Of all rows that have been timed."""
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.get("device_us"):
            cases.setdefault(row["case"], {})[row["contender"]] = row
    for case, own in cases.items():
        yield from goals_of(case, own)
        yield from goals_of_triton(case, own)


def goals_of(case: str, rows: dict[str, Row]) -> Iterator[Goal]:
    adamw, adamp = rows.get("onepass AdamW"), rows.get("onepass AdamP")
    if adamw and adamw.get("copy_share") and case == "llama-1b":
        yield Goal(case, "AdamW, share of the bandwidth of a copy", adamw["copy_share"], 0.95, at_least=True)
    if adamw and adamw.get("ratio"):
        yield Goal(case, f"AdamW, time over {adamw['baseline']}", adamw["ratio"], 1.0)
        if few_tensors(adamw):
            yield Goal(case, f"AdamW, times faster than {adamw['baseline']}", 1 / adamw["ratio"], 5, at_least=True)
    if adamw and adamp:
        yield Goal(case, "AdamP, time over onepass AdamW", adamp["device_us"] / adamw["device_us"], 1.05)
    for ours, name in (("AdamP", "adamp AdamP"), ("AdamP as timm", "timm AdamP")):
        own = rows.get(f"onepass {ours}")
        if own and name in rows:
            faster = rows[name]["device_us"] / own["device_us"]
            yield Goal(case, f"{ours}, times faster than {name}", faster, 10, at_least=True)
    for row in (adamw, adamp):
        if row and row.get("host_us") and row["tensors"] <= 1000:
            yield Goal(case, f"{row['contender']}, microseconds of the host", row["host_us"], 100)


def goals_of_triton(case: str, rows: dict[str, Row]) -> Iterator[Goal]:
    adamw, adamp = rows.get("onepass AdamW (triton)"), rows.get("onepass AdamP (triton)")
    if not adamw:
        return
    cuda = rows.get("onepass AdamW")
    if cuda and case == "llama-1b":
        yield Goal(case, "AdamW in Triton, time over onepass AdamW", adamw["device_us"] / cuda["device_us"], 1.10)
    if adamw.get("ratio") and case in ("gpt2", "llama-1b"):
        yield Goal(case, f"AdamW in Triton, time over {adamw['baseline']}", adamw["ratio"], 1.0)
    if adamp:
        yield Goal(case, "AdamP in Triton, time over AdamW in Triton", adamp["device_us"] / adamw["device_us"], 1.10)


def few_tensors(row: Row) -> bool:
    """Whether this is the case of a thousand small tensors."""
    return row["tensors"] == 1000 and row["parameters"] == 64_000


# ------------------------------------------------------------------ tables

COLUMNS = (
    "contender",
    "device us",
    "quartiles",
    "host us",
    "graph us",
    "B/param",
    "GB/s",
    "of copy",
    "ratio",
    "to",
    "corrected",
)


def cells(row: Row) -> list[str]:
    if not row.get("device_us"):
        return [row["contender"], row["failed"] or "not timed", *[""] * (len(COLUMNS) - 2)]
    waits = row["host_us"] is not None and row["host_us"] > row["device_us"]
    return [
        row["contender"],
        number(row["device_us"]) + "*" * waits,
        f"{number(row['q1_us'])}-{number(row['q3_us'])}",
        number(row["host_us"]),
        number(row["graph_us"]),
        number(row["bytes_per_parameter"]),
        number(row["gb_per_s"]),
        "" if row["copy_share"] is None else f"{100 * row['copy_share']:.1f}%",
        "" if row["ratio"] is None else f"{row['ratio']:.3f}",
        "" if row["ratio"] is None else row["baseline"],
        "" if row["corrected_percent"] is None else f"{row['corrected_percent']:.1f}%",
    ]


def number(x: float | None) -> str:
    if x is None:
        return ""
    return f"{x:,.0f}" if x >= 1000 or x == int(x) else f"{x:.1f}"


def plain_table(header: Sequence[str], lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(line, widths, strict=True)) for line in [list(header), *lines])
    )


def case_table(case: Case, rows: list[Row], cache_bytes: int) -> str:
    notes = [f"{len(case.shapes):,} tensors", f"{case.numel:,} parameters"]
    if case.bytes_held <= cache_bytes:
        notes.append(f"all of it fits into the L2 cache of {cache_bytes / 2**20:.0f} MiB: no figures of the memory")
    elif case.bytes_held <= 10 * cache_bytes:
        notes.append(f"{case.bytes_held / cache_bytes:.0f} times the L2 cache: some of it may stay there")
    if case.launch_bound:
        notes.append("the time of a step includes what the device waits for the host; graph us is without")
    told = [row for row in rows if row.get("device_us")]
    failed = [f"  {row['contender']}: not timed: {row['failed']}" for row in rows if not row.get("device_us")]
    lines = [f"{case.name}: {case.title}; {'; '.join(notes)}", plain_table(COLUMNS, [cells(row) for row in told])]
    return "\n".join([*lines, *failed])


LEGEND = """device us: median time of a step by the device's clock; *: the host is slower, so the device waits for it.
host us: until step() returns. graph us: a replay of the captured step. of a copy: share of the measured bandwidth of a
device copy. ratio: device us over that of the contender in the next column."""
MARKDOWN = (
    "case",
    "contender",
    "device us",
    "host us",
    "graph us",
    "bytes/param",
    "GB/s",
    "of a copy",
    "ratio",
    "to",
)


def markdown_table(rows: list[Row]) -> str:
    """For the README."""
    lines = ["| " + " | ".join(MARKDOWN) + " |", "|---|---|" + "---:|" * (len(MARKDOWN) - 2)]
    known = ""
    for row in rows:
        if row.get("device_us"):
            name, device, _, host, graph, traffic, speed, share, ratio, to, _ = cells(row)
            case, known = ("" if row["case"] == known else row["case"]), row["case"]
            lines.append("| " + " | ".join([case, name, device, host, graph, traffic, speed, share, ratio, to]) + " |")
    return "\n".join(lines)
