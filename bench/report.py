"""What the bench leaves: a printed table, a CSV row per contender, and a figure."""

from __future__ import annotations

import os
import platform
import re
from datetime import date
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

import onepass
from cases import MEMORY_TARGET, Case
from harness import Timing, ratio, reached
from results_file import Row, commit
from shapes import Shape, numel_of

# `ratio` is the time over that of `baseline`. `measured` names, like `target`, the contender that the time is divided by.
FIELDS = (
    "case", "contender", "dtype", "tensors", "parameters", "rounds", "median_ms", "q1_ms", "q3_ms", "baseline", "ratio",
    "bytes_per_parameter", "gb_per_s", "corrected_percent", "extra_memory_percent", "target", "measured", "reached",
    "date", "device", "cores", "load", "threads", "isa", "backend", "torch", "onepass", "python", "commit",
)  # fmt: skip
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
COLOURS = {"onepass": "#0072B2", "torch": "#999999", "adamp": "#E69F00", "timm": "#CC79A7"}


def machine() -> Row:
    """What the figures were measured on and with."""
    native = getattr(onepass.backend.compiled, "_C", None)
    return {
        "date": date.today().isoformat(),
        "device": device_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else "",
        "threads": torch.get_num_threads(),
        "isa": native.isa() if native else torch.backends.cpu.get_cpu_capability(),
        "backend": "cpu" if onepass.backends()["cpu"] is None else "reference",
        "torch": torch.__version__,
        "onepass": onepass.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


def device_name() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def time_rows(case: Case, timings: dict[str, Timing]) -> list[Row]:
    numel = numel_of(case.shapes)
    baseline = case.contenders[0].name
    rows = []
    for name, timing in timings.items():
        contender, (low, middle, high) = timing.contender, timing.quartiles
        checked = [(target, *reached(timings, name, target)) for target in contender.targets]
        rows.append(
            {
                "case": case.name,
                "contender": name,
                "dtype": str(contender.dtype).removeprefix("torch."),
                "tensors": len(case.shapes),
                "parameters": numel,
                "rounds": len(timing.seconds),
                "median_ms": round(1e3 * middle, 4),
                "q1_ms": round(1e3 * low, 4),
                "q3_ms": round(1e3 * high, 4),
                "baseline": baseline,
                "ratio": round(ratio(timings, name, baseline), 4),
                "bytes_per_parameter": contender.traffic,
                "gb_per_s": round(contender.traffic * numel / middle / 1e9, 2) if contender.traffic else None,
                "corrected_percent": None if timing.corrected is None else round(100 * timing.corrected, 2),
                "target": "; ".join(f"<= {target.ratio:.3g} x {target.against}" for target, _, _ in checked),
                "measured": "; ".join(f"{measured:.4f} x {target.against}" for target, measured, _ in checked),
                "reached": "; ".join("yes" if good else "no" for _, _, good in checked),
            }
        )
    return rows


def memory_row(name: str, share: float, shapes: tuple[Shape, ...], aimed: bool) -> Row:
    percent = round(100 * share, 3)
    return {
        "case": "memory",
        "contender": name,
        "dtype": "float32",
        "tensors": len(shapes),
        "parameters": numel_of(shapes),
        "baseline": "bytes of the parameters",
        "extra_memory_percent": percent,
        "target": f"<= {100 * MEMORY_TARGET:g}% of the parameters" if aimed else "",
        "measured": f"{percent}% of the parameters" if aimed else "",
        "reached": ("yes" if share <= MEMORY_TARGET else "no") if aimed else "",
    }


def time_table(case: Case, rows: list[Row]) -> Table:
    title = f"{case.name}: {case.title}, {len(case.shapes)} tensors, {rows[0]['parameters']:,} parameters, ratios to {rows[0]['baseline']}"
    table = table_of(title, ("contender", "ms", "quartiles", "ratio", "GB/s", "corrected"))
    for row in rows:
        corrected = row["corrected_percent"]
        table.add_row(
            row["contender"],
            f"{row['median_ms']:.2f}",
            f"{row['q1_ms']:.2f}-{row['q3_ms']:.2f}",
            f"{row['ratio']:.3f}",
            f"{row['gb_per_s']:.1f}" if row["gb_per_s"] else "-",
            "-" if corrected is None else f"{corrected:.1f}%",
        )
    return table


def memory_table(rows: list[Row]) -> Table:
    title = f"Peak memory of steps beyond parameters, gradients and state, {rows[0]['parameters']:,} parameters"
    table = table_of(title, ("contender", "% of the parameters' bytes"))
    for row in rows:
        table.add_row(row["contender"], f"{row['extra_memory_percent']:.2f}")
    return table


def target_table(rows: list[Row]) -> Table:
    """Everything that was to be reached, a line for each target."""
    table = table_of("To reach", ("contender", "time or memory", "measured", "reached"))
    table.columns[1].justify = "left"
    case = None
    for row in rows:
        pairs = zip(*(row[field].split("; ") for field in ("target", "measured", "reached")), strict=True)
        for target, measured, good in pairs:
            if not good:
                continue
            if row["case"] != case:
                table.add_section()
                table.add_row(f"[bold]{row['case']}[/]")
                case = row["case"]
            colour = {"yes": "green", "no": "red"}[good]
            table.add_row(f"  {row['contender']}", target, measured.split()[0], f"[{colour}]{good}[/]")
    return table


def table_of(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def figure(titles: dict[str, str], rows: list[Row], about: Row, path: Path) -> None:
    """A panel per case: time relative to the baseline's, to the left of 1 what is faster, with the ratios to reach."""
    groups = {name: [row for row in rows if row["case"] == name] for name in titles}
    heights = [len(group) for group in groups.values()]
    size = (9, 0.26 * sum(heights) + 0.35 * len(groups) + 0.9)
    drawn, grid = plt.subplots(
        len(groups), 1, figsize=size, height_ratios=heights, layout="constrained", sharex=True, squeeze=False, dpi=130
    )
    for axes, (name, group) in zip(grid[:, 0], groups.items(), strict=True):
        panel(axes, titles[name], group)
    ratios = [row["ratio"] for row in rows if row["case"] in groups]
    grid[-1, 0].set_xscale("log")
    grid[-1, 0].set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    grid[-1, 0].minorticks_off()
    grid[-1, 0].set_xlim(0.8 * min([*ratios, 0.05]), 1.6 * max([*ratios, 2]))
    grid[-1, 0].set_xlabel("time of a step / time of torch's fused step (logarithmic; red: to reach)", fontsize=9)
    drawn.suptitle(
        f"{about['device']}, {about['isa']}, threads: {about['threads']}, torch {about['torch']}", fontsize=10
    )
    drawn.savefig(path)
    plt.close(drawn)


def panel(axes, title: str, group: list[Row]) -> None:
    names = [row["contender"] for row in group]
    colours = [COLOURS[name.split()[0]] for name in names]
    axes.barh(names, [row["ratio"] - 1 for row in group], left=1, color=colours, height=0.72)
    for y, row in enumerate(group):
        aim = aims_at(row)
        if aim:
            axes.plot([aim, aim], [y - 0.45, y + 0.45], color="#D55E00", linewidth=2)
        axes.text(1.07 * max(1, row["ratio"], aim), y, f"{row['ratio']:.2f}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set_title(f"{title} (1 = {group[0]['baseline']}, {group[0]['median_ms']:.2f} ms)", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def aims_at(row: Row) -> float:
    """The ratio to the baseline that is to be reached, 0 where there is none."""
    for target in row["target"].split("; "):
        if target.endswith(f" x {row['baseline']}"):
            return float(target.split()[1])
    return 0.0
