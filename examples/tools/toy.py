"""What the examples beside this file train: a small net on a sum of positive parts."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 1))


def data() -> TensorDataset:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x.relu().sum(1, keepdim=True))
