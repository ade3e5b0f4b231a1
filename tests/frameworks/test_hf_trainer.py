"""Hugging Face's Trainer: the weights of a plain loop, and resuming from a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("transformers")
from transformers import Trainer, TrainingArguments, get_linear_schedule_with_warmup

import hf_trainer
import onepass
from tools import assert_same_weights, by_hand, each_optimizer_of_both, with_torch_beside

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


def settings(folder: Path, **changed: Any) -> TrainingArguments:
    arguments = dict(
        learning_rate=1e-2, weight_decay=0.1, max_steps=6, max_grad_norm=0.5, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    return TrainingArguments(str(folder), **{**arguments, **changed})


def trained(trainer: Trainer, **how: Any) -> tuple[Trainer, list[dict[str, Any]]]:
    """Trains; returns the trainer and the model's inputs for each loss."""
    given, compute_loss = [], trainer.compute_loss

    def seen(model: Any, inputs: dict[str, Any], *rest: Any, num_items_in_batch: Any = None, **options: Any) -> Any:
        given.append({**inputs, "num_items_in_batch": num_items_in_batch})
        return compute_loss(model, inputs, *rest, num_items_in_batch=num_items_in_batch, **options)

    trainer.compute_loss = seen
    trainer.train(**how)
    return trainer, given


@each_optimizer_of_both
def test_trainer_given_an_optimizer(tmp_path: Path, optimizer: Any) -> None:
    trainer, given = trained(hf_trainer.with_an_optimizer(settings(tmp_path), optimizer))
    model = hf_trainer.tiny_gpt2()
    opt = optimizer(model.parameters(), lr=1e-2, weight_decay=0.1)
    schedule = get_linear_schedule_with_warmup(opt, 0, 6)
    losses = [lambda inputs=inputs: model(**inputs).loss for inputs in given]
    by_hand(model, opt, losses, clip=0.5, schedule=schedule)
    assert_same_weights(trainer.model, model)
    assert trainer.state.log_history[-1]["train_loss"] < 3.4  # ln(32) = 3.47 before training


def test_steps_equal_torch(tmp_path: Path) -> None:
    """With Trainer's clipping, groups and schedule, every step equals torch's."""
    beside = []
    trained(hf_trainer.with_a_class(settings(tmp_path), with_torch_beside(beside)))
    assert beside[0].steps == 6


def test_trainer_given_a_class(tmp_path: Path) -> None:
    """Trainer's groups: decay for matrices, none for norms and biases."""
    trainer, _ = trained(hf_trainer.with_a_class(settings(tmp_path)))
    groups = trainer.optimizer.param_groups
    assert type(trainer.optimizer.optimizer) is onepass.AdamP
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [{p.dim() for p in group["params"]} for group in groups] == [{2}, {1}]
    assert len(trainer.optimizer.optimizer.last_step()) == len(groups[0]["params"])


@pytest.mark.parametrize("make", [hf_trainer.with_an_optimizer, hf_trainer.with_a_class])
def test_resumed(tmp_path: Path, make: Any) -> None:
    """Resumed from the checkpoint of step 3, moments, gates and schedule included: the bits of the uninterrupted run."""
    whole, _ = trained(make(settings(tmp_path, save_strategy="steps", save_steps=3)))
    resumed, _ = trained(make(settings(tmp_path)), resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same_weights(resumed.model, whole.model)
    steps = {int(state["step"]) for state in resumed.optimizer.state.values()}
    assert steps == {6}
