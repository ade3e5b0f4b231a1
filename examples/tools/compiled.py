"""torch.compile with onepass: `step` outside of what is compiled, and inside.

`step` is never traced: it is one call of compiled code already. Inside a compiled function it is a graph break, at which
torch runs it as it is; with `fullgraph=True`, which forbids breaks, call it outside.
"""

from __future__ import annotations

import torch

import onepass
import toy


def training(optimizer=onepass.AdamP):
    """A model, its optimizer, and a function that takes a training step and returns the loss."""
    model = toy.net()
    opt = optimizer(model.parameters(), lr=1e-2, weight_decay=1e-2)

    def train_step(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        opt.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        return loss.detach()

    return model, opt, train_step


if __name__ == "__main__":
    model, _, train_step = training()
    outside = torch.compile(model)
    print("outside:", *(f"{train_step(outside, *toy.data().tensors).item():.4f}" for _ in range(5)))
    model, _, train_step = training()
    inside = torch.compile(train_step)
    print("inside: ", *(f"{inside(model, *toy.data().tensors).item():.4f}" for _ in range(5)))
