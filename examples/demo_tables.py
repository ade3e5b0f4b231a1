"""The demo's tables, and in plain words which claims of the papers showed in this run."""

from __future__ import annotations

import statistics
from collections import Counter

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from demo_norm import SETTINGS, NormRun
from demo_scale import BIT_STEPS, BLOCKS, LR, MISLABELLED, SCALES, ScaleRun
from demo_timing import LIKE_TORCH, ROUNDS


def percent(values: list[float]) -> str:
    """Mean and spread (standard deviation over seeds) in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} ± {100 * deviation:.2f}"


def steps_early_and_late(
    runs: list[NormRun], early: float = 0.1, late: tuple[float, float] = (0.6, 0.7)
) -> list[float]:
    """Mean effective step over the first tenth of training, and over the last tenth at the full learning rate."""
    total = len(runs[0].effective)
    spans = (slice(0, max(1, int(early * total))), slice(int(late[0] * total), max(1, int(late[1] * total))))
    return [statistics.mean(statistics.mean(run.effective[span]) for run in runs) for span in spans]


def norm_table(runs: dict[str, list[NormRun]]) -> Table:
    seeds = len(next(iter(runs.values())))
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"(a) Conv net with batch norm on digits, {seeds} seeds",
        caption=f"{SETTINGS}. |w|: end over start, mean of the convolutions. Early, late: 1000 x the effective step, which "
        "is how far w/|w| moves in a step; mean of the first tenth of training, and of the last tenth before the learning "
        "rate falls.",
    )
    for column in ("optimizer", "accuracy %", "|w|", "early", "late", "convs' gate", "classifier"):
        table.add_column(column, justify="left" if column == "optimizer" else "right", no_wrap=True)
    for name, own in runs.items():
        early, late = steps_early_and_late(own)
        table.add_row(
            name,
            percent([run.accuracy[-1] for run in own]),
            f"x{statistics.mean(run.growth[-1] for run in own):.3f}",
            f"{1000 * early:.1f}",
            f"{1000 * late:.1f}",
            *gates(own),
        )
    return table


def gates(runs: list[NormRun]) -> tuple[str, str]:
    """The gate that the convolutions took most, and the classifier, and how often."""
    steps = [step for run in runs for step in run.verdicts]
    if not steps:
        return "-", "-"
    convs = [v.gate for step in steps for v in step[:-1]]
    return most(convs), most([step[-1].gate for step in steps])


def most(taken: list[str]) -> str:
    gate, times = Counter(taken).most_common(1)[0]
    return f"{gate} {100 * times / len(taken):.0f}%"


def scale_table(runs: dict[str, dict[float, ScaleRun]]) -> Table:
    seeds = next(iter(runs["AdamW"].values())).accuracy.shape[1]
    layers = 2 * BLOCKS + 2
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"(b) Residual net of {layers} linear layers, no normalisation, {seeds} seeds",
        caption=f"lr {LR:g}; {100 * MISLABELLED:.0f}% of the training labels drawn at random, as without that no decay is of "
        "use on digits. wd in the paper's convention (decouple_lr=True), swept in factors of 2: "
        + ", ".join(f"{min(own):g} to {max(own):g} ({name})" for name, own in runs.items())
        + ".",
    )
    for column in ("optimizer", "loss x", "best accuracy %", "at wd"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for name in runs:
        for i, scale in enumerate(SCALES):
            best = best_wd(runs[name], i)
            table.add_row(
                name if i == 0 else "",
                str(scale),
                percent(runs[name][best].accuracy[i].tolist()),
                f"{best:g}",
                end_section=i == len(SCALES) - 1,
            )
    return table


def best_wd(runs: dict[float, ScaleRun], i: int) -> float:
    return max(runs, key=lambda wd: float(runs[wd].accuracy[i].mean()))


def time_table(net: str, times: dict[tuple[str, str], float], backend: str) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"Time of an optimizer step: {net}",
        caption=f"onepass backend {backend}, {torch.get_num_threads()} threads, median of {ROUNDS} interleaved rounds. 10x: "
        "onepass takes a tenth of the time. torch has no AdamProx, AdamP, SGDP: its AdamW and SGD stand beside them. Nets as small as these "
        "flatter onepass: most of a step is calls, not memory. `make bench` times real sizes.",
    )
    for column in ("rule", "onepass", "torch fused", "torch default", "adamp"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for rule, like in LIKE_TORCH.items():
        ours = times[rule, "onepass"]
        others = [times.get(key) for key in ((like, "torch fused"), (like, "torch"), (rule, "adamp"))]
        ratios = [f"{1e6 * other:.0f} us, {other / ours:.1f}x" if other else "-" for other in others]
        table.add_row(rule, f"{1e6 * ours:.0f} us", *ratios)
    return table


def verdict(shows: bool) -> str:
    return "[green]shows[/]" if shows else "[yellow]does not show here[/]"


def norm_claims(runs: dict[str, list[NormRun]]) -> list[str]:
    lines = []
    for plain, projected in (("SGD", "SGDP"), ("AdamW", "AdamP")):
        grown = {name: statistics.mean(run.growth[-1] for run in runs[name]) for name in (plain, projected)}
        late = {name: steps_early_and_late(runs[name])[1] for name in (plain, projected)}
        lines.append(
            f"{verdict(grown[projected] < grown[plain] and late[projected] > late[plain])}: projection slows the growth "
            f"of the norm and so the fall of the effective step. {plain} x{grown[plain]:.2f}, {projected} "
            f"x{grown[projected]:.2f}; late in training {projected} moves {late[projected] / late[plain]:.1f} times as "
            "far per step."
        )
        pair = [[run.accuracy[-1] for run in runs[name]] for name in (projected, plain)]
        gain = statistics.mean(pair[0]) - statistics.mean(pair[1])
        lines.append(
            f"{verdict(gain > noise(*pair))}: {projected} is more accurate than {plain}. Measured {100 * gain:+.2f} points; "
            f"chance, in seeds and in the choice of test images, can make {100 * noise(*pair):.2f}."
        )
    return lines


def noise(*groups: list[float]) -> float:
    """Twice the standard error of a difference of two mean accuracies.

    The seeds are scored on the same 899 images, so the error is at least that of one seed's score.
    """
    variance = 0.0
    for values in groups:
        mean = min(statistics.mean(values), 0.999)
        among = statistics.variance(values) / len(values) if len(values) > 1 else 0.0
        variance += max(among, mean * (1 - mean) / 899)
    return 2 * variance**0.5


def scale_claims(runs: dict[str, dict[float, ScaleRun]], bits: dict[str, bool]) -> list[str]:
    # For each optimizer the weight decay at which the scale of the loss moves its accuracy most, and by how much.
    moved, by_chance = {}, {}
    for name, own in runs.items():
        ranges = {wd: float(np.ptp(run.accuracy.mean(1))) for wd, run in own.items()}
        wd = max(ranges, key=ranges.__getitem__)
        means = own[wd].accuracy.mean(1)
        moved[name] = ranges[wd]
        by_chance[name] = noise(*(own[wd].accuracy[i].tolist() for i in (means.argmax(), means.argmin())))
    free = all(moved[name] <= by_chance[name] for name in ("AdamW", "AdamProx"))
    same = ", ".join(f"{name} {'the same' if yes else 'different'}" for name, yes in bits.items())
    best = {name: own[best_wd(own, 0)].accuracy[0].tolist() for name, own in runs.items()}
    gain = statistics.mean(best["AdamW"]) - statistics.mean(best["Adam-l2"])
    apart = {
        wd: abs(float(run.accuracy[0].mean() - runs["AdamProx"][wd].accuracy[0].mean()))
        for wd, run in runs["AdamW"].items()
    }
    widest = max(apart, key=lambda wd: apart[wd])
    pair = noise(*(runs[name][widest].accuracy[0].tolist() for name in ("AdamW", "AdamProx")))
    return [
        f"{verdict(free and moved['Adam-l2'] > by_chance['Adam-l2'])}: AdamW and AdamProx do not mind the scale of the loss, "
        f"Adam-l2 does. At one weight decay, accuracy moves by up to {100 * moved['AdamW']:.1f}, {100 * moved['AdamProx']:.1f} "
        f"and {100 * moved['Adam-l2']:.1f} points between loss x{SCALES[0]} and x{SCALES[-1]}; chance can make "
        f"{100 * max(by_chance.values()):.1f}.",
        f"{verdict(bits['AdamW'] and bits['AdamProx'] and not bits['Adam-l2'])}: at eps=0 that holds bit for bit. "
        f"Weights after {BIT_STEPS} steps, loss x1 against x128: {same}.",
        f"{verdict(gain > noise(best['AdamW'], best['Adam-l2']))}: without normalisation, AdamW is more accurate than "
        f"Adam-l2. Best of the sweep, loss x1: {100 * gain:+.1f} points; chance can make "
        f"{100 * noise(best['AdamW'], best['Adam-l2']):.1f}.",
        f"{verdict(apart[widest] <= pair)}: AdamProx does what AdamW does. Over the sweep their accuracies differ by at most "
        f"{100 * apart[widest]:.1f} points; chance can make {100 * pair:.1f}.",
    ]
