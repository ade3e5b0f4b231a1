"""The optimizer's time per step on the demo's own nets, beside torch.optim and the adamp package."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import adamp
import torch
from torch import Tensor, nn

import onepass
from demo_data import DeepNets, Digits, conv_net

Contender = Callable[[list[Tensor]], torch.optim.Optimizer]
# So small that a hundred steps on one gradient leave weights and gates as they were.
LR = 1e-7
ROUNDS, WARM = 50, 3

# Rule, then who offers it. torch has no AdamProx, AdamP or SGDP: those stand beside its AdamW and SGD.
LIKE_TORCH = {"AdamW": "AdamW", "AdamProx": "AdamW", "AdamP": "AdamW", "SGD": "SGD", "SGDP": "SGD"}


def contenders(backend: str) -> dict[tuple[str, str], Contender]:
    """Who is timed, by rule and by where it comes from."""

    def made(cls: type, **kw) -> Contender:
        return lambda params: cls(params, lr=LR, weight_decay=1e-2, **kw)

    everyone = {}
    for name in LIKE_TORCH:
        momentum = {"momentum": 0.9} if name.startswith("SGD") else {}
        everyone[name, "onepass"] = made(getattr(onepass, name), backend=backend, **momentum)
        if name in ("AdamW", "SGD"):
            everyone[name, "torch fused"] = made(getattr(torch.optim, name), fused=True, **momentum)
            everyone[name, "torch"] = made(getattr(torch.optim, name), **momentum)
        if name in ("AdamP", "SGDP"):
            everyone[name, "adamp"] = made(getattr(adamp, name), **momentum)
    return everyone


def time_steps(data: Digits, backend: str, tick: Callable[[], None]) -> dict[str, dict[tuple[str, str], float]]:
    """Median seconds of a step, by net and contender; `tick` is called after each net."""
    times = {}
    for title, params in (("conv net", conv_parameters(data)), ("deep net", deep_parameters(data))):
        numel = sum(p.numel() for p in params)
        times[f"{title}, {len(params)} tensors, {numel:,} parameters"] = interleaved(contenders(backend), params)
        tick()
    return times


def interleaved(everyone: dict[tuple[str, str], Contender], params: list[Tensor]) -> dict[tuple[str, str], float]:
    """Every contender steps its own copy of the parameters once a round, in another order each time.

    So a busy moment falls on all alike, and so does what the one before leaves behind, such as sleeping threads.
    """
    optimizers = {key: make(copies(params)) for key, make in everyone.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in everyone}
    order = random.Random(0)
    for number in range(ROUNDS + WARM):
        for key, optimizer in order.sample(list(optimizers.items()), len(optimizers)):
            wait(params[0].device)
            start = time.perf_counter()
            optimizer.step()
            wait(params[0].device)
            if number >= WARM:
                times[key].append(time.perf_counter() - start)
    return {key: statistics.median(seconds) for key, seconds in times.items()}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copies(params: list[Tensor]) -> list[Tensor]:
    made = []
    for p in params:
        copy = p.detach().clone().requires_grad_()
        copy.grad = p.grad.clone()
        made.append(copy)
    return made


def conv_parameters(data: Digits) -> list[Tensor]:
    """The parameters of the net of part (a) with the gradients of one batch."""
    net = conv_net().to(data.images.device)
    images, labels = next(data.batches(1, seed=0))
    nn.functional.cross_entropy(net(images), labels).backward()
    return list(net.parameters())


def deep_parameters(data: Digits) -> list[Tensor]:
    """The parameters of one net of part (b), as linear layers have them, with the gradients of one batch."""
    net = DeepNets([0]).to(data.images.device)
    images, labels = next(data.batches(1, seed=0))
    nn.functional.cross_entropy(net(images)[0], labels).backward()
    params = []
    for stacked in net.parameters():
        p = stacked.detach().squeeze(0).squeeze(0).requires_grad_()
        p.grad = stacked.grad.squeeze(0).squeeze(0)
        params.append(p)
    return params
