"""timm's parameter groups with onepass: no weight decay on biases and norms."""

from __future__ import annotations

import torch
from timm.optim import param_groups_weight_decay

import onepass
import toy


def optimizer_for(model: torch.nn.Module, optimizer=onepass.AdamP) -> torch.optim.Optimizer:
    return optimizer(param_groups_weight_decay(model, weight_decay=0.05), lr=1e-2)


def train(model: torch.nn.Module, opt: torch.optim.Optimizer, steps: int = 20) -> list[float]:
    x, y = toy.data().tensors
    losses = []
    for _ in range(steps):
        opt.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    model = toy.net()
    opt = optimizer_for(model)
    for group in opt.param_groups:
        print(f"weight decay {group['weight_decay']}: {[tuple(p.shape) for p in group['params']]}")
    losses = train(model, opt)
    print(f"first loss {losses[0]:.3f}, last {losses[-1]:.3f}")
