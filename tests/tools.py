"""What the tests of the tools share: a loop by hand, and comparisons of what two trainings left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from compare import assert_same_bits

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
) -> None:
    """Trains as the tools say they do: a step after `every` losses on their mean's gradient, cut to the norm `clip`."""
    for count, loss in enumerate(losses, 1):
        (loss() / every).backward()
        if count % every == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            opt.step()
            if schedule is not None:
                schedule.step()
            opt.zero_grad()


def assert_same_weights(got: torch.nn.Module, want: torch.nn.Module) -> None:
    for (name, p), q in zip(got.named_parameters(), want.parameters(), strict=True):
        assert_same_bits(p, q, name)


def assert_close_weights(got: torch.nn.Module, want: torch.nn.Module) -> None:
    """Within what a few steps make of another order of rounding."""
    for p, q in zip(got.parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
