"""The demo's figures. Each title says what was measured in this run."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from demo_norm import PROJECTED, NormRun
from demo_scale import DECAYS, SCALES, SHOWN, ScaleRun

# Okabe and Ito's colours, which the colour-blind can tell apart; a projected twin has its partner's hue, dashed.
LINES = {"SGD": ("#0072B2", "-"), "SGDP": ("#56B4E9", "--"), "AdamW": ("#D55E00", "-"), "AdamP": ("#E69F00", "--")}
GATES = {"channel": "#009E73", "layer": "#F0E442", "none": "#BBBBBB"}
LAYERS = ("conv 1", "conv 2", "conv 3", "conv 4", "classifier")
LAYER_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#000000")
# Wide and pale below, narrow and dark above: lines that coincide all stay visible.
SCALE_LINES = {1: ("#F5C710", 7), 10: ("#D55E00", 3.5), 100: ("#000000", 1.2)}

plt.rcParams.update(
    {"figure.dpi": 130, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.titlesize": 10}
)


def norm_figure(runs: dict[str, list[NormRun]], path: Path) -> None:
    """Accuracy, norm growth and effective step of the four optimizers over training."""
    figure, (accuracy, growth, effective) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    epochs = len(next(iter(runs.values()))[0].accuracy)
    for name in runs:
        for axes, curves in (
            (accuracy, [[100 * a for a in run.accuracy] for run in runs[name]]),
            (growth, [run.growth for run in runs[name]]),
            (effective, [smooth(run.effective) for run in runs[name]]),
        ):
            band(axes, np.array(curves), epochs, name)
    ends = {name: np.mean([run.growth[-1] for run in runs[name]]) for name in runs}
    accuracy.set(title="Test accuracy (%)", ylim=(85, 100.3))
    growth.set_title("|w| / |w at the start|, mean of the convolutions")
    effective.set(title="Effective step: how far w/|w| moves in a step", yscale="log")
    for axes in (accuracy, growth, effective):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    accuracy.legend(loc="lower right", frameon=False)
    grown = ", ".join(f"x{ends[name]:.2f} under {name}" for name in runs)
    figure.suptitle(f"The scale-invariant convolutions end at {grown}  (lines: mean of seeds, bands: their range)")
    save(figure, path)


def band(axes, curves: np.ndarray, epochs: int, name: str) -> None:
    colour, style = LINES[name]
    x = np.linspace(epochs / curves.shape[1], epochs, curves.shape[1])
    axes.plot(x, curves.mean(0), style, color=colour, label=name, linewidth=1.8)
    axes.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.18, linewidth=0)


def smooth(values: list[float], width: int = 7) -> np.ndarray:
    """A running mean, shorter at the ends."""
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def gate_figure(runs: dict[str, list[NormRun]], path: Path) -> None:
    """The gate of every layer at every step, and the cosine that decides it."""
    figure, grid = plt.subplots(2, 2, figsize=(13, 6), layout="constrained", width_ratios=(1.25, 1), sharex="col")
    kinds = list(GATES)
    colours = ListedColormap(list(GATES.values()))
    for (left, right), name in zip(grid, PROJECTED, strict=True):
        verdicts = runs[name][0].verdicts
        taken = np.array([[kinds.index(v.gate) for v in step] for step in verdicts]).T
        left.imshow(taken, aspect="auto", interpolation="nearest", cmap=colours, vmin=0, vmax=2)
        left.hlines(np.arange(len(LAYERS) - 1) + 0.5, -0.5, taken.shape[1] - 0.5, color="white", linewidth=2)
        left.set_yticks(range(len(LAYERS)), LAYERS)
        convs, classifier = share(taken[:-1], 0), share(taken[-1], 2)
        left.set_title(
            f"{name}: convolutions take channel at {convs} of the steps, the classifier none at {classifier}"
        )
        cosines = np.array([[v.cosine for v in step] for step in verdicts]).T
        for layer, colour, values in zip(LAYERS, LAYER_COLOURS, cosines, strict=True):
            right.plot(values, color=colour, label=layer, linewidth=1)
        right.axhline(0.1, color="#CC79A7", linewidth=1.8, linestyle="--", label="delta")
        right.set(yscale="log", title=f"{name}: max over channels of |cos(g, w)| x sqrt(length)")
        right.grid(alpha=0.25)
    for axes in grid[1]:
        axes.set_xlabel("step")
    grid[0][1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    patches = [Patch(color=colour, label=f"gate {gate}") for gate, colour in GATES.items()]
    figure.legend(handles=patches, loc="outside lower center", ncol=3, frameon=False)
    figure.suptitle("Which weights the gate finds scale-invariant: those whose cosine stays below delta (first seed)")
    save(figure, path)


def share(taken: np.ndarray, kind: int) -> str:
    return f"{100 * float((taken == kind).mean()):.0f}%"


def scale_figure(runs: dict[str, dict[float, ScaleRun]], path: Path) -> None:
    """Accuracy and weight norm against the weight decay, at three loss scales."""
    figure, grid = plt.subplots(2, len(runs), figsize=(13, 6.2), layout="constrained", sharex=True, sharey="row")
    for (top, bottom), name in zip(grid.T, runs, strict=True):
        means = {}
        for i, scale in enumerate(SCALES):
            colour, width = SCALE_LINES[scale]
            accuracy = np.array([100 * runs[name][wd].accuracy[i] for wd in DECAYS])
            means[scale] = accuracy.mean(1)
            top.plot(DECAYS, accuracy.mean(1), color=colour, linewidth=width, label=f"loss x{scale}", zorder=i)
            top.fill_between(DECAYS, accuracy.min(1), accuracy.max(1), color=colour, alpha=0.15, linewidth=0)
            growth = [runs[name][wd].growth[i].mean() for wd in DECAYS]
            bottom.plot(DECAYS, growth, color=colour, linewidth=width, label=f"loss x{scale}", zorder=i)
        moved = max(np.ptp([means[scale][j] for scale in SCALES]) for j in range(len(DECAYS)))
        top.set(title=f"{name}\nthe loss scale moves accuracy by up to {moved:.1f} points", xscale="log")
        bottom.set(xscale="log", xlabel="weight decay")
        for axes in (top, bottom):
            axes.grid(alpha=0.25)
    grid[0][0].set_ylabel("test accuracy (%)")
    grid[1][0].set_ylabel("|w| at the end / at the start")
    grid[1][0].legend(frameon=False, loc="lower left")
    figure.suptitle("The same deep net without normalisation, its loss multiplied by 1, 10 and 100")
    save(figure, path)


def update_figure(runs: dict[str, dict[float, ScaleRun]], path: Path) -> None:
    """Histogram of floor(log2|update|), decay excluded, at three loss scales."""
    figure, grid = plt.subplots(1, len(runs), figsize=(13, 4), layout="constrained", sharex=True, sharey=True)
    for axes, name in zip(grid, runs, strict=True):
        run = runs[name][SHOWN[name]]
        for i, scale in enumerate(SCALES):
            colour, width = SCALE_LINES[scale]
            shares = {k: 100 * n / sum(run.updates[i].values()) for k, n in run.updates[i].items()}
            edges = np.arange(-24, -7)
            heights = [shares.get(int(k), 0) for k in edges[:-1]]
            axes.stairs(heights, edges, color=colour, linewidth=width, zorder=i, label=f"loss x{scale}")
        (low, high), (last_low, last_high) = spread(run.updates[0]), spread(run.updates[-1])
        axes.set_title(
            f"{name}, wd {SHOWN[name]:g}\nmiddle 90%: {low} to {high} at x1, {last_low} to {last_high} at x{SCALES[-1]}"
        )
        axes.set_xlabel("floor(log2 |update|)")
        axes.grid(alpha=0.25)
    grid[0].set_ylabel("share of the updates (%)")
    grid[0].legend(frameon=False, loc="upper left")
    figure.suptitle("Size of the updates, decay excluded, over the last epoch at the full learning rate")
    save(figure, path)


def spread(updates: dict[int, int], tail: float = 0.05) -> tuple[int, int]:
    """The smallest and largest k of the middle 90% of a histogram."""
    ks = sorted(updates)
    cumulated = np.cumsum([updates[k] for k in ks]) / sum(updates.values())
    return ks[int(np.searchsorted(cumulated, tail))], ks[int(np.searchsorted(cumulated, 1 - tail))]


def save(figure, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)
