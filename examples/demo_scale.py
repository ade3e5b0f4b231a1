"""Part (b): what multiplying the loss by a constant does to Adam-l2, AdamW and AdamProx."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import onepass
from demo_data import DeepNets, Digits, hold_then_fall, mislabelled
from demo_jobs import Job

SCALES = (1, 10, 100)
LR = 2e-3
BLOCKS = 24
BIT_STEPS = 40

# decouple_lr is the convention of the paper: the decay of a step is wd, times what the schedule makes of the lr. It
# changes nothing for Adam-l2, whose wd enters the gradient.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adam-l2": lambda params, **kw: onepass.Adam(params, lr=LR, decouple_lr=True, **kw),
    "AdamW": lambda params, **kw: onepass.AdamW(params, lr=LR, decouple_lr=True, **kw),
    "AdamProx": lambda params, **kw: onepass.AdamProx(params, lr=LR, decouple_lr=True, **kw),
}
# Those between which the best lies for the unscaled loss.
DECAYS = {
    "Adam-l2": (0.1, 0.2, 0.4, 0.8),
    "AdamW": (5e-4, 1e-3, 2e-3, 4e-3),
    "AdamProx": (5e-4, 1e-3, 2e-3, 4e-3),
}
# The share of training labels that are drawn at random. Digits are so easy that without it weight decay is of no use, and
# optimizers that differ in it alone cannot be told apart.
MISLABELLED = 0.4


@dataclass
class ScaleRun:
    """The nets of one optimizer and weight decay: rows are loss scales, columns seeds.

    accuracy: on the test half, at the end.
    growth: the norm of all weights over that at the start, at the end.
    """

    accuracy: np.ndarray
    growth: np.ndarray


def jobs(epochs: int, seeds: list[int], backend: str) -> list[Job]:
    """Every optimizer at every weight decay."""
    return [
        Job(("scale", name, wd), partial(train, name, wd, epochs, seeds, backend))
        for name in OPTIMIZERS
        for wd in DECAYS[name]
    ]


def train(name: str, wd: float, epochs: int, seeds: list[int], backend: str, data: Digits) -> ScaleRun:
    """One net for each loss scale and seed; nets of a seed start from the same weights and see the same batches."""
    net = DeepNets([seed for _ in SCALES for seed in seeds], blocks=BLOCKS).to(data.images.device)
    scales = torch.tensor([scale for scale in SCALES for _ in seeds], device=data.images.device)
    optimizer = OPTIMIZERS[name](net.parameters(), weight_decay=wd, backend=backend)
    total = epochs * data.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, hold_then_fall(total))
    start = weight_norms(net)
    for images, labels in mislabelled(data, MISLABELLED).batches(epochs, seeds[0]):
        optimizer.zero_grad()
        (scales * losses(net(images), labels)).sum().backward()
        optimizer.step()
        schedule.step()

    shape = (len(SCALES), len(seeds))
    return ScaleRun(
        accuracy=test_accuracies(net, data).view(shape).numpy(),
        growth=(weight_norms(net) / start).view(shape).numpy(),
    )


def losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each net: outputs are (nets, batch, 10)."""
    expanded = labels.expand(outputs.shape[0], -1)
    return nn.functional.cross_entropy(outputs.transpose(1, 2), expanded, reduction="none").mean(1)


def scale_rows(runs: dict[str, dict[float, ScaleRun]]) -> list[dict[str, Any]]:
    """For docs/figures/draw.py: a row for each net."""
    return [
        {
            "optimizer": name,
            "weight_decay": wd,
            "loss_scale": scale,
            "seed": seed,
            "accuracy_percent": f"{100 * float(run.accuracy[i, seed]):.2f}",
            "growth": f"{float(run.growth[i, seed]):.4g}",
        }
        for name, by_decay in runs.items()
        for wd, run in by_decay.items()
        for i, scale in enumerate(SCALES)
        for seed in range(run.accuracy.shape[1])
    ]


def bit_jobs(seed: int, backend: str) -> list[Job]:
    return [Job(("bits", name), partial(scale_free_bits, name, seed, backend)) for name in OPTIMIZERS]


def scale_free_bits(name: str, seed: int, backend: str, data: Digits) -> bool:
    """Whether the weights after BIT_STEPS steps are the same, bit for bit, with the loss times 1 and times 128, at eps 0.

    128 is a power of two, so that the gradients themselves are scaled without rounding.
    """
    ends = []
    for scale in (1, 128):
        net = DeepNets([seed], blocks=BLOCKS).to(data.images.device)
        optimizer = OPTIMIZERS[name](net.parameters(), weight_decay=1e-3, eps=0, backend=backend)
        for _, (images, labels) in zip(range(BIT_STEPS), data.batches(BIT_STEPS, seed), strict=False):
            optimizer.zero_grad()
            (scale * losses(net(images), labels)).sum().backward()
            optimizer.step()
        ends.append([p.detach() for p in net.parameters()])
    return all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@torch.no_grad()
def weight_norms(net: DeepNets) -> Tensor:
    return torch.stack([w.square().sum((1, 2)) for w in net.weights]).sum(0).sqrt().cpu()


@torch.no_grad()
def test_accuracies(net: DeepNets, data: Digits) -> Tensor:
    return (net(data.test_images).argmax(2) == data.test_labels).float().mean(1).cpu()
