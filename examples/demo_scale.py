"""Part (b): what multiplying the loss by a constant does to Adam-l2, AdamW and AdamProx."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import onepass
from demo_data import DeepNets, Digits, hold_then_fall
from demo_jobs import Job

SCALES = (1, 10, 100)
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LR = 1e-3
BLOCKS = 24
BIT_STEPS = 40

# decouple_lr is the convention of the paper: the decay of a step is wd, times what the schedule makes of the lr. It
# changes nothing for Adam-l2, whose wd enters the gradient.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adam-l2": lambda params, **kw: onepass.Adam(params, lr=LR, decouple_lr=True, **kw),
    "AdamW": lambda params, **kw: onepass.AdamW(params, lr=LR, decouple_lr=True, **kw),
    "AdamProx": lambda params, **kw: onepass.AdamProx(params, lr=LR, decouple_lr=True, **kw),
}
# The wd whose updates the histogram shows: the largest of the sweep with which the unscaled loss still trains well.
SHOWN = {"Adam-l2": 1e-2, "AdamW": 1e-3, "AdamProx": 1e-3}


@dataclass
class ScaleRun:
    """The nets of one optimizer and weight decay: rows are loss scales, columns seeds.

    accuracy: on the test half, at the end.
    growth: the norm of all weights over that at the start, at the end.
    updates: for each loss scale, how many updates have floor(log2|update|) = k, by k, over the last epoch at the full
        learning rate. The update is s*u, with the learning rate and without the decay. Only for the wd of SHOWN.
    """

    accuracy: np.ndarray
    growth: np.ndarray
    updates: list[dict[int, int]]


def jobs(epochs: int, seeds: list[int], backend: str) -> list[Job]:
    """Every optimizer at every weight decay."""
    return [
        Job(("scale", name, wd), partial(train, name, wd, epochs, seeds, backend))
        for name in OPTIMIZERS
        for wd in DECAYS
    ]


def train(name: str, wd: float, epochs: int, seeds: list[int], backend: str, data: Digits) -> ScaleRun:
    """One net for each loss scale and seed; nets of a seed start from the same weights and see the same batches."""
    net = DeepNets([seed for _ in SCALES for seed in seeds], blocks=BLOCKS).to(data.images.device)
    scales = torch.tensor([scale for scale in SCALES for _ in seeds], device=data.images.device)
    optimizer = OPTIMIZERS[name](net.parameters(), weight_decay=wd, backend=backend)
    total = epochs * data.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, hold_then_fall(total))
    last_full = int(0.7 * total)

    counts = torch.zeros(len(SCALES), 200, dtype=torch.int64)
    start = weight_norms(net)
    for step, (images, labels) in enumerate(data.batches(epochs, seeds[0]), 1):
        optimizer.zero_grad()
        (scales * losses(net(images), labels)).sum().backward()
        optimizer.step()
        if last_full - data.steps < step <= last_full and wd == SHOWN[name]:
            counts += count_updates(optimizer)
        schedule.step()

    shape = (len(SCALES), len(seeds))
    return ScaleRun(
        accuracy=test_accuracies(net, data).view(shape).numpy(),
        growth=(weight_norms(net) / start).view(shape).numpy(),
        updates=[{k - 150: n for k, n in enumerate(row[1:].tolist(), 1) if n} for row in counts],
    )


def losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each net: outputs are (nets, batch, 10)."""
    expanded = labels.expand(outputs.shape[0], -1)
    return nn.functional.cross_entropy(outputs.transpose(1, 2), expanded, reduction="none").mean(1)


def count_updates(optimizer: torch.optim.Optimizer) -> Tensor:
    """How many of the last step's updates have floor(log2|update|) = k, in column k + 150; column 0 counts zeros.

    The update is taken from the moments, as `p_before - p_after` would hold the decay too and be rounded to p.
    """
    counts = torch.zeros(len(SCALES), 200, dtype=torch.int64)
    group = optimizer.param_groups[0]
    for p in group["params"]:
        state = optimizer.state[p]
        bias1, bias2 = (1 - beta ** float(state["step"]) for beta in group["betas"])
        D = state["exp_avg_sq"].sqrt() / math.sqrt(bias2) + group["eps"]
        update = (group["lr"] / bias1 * state["exp_avg"] / D).abs().view(len(SCALES), -1)
        k = update.log2().floor().clamp(min=-149).add(150)
        column = torch.where(update == 0, 0, k).long().cpu()
        counts += torch.stack([torch.bincount(row, minlength=200) for row in column])
    return counts


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
