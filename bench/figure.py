"""The figure of a run on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from results_file import Row

TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
COLOURS = {"onepass": "#0072B2", "torch": "#999999", "adamp": "#E69F00", "timm": "#CC79A7"}


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


def panel(axes: Any, title: str, group: list[Row]) -> None:
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
