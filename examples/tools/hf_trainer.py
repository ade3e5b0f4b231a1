"""Hugging Face's Trainer with onepass, given as an optimizer or as a class and its arguments. A tiny GPT-2 counts."""

from __future__ import annotations

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import onepass


def counting(length: int = 8, numbers: int = 32) -> list[dict[str, torch.Tensor]]:
    rows = [(torch.arange(length) + start) % numbers for start in range(numbers)]
    return [{"input_ids": row, "labels": row} for row in rows]


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = dict(vocab_size=32, n_positions=8, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))


def with_an_optimizer(settings: TrainingArguments, optimizer=onepass.AdamP) -> Trainer:
    """Trainer adds the schedule of the learning rate, where None stands."""
    model = tiny_gpt2()
    made = optimizer(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return Trainer(model, settings, train_dataset=counting(), optimizers=(made, None))


def with_a_class(settings: TrainingArguments, optimizer=onepass.AdamP) -> Trainer:
    """Trainer makes the optimizer, and a group without weight decay for biases and norms."""
    chosen = (optimizer, {"lr": settings.learning_rate})
    return Trainer(tiny_gpt2(), settings, train_dataset=counting(), optimizer_cls_and_kwargs=chosen)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(folder, learning_rate=1e-2, weight_decay=1e-2, logging_steps=3)
        with_a_class(settings).train()
