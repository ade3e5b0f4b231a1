"""Report of the CPU's bench: rows for a CSV, with targets and measured values, and plain tables."""

from __future__ import annotations

from cases import Case
from harness import Timing, ratio
from report import Columns, percent, quartiles_of, row_of, table, titled
from results_file import Row
from shapes import Shape, numel_of
from targets import CPU, MEMORY, Goal, Target, goals

# `ratio` is the time over that of `baseline`. `measured` names, like `target`, the contender that the time is divided by.
FIELDS = (
    "case", "contender", "dtype", "tensors", "parameters", "rounds", "median_ms", "q1_ms", "q3_ms", "baseline", "ratio",
    "bytes_per_parameter", "gb_per_s", "corrected_percent", "extra_memory_percent", "target", "measured", "reached",
    "date", "device", "cores", "load", "threads", "isa", "backend", "torch", "onepass", "python", "commit",
)  # fmt: skip
COLUMNS: Columns = {
    "contender": lambda row: row["contender"],
    "ms": lambda row: f"{row['median_ms']:.2f}",
    "quartiles": lambda row: f"{row['q1_ms']:.2f}-{row['q3_ms']:.2f}",
    "ratio": lambda row: f"{row['ratio']:.3f}",
    "GB/s": lambda row: f"{row['gb_per_s']:.1f}" if row["gb_per_s"] else "",
    "corrected": lambda row: percent(row["corrected_percent"]),
}
MEMORY_COLUMNS: Columns = {
    "contender": lambda row: row["contender"],
    "% of the parameters' bytes": lambda row: f"{row['extra_memory_percent']:.2f}",
}


def time_rows(case: Case, timings: dict[str, Timing]) -> tuple[list[Row], list[Goal]]:
    rows, found = [], []
    for name, timing in timings.items():
        row = row_of(case, timing)
        baseline, traffic = row["baseline"], row["bytes_per_parameter"]

        def measured(target: Target, name: str = name, baseline: str = baseline) -> float | None:
            against = target.against or baseline
            return ratio(timings, name, against) if against in timings else None

        own = [*goals(CPU, case.name, name, baseline, measured)]
        row |= quartiles_of(timing, "median", "ms", 1e3, 4)
        row["ratio"] = round(ratio(timings, name, baseline), 4)
        row["gb_per_s"] = round(traffic * case.numel / timing.quartiles[1] / 1e9, 2) if traffic else None
        row["target"] = "; ".join(f"<= {goal.target.limit:.3g} x {goal.target.against or baseline}" for goal in own)
        row["measured"] = "; ".join(f"{goal.measured:.4f} x {goal.target.against or baseline}" for goal in own)
        row["reached"] = verdicts(own)
        rows.append(row)
        found += own
    return rows, found


def memory_row(name: str, share: float, shapes: tuple[Shape, ...]) -> tuple[Row, list[Goal]]:
    baseline = "bytes of the parameters"
    own = [*goals(CPU, "memory", name, baseline, lambda target: 100 * share)]
    row = {
        "case": "memory",
        "contender": name,
        "dtype": "float32",
        "tensors": len(shapes),
        "parameters": numel_of(shapes),
        "baseline": baseline,
        MEMORY: round(100 * share, 3),
        "target": "; ".join(f"<= {goal.target.limit:g}% of the parameters" for goal in own),
        "measured": "; ".join(f"{round(goal.measured, 3)}% of the parameters" for goal in own),
        "reached": verdicts(own),
    }
    return row, own


def verdicts(found: list[Goal]) -> str:
    return "; ".join("yes" if goal.reached else "no" for goal in found)


def time_table(case: Case, rows: list[Row]) -> str:
    return titled(case, [f"ratios to {rows[0]['baseline']}"], COLUMNS, rows)


def memory_table(rows: list[Row]) -> str:
    title = f"Peak memory of steps beyond parameters, gradients and state, {rows[0]['parameters']:,} parameters"
    return f"{title}\n{table(MEMORY_COLUMNS, rows)}"
