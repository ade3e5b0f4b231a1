"""The tables of measurements of the README and docs/: each function of BLOCKS makes one of the rows of a CSV file of bench/run.py, and of
STORED of one of bench/precision.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from statistics import median

from targets import CPU, GPU, Target

Row = dict[str, str]
Counted = Sequence[tuple[str, str, float, float]]


# ------------------------------------------------------------------ figures of a CSV


def ratio_to(row: Row, against: str) -> float | None:
    """Time of this row over that of the contender `against`; None if it was not compared with it."""
    if row["baseline"] == against:
        return float(row["ratio"])
    for target, measured, _ in aims(row):
        if target.endswith(f" x {against}"):
            return measured
    return None


def aims(row: Row) -> list[tuple[str, float, bool]]:
    """What was to be reached, what was measured, and whether that reaches it."""
    if not row["target"]:
        return []
    fields = (row[name].split("; ") for name in ("target", "measured", "reached"))
    return [
        (target, float(re.match(r"[\d.]+", measured)[0]), reached == "yes")  # type: ignore[index]
        for target, measured, reached in zip(*fields, strict=True)
    ]


def find(rows: list[Row], case: str, contender: str) -> Row | None:
    return next((row for row in rows if (row["case"], row["contender"]) == (case, contender)), None)


def cell(rows: list[Row], case: str, contender: str, against: str) -> str:
    """A ratio as the tables have it; empty where there is none."""
    row = find(rows, case, contender)
    ratio = None if row is None else ratio_to(row, against)
    return "" if ratio is None else f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}"


def size(rows: list[Row], case: str) -> str:
    row = next(row for row in rows if row["case"] == case)
    return f"{int(row['tensors']):,}, {int(row['parameters']) / 1e6:.3g} M"


def markdown(header: Sequence[str], lines: list[list[str]]) -> str:
    """Without the columns that are empty in every line."""
    kept = [i for i in range(len(header)) if any(line[i] for line in lines)]
    return "".join(
        "| " + " | ".join(line[i] for i in kept) + " |\n" for line in (header, ["---"] * len(header), *lines)
    )


# ------------------------------------------------------------------ blocks

TORCH_ADAMW, TORCH_SGD = "torch fused AdamW", "torch fused SGD"
ADAM_CASES = {
    "gpt2-adam": "GPT-2, random gradients",
    "gpt2-adam-tangent": "the same, every matrix projected",
    "gpt2-bf16": "GPT-2 in bfloat16",
    "resnet50": "ResNet-50",
    "resnet50-tangent": "the same, every kernel projected",
    "small": "1,000 vectors of 64",
    "small-matrices": "1,000 matrices of 8 x 8",
}
SGD_CASES = {
    "gpt2-sgd": "GPT-2, random gradients",
    "gpt2-sgd-tangent": "the same, every matrix projected",
}
CLIP_CASES = {
    "gpt2-clip": "GPT-2, random gradients",
    "gpt2-clip-tangent": "the same, every matrix projected",
}
TITLES = {**ADAM_CASES, **SGD_CASES, **CLIP_CASES} | {
    "gpt2-adam-tangent": "GPT-2, every matrix projected",
    "resnet50-tangent": "ResNet-50, every kernel projected",
    "gpt2-sgd-tangent": "GPT-2, momentum, every matrix projected",
    "gpt2-clip-tangent": "GPT-2, clipped, every matrix projected",
    "resnet50-each": "ResNet-50, an optimizer for each tensor",
    "memory": "extra memory, GPT-2",
    "gpt2-1": "GPT-2, one thread",
    "gpt2-2": "GPT-2, two threads",
    "in-cache": "in the cache",
}
AS_TIMM = (
    '\n"As timm" is with the arguments that timm\'s factory passes to its own AdamP and SGDP: `nesterov=True`, and for AdamP'
    " `wd_ratio=0.01`.\n"
)


def adam(rows: list[Row]) -> str:
    names = ["AdamW", "AdamProx", "AdamProxL2", "AdamP", "AdamP proximal"]
    theirs = {"adamp AdamP": "`adamp` AdamP", "onepass AdamP as timm": "AdamP as timm", "timm AdamP": "timm's AdamP"}
    lines = []
    for case, title in ADAM_CASES.items():
        suffix = " bf16" if case == "gpt2-bf16" else ""
        ours = [cell(rows, case, f"onepass {name}{suffix}", TORCH_ADAMW) for name in names]
        lines.append([title, size(rows, case), *ours, *(cell(rows, case, name, TORCH_ADAMW) for name in theirs)])
    table = markdown(["to torch's fused AdamW", "tensors, parameters", *names, *theirs.values()], lines)
    return table + (AS_TIMM if find(rows, "gpt2-adam", "onepass AdamP as timm") else "")


def compared(rows: list[Row], titles: dict[str, str], names: dict[str, str], against: str) -> list[list[str]]:
    """For each case its title and the ratios of some contenders."""
    return [[title, *(cell(rows, case, name, against) for name in names)] for case, title in titles.items()]


def summary(rows: list[Row]) -> str:
    names = {
        "onepass AdamW": "onepass AdamW",
        "onepass AdamP": "onepass AdamP",
        "adamp AdamP": "`adamp`'s AdamP",
        "timm AdamP": "timm's AdamP",
    }
    titles = {case: TITLES[case] for case in ("gpt2-adam", "gpt2-adam-tangent", "resnet50", "small-matrices")}
    lines = compared(rows, titles, names, TORCH_ADAMW)
    sized = [[title, size(rows, case), *ratios] for case, (title, *ratios) in zip(titles, lines, strict=True)]
    return markdown(["", "tensors, parameters", *names.values()], sized)


def sgd(rows: list[Row]) -> str:
    names = {
        "onepass SGD": "SGD",
        "onepass SGDP": "SGDP",
        "adamp SGDP": "`adamp` SGDP",
        "onepass SGDP as timm": "SGDP as timm",
        "timm SGDP": "timm's SGDP",
    }
    lines = compared(rows, SGD_CASES, names, TORCH_SGD)
    return markdown(["to torch's fused SGD with momentum", *names.values()], lines)


def clip(rows: list[Row]) -> str:
    names = {"onepass AdamW, clip": "AdamW", "onepass AdamP, clip": "AdamP"}
    lines = compared(rows, CLIP_CASES, names, f"{TORCH_ADAMW}, clip")
    return markdown(["to torch's `clip_grad_norm_` and fused AdamW", *names.values()], lines)


def each(rows: list[Row]) -> str:
    names = {TORCH_ADAMW: "torch's fused AdamW", "onepass AdamW": "AdamW", "onepass AdamP": "AdamP"}
    line = ["ResNet-50", *(cell(rows, "resnet50-each", f"{name} each", name) for name in names)]
    return markdown(["to one optimizer of the same class for all tensors", *names.values()], [line])


def memory(rows: list[Row]) -> str:
    names = {"onepass AdamW": "AdamW", "onepass AdamP": "AdamP", "onepass SGDP": "SGDP", TORCH_ADAMW: "torch's fused AdamW",
             "adamp AdamP": "`adamp`'s AdamP"}  # fmt: skip
    found = [find(rows, "memory", name) for name in names]
    shares = [f"{max(0.0, float(row['extra_memory_percent'])):.3g}%" if row else "" for row in found]
    return markdown(["to the bytes of the parameters", *names.values()], [["GPT-2", *shares]])


def precision(rows: list[Row]) -> str:
    """Of bench/precision.py: bytes, times with one and two threads, and the computing of an element."""
    lines = []
    for row in (row for row in rows if row["case"] == "gpt2-1"):
        name, cached = row["contender"], find(rows, "in-cache", row["contender"])
        ns = f"{1e6 * float(cached['median_ms']) / int(cached['parameters']):.2f}" if cached else ""
        moved = f"{float(row['bytes_per_parameter']):g}"
        lines.append([name, moved, *(cell(rows, case, name, TORCH_ADAMW) for case in ("gpt2-1", "gpt2-2")), ns])
    speeds = {row["case"]: f"{float(row['copy_gb_per_s']):.0f}" for row in rows}
    return (
        markdown(
            ["GPT-2, every matrix projected", "bytes", "one thread", "two threads", "in the cache, ns an element"],
            lines,
        )
        + f"\nA copy moved {speeds['gpt2-1']} GB/s with one thread and {speeds['gpt2-2']} with two.\n"
    )


def spread(rows: list[Row]) -> str:
    """How far apart the rounds of a contender are."""
    timed = [row for row in rows if row["median_ms"]]
    share = {
        f"{row['contender']} in {row['case']}": (float(row["q3_ms"]) - float(row["q1_ms"])) / float(row["median_ms"])
        for row in timed
    }
    most = max(share, key=lambda name: share[name])
    rounds = [int(row["rounds"]) for row in timed]
    return (
        f"Each contender stepped {min(rounds)} to {max(rounds)} times in a case. The middle half of its times spans"
        f" {100 * median(share.values()):.0f}% of its median (the median over all), and at most {100 * share[most]:.0f}%"
        f" ({most}).\n"
    )


def missed(rows: list[Row]) -> str:
    lines: list[list[str]] = []
    before = ""
    for row in rows:
        reason = next((t.limits for t in CPU if t.limits and t.fits(row["case"], row["contender"])), "")
        for target, measured, reached in aims(row):
            if not reached:
                why = "the same" if reason and reason == before else reason
                lines.append([TITLES[row["case"]], row["contender"], target, f"{measured:.4g}", why])
                before = reason
    if not lines:
        return "Every target was reached.\n"
    return markdown(["case", "contender", "to reach", "measured", "what limits it"], lines)


def traffic(counted: Counted) -> str:
    lines = [[title, how, f"{streams:.1f}", f"{total:.2f}"] for title, how, streams, total in counted]
    return markdown(["step, a matrix of 1,024 x 1,024", "counted in", "p, g, moments", "all"], lines)


def predicted_table(rows: list[Row]) -> str:
    return markdown(list(rows[0]), [list(row.values()) for row in rows])


def targets(listed: Sequence[Target]) -> str:
    lines = []
    for target in listed:
        cases = "all" if target.cases == "*" else ", ".join(f"`{case}`" for case in target.cases.split())
        what = target.what("torch's fused step")
        lines.append([target.contender, cases, what, f"{target.sign} {target.limit:.3g}"])
    return markdown(["contender", "cases", "what is measured", "to reach"], lines)


# Of bench/precision.py's CSV file.
STORED: dict[str, Callable[[list[Row]], str]] = {"precision": precision, "missed_stored": missed}
# Without a CSV file.
TARGETS = {"cpu_targets": CPU, "gpu_targets": GPU}
BLOCKS: dict[str, Callable[[list[Row]], str]] = {
    function.__name__: function for function in (summary, adam, sgd, clip, each, memory, spread, missed)
}
