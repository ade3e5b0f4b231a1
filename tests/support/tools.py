"""Shared by the tests of tools: a manual training loop, the comparison of two models, and torch's optimizer beside ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
import toy
from compare import assert_same_bits, assert_within

each_optimizer_of_both = pytest.mark.parametrize(
    "optimizer", [onepass.AdamW, onepass.AdamP, torch.optim.AdamW], ids=["AdamW", "AdamP", "torch"]
)


def by_hand(
    model: torch.nn.Module,
    opt: torch.optim.Optimizer,
    losses: Iterable[Callable[[], Tensor]],
    clip: float,
    every: int = 1,
    schedule: Any = None,
) -> list[float]:
    """Trains as the tools document: a step after `every` losses on their mean's gradient, clipped to the norm `clip`. Returns the
    losses."""
    found = []
    for count, loss in enumerate(losses, 1):
        value = loss()
        found.append(value.item())
        (value / every).backward()
        if count % every == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            opt.step()
            if schedule is not None:
                schedule.step()
            opt.zero_grad()
    return found


def ten_steps(make: Callable[..., Any], clip: float = 1.0) -> tuple[torch.nn.Module, Any, list[float]]:
    """The net of examples/tools, its optimizer and the losses of ten steps by hand on all of its data, in this process."""
    net, (x, y) = toy.net(), toy.data().tensors
    opt = make(net.parameters(), lr=1e-2, weight_decay=1e-2)
    return net, opt, by_hand(net, opt, [lambda: torch.nn.functional.mse_loss(net(x), y)] * 10, clip)


def assert_same_weights(got: torch.nn.Module, want: torch.nn.Module) -> None:
    for (name, p), q in zip(got.named_parameters(), want.parameters(), strict=True):
        assert_same_bits(p, q, name)


class TorchBeside:
    """torch's AdamW on copies of the parameters of `opt`, stepped after each step of `opt` on the gradients of that step, and
    compared after each.

    Two trainings with gradients of their own cannot be compared in an element whose gradient is zero in exact
    arithmetic, such as the key bias of an attention: it is rounding noise, and Adam divides noise by its own size. From
    the same gradients both compute the same number: |u| is near 1 for a gradient of any size, so the two differ by
    rounding relative to p and to the sum of the learning rates.
    """

    # Per step: ten roundings of each optimizer between gradient and parameter. Measured: at most 5.9.
    UNITS = 20

    def __init__(self, opt: onepass.AdamW):
        self.params = [p for group in opt.param_groups for p in group["params"]]
        self.copies = {p: p.detach().clone() for p in self.params}
        self.sizes = {p: p.detach().abs() for p in self.params}
        groups = [{**_common(group), "params": [self.copies[p] for p in group["params"]]} for group in opt.param_groups]
        self.theirs = torch.optim.AdamW(groups, foreach=False)
        self.steps, self.skipped = 0, 0
        opt.register_step_post_hook(self._compare)

    def _compare(self, opt: Any, *_: Any) -> None:
        scale = getattr(opt, "grad_scale", None)
        for p, q in self.copies.items():
            q.grad = None if p.grad is None else p.grad / (1.0 if scale is None else scale)
        if all(q.grad is None or q.grad.isfinite().all() for q in self.copies.values()):
            for group, own in zip(opt.param_groups, self.theirs.param_groups, strict=True):
                own.update(_common(group))
                for p in group["params"]:
                    self.sizes[p] += group["lr"]
            self.theirs.step()
            self.steps += 1
        else:  # a gradient scaler's overflow
            self.skipped += 1
        for i, (p, q) in enumerate(self.copies.items()):
            assert_within(p, q, self.sizes[p], self.UNITS * self.steps, f"step {self.steps}, parameter {i}")


def with_torch_beside(beside: list[TorchBeside]) -> type[onepass.AdamW]:
    """AdamW for a tool to construct, which appends its `TorchBeside` to `beside`."""

    class AdamW(onepass.AdamW):
        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **options)
            beside.append(TorchBeside(self))

    return AdamW


def _common(group: dict[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
