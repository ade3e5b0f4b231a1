"""The optimizer in the backward pass: every parameter is stepped, and its gradient freed, as soon as it has one.

So there are never all gradients at once. Whatever needs all of them, such as clipping by their norm, cannot be had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

import onepass
import toy


def step_in_backward(params: Iterable[Tensor], make: Callable[[list[Tensor]], torch.optim.Optimizer]):
    """From now on `backward` steps `params`; returns the optimizer of each, for schedulers and checkpoints."""
    optimizers = {p: make([p]) for p in params}

    def step(p: Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step)
    return optimizers


if __name__ == "__main__":
    model, (x, y) = toy.net(), toy.data().tensors
    step_in_backward(model.parameters(), lambda params: onepass.AdamP(params, lr=1e-2))
    for _ in range(5):
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        print(f"{loss.item():.4f}", "gradients left:", sum(p.grad is not None for p in model.parameters()))
