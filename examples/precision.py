"""What each precision of the weights and moments does to training: on scikit-learn's digits, and on a character transformer over the
source of Python's standard library. Prints a table of losses beside those of float32, and of LayerNorm gains that move or do not,
and draws a figure.

Only the storage differs: every net computes in float32 on its weights as they are stored, and its gradients have their dtype.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

sys.path.append(str(Path(__file__).resolve().parents[1] / "docs/figures"))

import draw as figures

import onepass
from demo_data import Digits
from demo_jobs import Job, run_jobs

BF16, F32 = torch.bfloat16, torch.float32
PRECISIONS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (F32, {}),
    "float32, short": (F32, dict(state_dtype=BF16)),
    "bf16 exact": (BF16, dict(master_weights=True)),
    "bf16 exact, short": (BF16, dict(master_weights=True, state_dtype=BF16)),
    "bf16 stochastic, short": (BF16, dict(stochastic_rounding=True, state_dtype=BF16)),
    "bf16 exact, 8 bits": (BF16, dict(master_weights=True, state_dtype="8bit")),
    "bf16 stochastic, 8 bits": (BF16, dict(stochastic_rounding=True, state_dtype="8bit")),
    "bf16": (BF16, {}),
}
CONTEXT, BATCH, WIDTH = 128, 16, 128


@dataclass(frozen=True)
class Run:
    """Training losses of every step, the loss on held-out data at the end, and how far LayerNorm gains are from 1 on average."""

    losses: list[float]
    held_out: float
    gains: float


# ------------------------------------------------------------------ the two nets and their data


def digit_net() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for size in (64, WIDTH):
        layers += [nn.Linear(size, WIDTH), nn.LayerNorm(WIDTH), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


class Block(nn.Module):
    def __init__(self, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(*qkv, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.between(x))))


class CharacterNet(nn.Module):
    def __init__(self, characters: int, blocks: int = 2):
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(blocks)])
        self.last, self.logits = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)

    def forward(self, text: Tensor) -> Tensor:
        x = self.characters(text) + self.places.weight
        return self.logits(self.last(self.blocks(x)))


@cache
def source() -> tuple[Tensor, int]:
    """The standard library's modules as one tensor of character numbers, and how many characters there are."""
    text = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    known, numbers = torch.unique(torch.frombuffer(bytearray(text), dtype=torch.uint8), return_inverse=True)
    return numbers, len(known)


def windows(text: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches of pieces of the text, and the characters that come after each."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        at = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1), generator=generator) + torch.arange(CONTEXT + 1)
        yield text[at[:, :-1]], text[at[:, 1:]]


# ------------------------------------------------------------------ training


def train(
    net: nn.Module, precision: str, batches: Iterator[Any], steps: int, lr: float, seed: int, backend: str
) -> Any:
    """Trains a net that is stored in this precision; returns its losses, and its weights as they were stored at the end."""
    dtype, arguments = PRECISIONS[precision]
    weights = {name: nn.Parameter(p.detach().to(dtype)) for name, p in net.named_parameters()}
    opt = onepass.AdamW(weights.items(), lr=lr, weight_decay=0.01, backend=backend, seed=seed, **arguments)
    for p, start in zip(weights.values(), net.parameters(), strict=True):
        opt.set_master(p, start.detach())
    losses = []
    for step in range(steps):
        opt.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20, (steps - step) / (0.3 * steps))
        inputs, targets = next(batches)
        opt.zero_grad()
        outputs = functional_call(net, {name: p.float() for name, p in weights.items()}, (inputs,))
        loss = cross_entropy(outputs.flatten(0, -2), targets.flatten())
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    return losses, {name: opt.master(p).float() for name, p in weights.items()}


@torch.no_grad()
def run_of(net: nn.Module, losses: list[float], weights: dict[str, Tensor], test: list[tuple[Tensor, Tensor]]) -> Run:
    held_out = [float(cross_entropy(functional_call(net, weights, (x,)).flatten(0, -2), y.flatten())) for x, y in test]
    gains = [weights[f"{name}.weight"] for name, layer in net.named_modules() if isinstance(layer, nn.LayerNorm)]
    return Run(losses, statistics.mean(held_out), float(torch.cat(gains).sub(1).abs().mean()))


def on_digits(data: Digits, precision: str, seed: int, steps: int, backend: str) -> Run:
    torch.manual_seed(seed)
    net, epochs = digit_net(), steps // data.steps + 1
    trained = train(net, precision, data.batches(epochs, seed, shift=True), steps, 1e-3, seed, backend)
    return run_of(net, *trained, [(data.test_images, data.test_labels)])


