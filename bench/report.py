"""What both benches leave: rows for a CSV, and plain tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cases import Case
from harness import Timing
from results_file import Row

# Heading of a column, and the cell of a row in it.
Columns = dict[str, Callable[[Row], str]]


def row_of(case: Case, timing: Timing) -> Row:
    """Without times where a contender was not timed."""
    contender, dtype = timing.contender, case.dtype_of(timing.contender)
    row: Row = {
        "case": case.name,
        "contender": contender.name,
        "dtype": str(dtype).removeprefix("torch."),
        "tensors": len(case.shapes),
        "parameters": case.numel,
        "bytes_per_parameter": contender.traffic.get(dtype),
    }
    if timing.seconds:
        corrected = timing.corrected
        row |= {
            "rounds": len(timing.seconds),
            "baseline": case.baseline_of(contender).name,
            "corrected_percent": round(100 * sum(corrected) / len(corrected), 2) if corrected else None,
        }
    return row


def quartiles_of(timing: Timing, prefix: str, unit: str, scale: float, digits: int) -> Row:
    low, middle, high = (round(scale * seconds, digits) for seconds in timing.quartiles)
    return {f"{prefix}_{unit}": middle, f"q1_{unit}": low, f"q3_{unit}": high}


def number(x: float | None) -> str:
    if x is None:
        return ""
    return f"{x:,.0f}" if x >= 1000 or x == int(x) else f"{x:.1f}"


def percent(x: float | None) -> str:
    return "" if x is None else f"{x:.1f}%"


def table(columns: Columns, rows: Sequence[Row]) -> str:
    lines = [[*columns], *([cell(row) for cell in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )


def titled(case: Case, notes: Sequence[str], columns: Columns, rows: Sequence[Row]) -> str:
    about = "; ".join([f"{len(case.shapes):,} tensors", f"{case.numel:,} parameters", *notes])
    return f"{case.name}: {case.title}; {about}\n{table(columns, rows)}"
