"""Accelerate: accumulation and clipping give the weights of a plain loop; checkpoints and copies resume."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("accelerate")
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

import accelerate_loop
import toy
from tools import assert_same_weights, by_hand, each_optimizer_of_both, with_torch_beside


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Resets Accelerate's process-wide settings after each test."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def accelerator(**arguments: Any) -> Accelerator:
    return Accelerator(cpu=True, gradient_accumulation_steps=4, **arguments)


@each_optimizer_of_both
def test_equals_a_plain_loop(optimizer: Any) -> None:
    got, _, losses = accelerate_loop.train(accelerator(), optimizer)
    model = toy.net()
    opt = optimizer(model.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=16)
    batches = list(DataLoader(toy.data(), batch_size=4)) * 4
    hand = [lambda x=x, y=y: torch.nn.functional.mse_loss(model(x), y) for x, y in batches]
    by_hand(model, opt, hand, clip=1.0, every=4, schedule=schedule)
    assert_same_weights(got, model)
    assert sum(losses[-16:]) < 0.7 * sum(losses[:16])


def test_steps_equal_torch() -> None:
    """With accumulated and clipped gradients and a schedule, every step equals torch's."""
    beside = []
    accelerate_loop.train(accelerator(), with_torch_beside(beside))
    assert beside[0].steps == 16


def test_bfloat16() -> None:
    """Forward pass under autocast: weights and steps stay float32, and the losses fall."""
    model, _, losses = accelerate_loop.train(accelerator(mixed_precision="bf16"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(losses[-16:]) < 0.7 * sum(losses[:16])


def test_resumed(tmp_path: Path) -> None:
    """After `save_state` and `load_state` the next step equals that of the saved optimizer."""
    first = accelerator()
    whole, whole_opt, _ = accelerate_loop.train(first)
    first.save_state(str(tmp_path))
    second = accelerator()
    resumed, opt, _ = accelerate_loop.train(second, epochs=1)
    second.load_state(str(tmp_path))
    step_once(whole, whole_opt.optimizer)
    step_once(resumed, opt.optimizer)
    assert_same_weights(resumed, whole)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies(copied: Any) -> None:
    """A copy of model and wrapped optimizer steps like the original."""
    model, opt, _ = accelerate_loop.train(accelerator())
    other, other_opt = copied((model, opt))
    step_once(model, opt.optimizer)
    step_once(other, other_opt.optimizer)
    assert_same_weights(other, model)
    assert len(other_opt.optimizer.last_step()) == 2


def step_once(model: torch.nn.Module, opt: torch.optim.Optimizer) -> None:
    x, y = toy.data().tensors
    torch.nn.functional.mse_loss(model(x), y).backward()
    opt.step()
    opt.zero_grad()