def on_characters(_: Digits, precision: str, seed: int, steps: int, backend: str) -> Run:
    text, characters = source()
    cut = int(0.9 * len(text))
    torch.manual_seed(seed)
    net = CharacterNet(characters)
    trained = train(net, precision, windows(text[:cut], seed), steps, 2e-3, seed, backend)
    held_out = windows(text[cut:], seed=1)
    return run_of(net, *trained, [next(held_out) for _ in range(20)])


TASKS: dict[str, Callable[..., Run]] = {"digits": on_digits, "characters": on_characters}


# ------------------------------------------------------------------ what is shown


def state_bytes(precision: str) -> int:
    """Bytes of state of a parameter."""
    dtype, arguments = PRECISIONS[precision]
    p = torch.ones(64, 64, dtype=dtype)  # large enough for moments of 8 bits
    p.grad = torch.ones_like(p)
    opt = onepass.AdamW([p], **arguments)
    opt.step()
    return sum(t.nbytes for t in opt.state[p].values() if t.dim()) // p.numel()


def table_of(runs: dict[str, dict[str, list[Run]]], steps: int) -> Table:
    seeds = len(runs["digits"]["float32"])
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"AdamW, {steps} steps, {seeds} seeds",
        caption="bf16: bfloat16 weights; exact: master_weights; stochastic: stochastic_rounding; short: bfloat16 moments; 8 bits: moments of 8 bits. State: bytes a parameter. Digits, "
        "text: loss on held-out data, mean of the seeds, and the largest difference from float32 with the same seed. Gains: mean "
        "distance from 1, where they start, of the LayerNorm gains of the character net.",
    )
    for column in ("precision", "state", "digits", "differs", "text", "differs", "gains"):
        table.add_column(column, justify="left" if column == "precision" else "right", no_wrap=True)
    for precision in PRECISIONS:
        cells = []
        for task in TASKS:
            own, other = runs[task][precision], runs[task]["float32"]
            apart = max((a.held_out - b.held_out for a, b in zip(own, other, strict=True)), key=abs)
            cells += [f"{statistics.mean(run.held_out for run in own):.4f}", f"{apart:+.4f}"]
        gains = statistics.mean(run.gains for run in runs["characters"][precision])
        table.add_row(precision, str(state_bytes(precision)), *cells, f"{gains:.4f}")
    return table


def figure_rows(runs: dict[str, dict[str, list[Run]]], points: int = 60) -> list[dict[str, Any]]:
    """For docs/figures/draw.py: the training loss less that of float32 with the same seed, mean of the seeds and of some steps."""
    rows: list[dict[str, Any]] = []
    for task, by_precision in runs.items():
        for precision, own in by_precision.items():
            apart = torch.tensor([a.losses for a in own]) - torch.tensor([b.losses for b in by_precision["float32"]])
            window = max(1, apart.size(1) // 12)
            curve = apart.mean(0).unfold(0, window, 1).mean(1).tolist()
            steps = range(0, len(curve), max(1, len(curve) // points))
            kind = {"task": task, "precision": precision}
            rows += [{**kind, "step": step + window, "apart": f"{curve[step]:.4g}"} for step in steps]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="of each training (default: 300)")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default: 3)")
    parser.add_argument("--backend", default="auto", help="backend of onepass (default: auto)")
    folder = Path(__file__).resolve().parent / "figures"
    parser.add_argument("--out", type=Path, default=folder, help="where the figure goes (default: beside this file)")
    args = parser.parse_args()
    if args.steps < 20 or args.seeds < 1:
        parser.error("--steps must be at least 20 and --seeds at least 1")

    console, started = Console(), time.perf_counter()
    keys = [(task, name, seed) for task in reversed(TASKS) for name in PRECISIONS for seed in range(args.seeds)]
    jobs = [Job(key, partial(TASKS[key[0]], precision=key[1], seed=key[2], steps=args.steps, backend=args.backend))
            for key in keys]  # fmt: skip
    results = {}
    columns = (TextColumn("{task.description:<50}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=len(jobs))
        for job, result in run_jobs(jobs, torch.device("cpu")):
            results[job.key] = result
            progress.update(task, advance=1, description=f"done: {job.key[0]}, {job.key[1]}")
    runs = {task: {name: [results[task, name, seed] for seed in range(args.seeds)] for name in PRECISIONS}
            for task in TASKS}  # fmt: skip
    console.print(table_of(runs, args.steps))
    args.out.mkdir(parents=True, exist_ok=True)
    figures.write_csv(args.out / "precision.csv", figure_rows(runs))
    written = figures.draw("precision", args.out / "precision.csv")
    console.print(f"Figure: {', '.join(os.path.relpath(path) for path in written)}", highlight=False)
    console.print(f"Took {time.perf_counter() - started:.0f} s.", highlight=False)


if __name__ == "__main__":
    main()
