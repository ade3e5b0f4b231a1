"""Part (a): how the norm of scale-invariant weights grows under momentum, and what projection does about it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import onepass
from demo_data import Digits, conv_net, hold_then_fall
from demo_jobs import Job

# AdamP's paper pairs each optimizer with its projected twin at the same learning rate and weight decay.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda params, **kw: onepass.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4, **kw),
    "SGDP": lambda params, **kw: onepass.SGDP(params, lr=0.1, momentum=0.9, weight_decay=1e-4, **kw),
    "AdamW": lambda params, **kw: onepass.AdamW(params, lr=3e-3, weight_decay=1e-2, **kw),
    "AdamP": lambda params, **kw: onepass.AdamP(params, lr=3e-3, weight_decay=1e-2, **kw),
}
PROJECTED = ("SGDP", "AdamP")
LAYERS = ("conv 1", "conv 2", "conv 3", "conv 4", "classifier")
SETTINGS = "SGD, SGDP: lr 0.1, momentum 0.9, wd 1e-4; AdamW, AdamP: lr 0.003, wd 0.01"


@dataclass
class NormRun:
    """What one training run left behind.

    accuracy: on the test half, after each epoch.
    growth: mean over the convolutions of |w| / |w at the start|, after each step.
    effective: mean over the convolutions of |w'/|w'| - w/|w||, how far a step moves the direction of w. That is all
        a scale-invariant weight has.
    verdicts: for a projected optimizer, one row per step and one verdict per layer.
    """

    accuracy: list[float] = field(default_factory=list)
    growth: list[float] = field(default_factory=list)
    effective: list[float] = field(default_factory=list)
    verdicts: list[list[onepass.Verdict]] = field(default_factory=list)


def jobs(epochs: int, seeds: list[int], backend: str) -> list[Job]:
    """Every optimizer from every seed."""
    return [
        Job(("norm", name, seed), partial(train, name, epochs, seed, backend)) for name in OPTIMIZERS for seed in seeds
    ]


def train(name: str, epochs: int, seed: int, backend: str, data: Digits) -> NormRun:
    torch.manual_seed(seed)
    net = conv_net().to(data.images.device)
    optimizer = OPTIMIZERS[name](net.parameters(), backend=backend)
    total = epochs * data.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, hold_then_fall(total))
    convs = [m.weight for m in net if isinstance(m, nn.Conv2d)]
    layers = [p for p in net.parameters() if p.dim() > 1]

    run = NormRun()
    start = norms(convs)
    before = directions(convs)
    for step, (images, labels) in enumerate(data.batches(epochs, seed, shift=True), 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels, label_smoothing=0.1).backward()
        optimizer.step()
        schedule.step()

        after = directions(convs)
        run.effective.append(float(torch.stack([(a - b).norm() for a, b in zip(after, before, strict=True)]).mean()))
        run.growth.append(float((norms(convs) / start).mean()))
        before = after
        if name in PROJECTED:
            seen = optimizer.last_step()
            run.verdicts.append([seen[p] for p in layers])
        if step % data.steps == 0:
            run.accuracy.append(test_accuracy(net, data))
    return run


def growth_rows(runs: dict[str, list[NormRun]]) -> list[dict[str, Any]]:
    """For docs/figures/draw.py: of each optimizer and fourth step, the mean over the seeds, the smallest and the largest."""
    rows = []
    for name, own in runs.items():
        total, epochs = len(own[0].growth), len(own[0].accuracy)
        for step in range(0, total, 4):
            row: dict[str, Any] = {"optimizer": name, "epoch": f"{(step + 1) * epochs / total:.4g}"}
            for quantity in ("growth", "effective"):
                values = [getattr(run, quantity)[step] for run in own]
                of = {"low": min(values), "mean": statistics.mean(values), "high": max(values)}
                row |= {f"{quantity}_{which}": f"{value:.4g}" for which, value in of.items()}
            rows.append(row)
    return rows


def gate_rows(runs: dict[str, list[NormRun]]) -> list[dict[str, Any]]:
    """For docs/figures/draw.py: AdamP's gate and cosine of each layer at each step, of the first seed."""
    return [
        {"layer": layer, "step": step, "gate": verdicts[i].gate, "cosine": f"{verdicts[i].cosine:.4g}"}
        for i, layer in enumerate(LAYERS)
        for step, verdicts in enumerate(runs["AdamP"][0].verdicts, 1)
    ]


def norms(weights: list[Tensor]) -> Tensor:
    return torch.stack([w.detach().norm() for w in weights])


def directions(weights: list[Tensor]) -> list[Tensor]:
    return [w.detach() / w.detach().norm() for w in weights]


@torch.no_grad()
def test_accuracy(net: nn.Module, data: Digits) -> float:
    net.eval()
    right = net(data.test_images).argmax(1) == data.test_labels
    net.train()
    return float(right.float().mean())
