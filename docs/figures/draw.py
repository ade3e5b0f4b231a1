"""Every figure, each from one CSV file: `python docs/figures/draw.py` draws all of the repository again.

A figure is drawn twice, NAME.svg and NAME-dark.svg, beside its CSV, whose digest is in both. A function of FIGURES gets the
rows and returns the figure. The styles are light.mplstyle and, upon it, dark.mplstyle; C0 to C4 are the colours of both.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WIDTH = 7.5  # inches, of every figure
THEMES = {"": ("light",), "-dark": ("light", "dark")}  # suffix of the file, styles
Row = dict[str, str]

# ------------------------------------------------------------------ of the demo (examples/demo.py)

GATES = {"channel": "C2", "layer": "C3", "none": "C4"}


def gates(rows: list[Row]) -> Figure:
    """AdamP: the cosine of every layer at every step, and the gate that it leads to."""
    layers = by(rows, "layer")
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.9), width_ratios=(1.1, 1))
    for layer, own in layers.items():
        last = layer == list(layers)[-1]
        values = numbers(own, "cosine")
        left.plot(numbers(own, "step"), values, color="C1" if last else "C0", linewidth=1)
    left.axhline(0.1, color="C3", linestyle="--")
    for y, text, colour in (
        (0.6, "classifier", "C1"),
        (0.13, "projected below this line (delta)", "C3"),
        (2.2e-3, "four convolutions before batch norm", "C0"),
    ):
        left.text(0.98, y, text, color=colour, transform=left.get_yaxis_transform(), ha="right", va="bottom")
    left.set(yscale="log", xlabel="step", ylabel="|cos| x sqrt(length)", title="Cosine, by channel")

    kinds = list(GATES)
    taken = [[kinds.index(row["gate"]) for row in own] for own in layers.values()]
    colours = ListedColormap(list(GATES.values()))
    right.pcolormesh(taken, cmap=colours, vmin=0, vmax=len(kinds) - 1, rasterized=True)
    for edge in range(1, len(layers)):
        right.axhline(edge, color=plt.rcParams["axes.facecolor"], linewidth=3)
    right.set_yticks([i + 0.5 for i in range(len(layers))], list(layers))
    right.invert_yaxis()
    right.grid(False)
    right.set(xlabel="step", title="What AdamP projects")
    handles = [Patch(color=colour, label=f"gate {kind}") for kind, colour in GATES.items()]
    right.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)
    return figure


PAIRS = (("SGD", "SGDP"), ("AdamW", "AdamP"))
QUANTITIES = {
    "growth": "Norm of the convolutions / at the start",
    "effective": "How far a step turns the weight",
}


def norm_growth(rows: list[Row]) -> Figure:
    """Small multiples: each pair of optimizers, with and without projection, by each quantity."""
    own = by(rows, "optimizer")
    figure, grid = plt.subplots(2, 2, figsize=(WIDTH, 4.6), sharex=True, sharey="row")
    for panels, (quantity, title) in zip(grid, QUANTITIES.items(), strict=True):
        for axes, pair in zip(panels, PAIRS, strict=True):
            for name, colour in zip(pair, ("C0", "C1"), strict=True):
                epochs = numbers(own[name], "epoch")
                low, mean, high = (numbers(own[name], f"{quantity}_{of}") for of in ("low", "mean", "high"))
                axes.fill_between(epochs, low, high, color=colour, alpha=0.25, linewidth=0)
                axes.plot(epochs, mean, color=colour, label=name)
            axes.set_title(f"{pair[0]} and {pair[1]}" if quantity == "growth" else "")
        panels[0].set_ylabel(title.replace(" / ", "\n/ ").replace(" step ", " step\n"))
    for axes in grid[0]:
        axes.legend(loc="center right")
    grid[1][0].set_yscale("log")
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    return figure


def loss_scale(rows: list[Row]) -> Figure:
    """Accuracy and weight norm against the weight decay, with the loss multiplied by three constants."""
    optimizers = by(rows, "optimizer")
    scales = list(by(rows, "loss_scale"))
    figure, grid = plt.subplots(2, len(optimizers), figsize=(WIDTH, 4.4), sharex="col", sharey="row")
    for panels, (name, own) in zip(grid.T, optimizers.items(), strict=True):
        # Wide below, narrow above: lines that coincide all stay visible.
        for scale, colour, width in zip(scales, ("C3", "C0", "C1"), (6, 3.2, 1.2), strict=True):
            by_decay = by([row for row in own if row["loss_scale"] == scale], "weight_decay")
            decays = [float(wd) for wd in by_decay]
            for axes, quantity in zip(panels, ("accuracy_percent", "growth"), strict=True):
                means = [mean(numbers(seeds, quantity)) for seeds in by_decay.values()]
                axes.plot(decays, means, color=colour, linewidth=width, label=f"loss x {scale}")
        panels[0].set(title=name, xscale="log")
        panels[1].set_xlabel("weight decay")
        panels[1].set_xticks(decays, [f"{wd:g}" for wd in decays])
        panels[1].minorticks_off()
    grid[0][0].set_ylabel("test accuracy (%)")
    grid[1][0].set_ylabel("norm of the weights\n/ at the start")
    grid[1][0].legend(loc="lower left")
    return figure


# ------------------------------------------------------------------ of examples/precision.py

# Colours by how the weights are stored, lines by how the moments are.
WEIGHTS = {"float32": "C4", "bf16 exact": "C0", "bf16 stochastic": "C2", "bf16": "C1"}
MOMENTS = {"": "-", "short": "--", "8 bits": ":"}


def precision(rows: list[Row]) -> Figure:
    """How far training losses are from those of float32, by the precision of weights and moments."""
    tasks = by(rows, "task")
    figure, grid = plt.subplots(1, len(tasks), figsize=(WIDTH, 3.4))
    for axes, (task, own) in zip(grid, tasks.items(), strict=True):
        for name, run in by(own, "precision").items():
            weights, _, moments = name.partition(", ")
            style = dict(color=WEIGHTS[weights], linestyle=MOMENTS[moments], zorder=3 if weights == "float32" else 2)
            axes.plot(numbers(run, "step"), numbers(run, "apart"), label=name, linewidth=1.6, **style)
        axes.set(title=task, xlabel="step")
    grid[0].set_ylabel("training loss less that of float32")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


# ------------------------------------------------------------------ of the bench (bench/run.py)

BARS = {
    "gpt2-adam": "GPT-2",
    "gpt2-adam-tangent": "GPT-2, every matrix projected",
    "gpt2-clip": "GPT-2, clipped by the norm",
    "gpt2-sgd": "GPT-2, SGD with momentum",
    "resnet50": "ResNet-50",
    "small-matrices": "1,000 matrices of 8 x 8",
}
WHO = {
    "onepass AdamW or SGD": ("C0", ("onepass AdamW", "onepass SGD", "onepass AdamW, clip")),
    "onepass AdamP or SGDP": ("C1", ("onepass AdamP", "onepass SGDP", "onepass AdamP, clip")),
    "adamp's": ("C4", ("adamp AdamP", "adamp SGDP")),
    "timm's": ("C3", ("timm AdamP", "timm SGDP")),
}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


def bench(rows: list[Row]) -> Figure:
    """Bars in groups, one for a case: times of a step over that of torch's fused AdamW or SGD, to the left of 1 what is faster."""
    cases = [case for case in BARS if case in by(rows, "case")]
    figure, axes = plt.subplots(figsize=(WIDTH, 0.5 + 0.72 * len(cases)))
    y, ticks = 0.0, []
    for case in cases:
        first = y
        for colour, names in WHO.values():
            for row in rows:
                if row["case"] == case and row["contender"] in names:
                    ratio = float(row["ratio"])
                    axes.barh(y, ratio - 1, left=1, color=colour, height=0.9)
                    digits = 2 if ratio < 2 else 1
                    axes.annotate(
                        f"{ratio:.{digits}f}", (max(1, ratio), y), (4, 0), textcoords="offset points", va="center"
                    )
                    y += 1
        ticks.append((first + y - 1) / 2)
        y += 0.8
    axes.axvline(1, color=plt.rcParams["text.color"], linewidth=1)
    about = f"{rows[0]['device']}, {rows[0]['threads']} threads, {rows[0]['isa']}"
    label = "time of a step / time of torch's fused AdamW or SGD (1: as fast)"
    axes.set(xscale="log", xlim=(0.1, 100), xlabel=f"{label}\n{about}")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_yticks(ticks, [BARS[case] for case in cases])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    handles = [Patch(color=colour, label=who) for who, (colour, _) in WHO.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


# ------------------------------------------------------------------ rows, files


def by(rows: Iterable[Row], field: str) -> dict[str, list[Row]]:
    """The rows by their value of a field, in the order of the file."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[field], []).append(row)
    return groups


def numbers(rows: Iterable[Row], field: str) -> list[float]:
    return [float(row[field]) for row in rows]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


FIGURES: dict[str, Callable[[list[Row]], Figure]] = {
    "gates": gates,
    "norm-growth": norm_growth,
    "loss-scale": loss_scale,
    "precision": precision,
    "bench": bench,
}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def draw(name: str, path: Path) -> list[Path]:
    """Draws the figure `name` from the CSV at `path`, light and dark; returns both files."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    written = []
    for suffix, styles in THEMES.items():
        with plt.style.context([HERE / f"{style}.mplstyle" for style in styles]):
            figure = FIGURES[name](rows)
            written.append(path.with_name(f"{path.stem}{suffix}.svg"))
            figure.savefig(written[-1], metadata={"Date": None, "Source": f"{path.name} {digest(path)}"})
            plt.close(figure)
    return written


def of_the_repository() -> dict[Path, str]:
    """The CSV files of the repository that have a figure, and its name."""
    own = {path: path.stem for path in sorted(HERE.glob("*.csv"))}
    cases = {path: "bench" for path in sorted((ROOT / "bench/results").glob("*.csv")) if "precision" not in path.stem}
    return own | cases


if __name__ == "__main__":
    for path, name in of_the_repository().items():
        for written in draw(name, path):
            print(written.relative_to(ROOT))
