"""Training with AdamP on the device: the losses equal those of the reference on the same device."""

from __future__ import annotations

import copy
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import onepass
from gpu.target import BACKEND, DEVICE, pick

STEPS = pick(100, 12)


class Block(nn.Module):
    """A transformer block in basic operations, so that its backward pass is deterministic."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.size(-1) ** 0.5, dim=-1)
        x = x + self.out(weights @ v)
        return x + self.mlp(self.second(x))


def conv_net() -> tuple[nn.Module, Tensor, Tensor]:
    """Images of four classes, each a pattern with noise."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip
    y = torch.arange(64) % 4
    x = torch.randn(4, 3, 10, 10)[y] + 0.5 * torch.randn(64, 3, 10, 10)
    return model, x, y


def transformer() -> tuple[nn.Module, Tensor, Tensor]:
    """Sequences of eight symbols; the target is the last one."""
    model = nn.Sequential(nn.Linear(8, 32), Block(32), Block(32), nn.Flatten(), nn.Linear(12 * 32, 8))
    symbols = torch.randint(8, (64, 12))
    return model, nn.functional.one_hot(symbols, 8).float(), symbols[:, -1]


@pytest.mark.parametrize("make", [conv_net, transformer])
@pytest.mark.parametrize("decay", ["decoupled", "proximal"])
def test_losses(make: Any, decay: str) -> None:
    """Compares losses, not weights: the gradient of an attention's key bias is rounding noise, on which Adam takes full steps,
    and the loss does not depend on that bias."""
    torch.manual_seed(0)
    model, x, y = make()
    x, y = x.to(DEVICE), y.to(DEVICE)
    losses, gates = {}, {}
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False, allow_tf32=False):
        for backend in (BACKEND, "reference"):
            own = copy.deepcopy(model).to(DEVICE)
            opt = onepass.AdamP(own.parameters(), lr=2e-3, weight_decay=1e-2, decay=decay, backend=backend)
            losses[backend] = train(own, opt, x, y)
            gates[backend] = [verdict.gate for verdict in opt.last_step().values()]
    got, want = losses[BACKEND], losses["reference"]
    assert got[:10] == pytest.approx(want[:10], rel=1e-3)
    assert fmean(got[-10:]) == pytest.approx(fmean(want[-10:]), rel=0.1, abs=1e-3)
    assert fmean(got[-3:]) < pick(0.5, 1) * got[0]
    assert make is not conv_net or "channel" in gates[BACKEND]  # kernels before BatchNorm are scale-invariant


def train(model: nn.Module, opt: Any, x: Tensor, y: Tensor) -> list[float]:
    losses = []
    for _ in range(STEPS):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    return losses
