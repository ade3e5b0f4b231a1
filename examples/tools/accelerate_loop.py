"""Accelerate's loop with onepass: gradients are accumulated over four batches and clipped, then the step is taken."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import onepass
import toy


def train(accelerator: Accelerator, optimizer=onepass.AdamP, epochs: int = 4):
    """Returns the model, the optimizer as Accelerate wraps it (ours is its `.optimizer`), and the batches' losses."""
    model, loader = toy.net(), DataLoader(toy.data(), batch_size=4)
    opt = optimizer(model.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=epochs * len(loader) // 4)
    model, opt, loader, schedule = accelerator.prepare(model, opt, loader, schedule)
    losses = []
    for x, y in (batch for _ in range(epochs) for batch in loader):
        with accelerator.accumulate(model):
            loss = torch.nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            schedule.step()
            opt.zero_grad()
        losses.append(loss.item())
    return model, opt, losses


if __name__ == "__main__":
    losses = train(Accelerator(gradient_accumulation_steps=4), epochs=40)[2]
    print(f"loss of the first epoch {sum(losses[:16]) / 16:.3f}, of the last {sum(losses[-16:]) / 16:.3f}")
