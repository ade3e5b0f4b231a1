"""Part (a): how the norm of scale-invariant weights grows under momentum, and what projection does about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

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
