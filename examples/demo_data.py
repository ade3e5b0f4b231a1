"""The data and the two nets of the demo."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

BATCH = 64


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, half to train on and half to test on."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def steps(self) -> int:
        """Batches in an epoch; the rest of each shuffle is left out."""
        return len(self.labels) // BATCH

    def batches(self, epochs: int, seed: int, shift: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the shuffled batches of all epochs; with `shift`, each moved by up to a pixel in either direction."""
        generator = torch.Generator().manual_seed(seed)
        padded = nn.functional.pad(self.images, (1, 1, 1, 1), value=float(self.images.min()))
        for _ in range(epochs):
            order = torch.randperm(len(self.labels), generator=generator).to(self.labels.device)
            for i in range(self.steps):
                chosen = order[i * BATCH : (i + 1) * BATCH]
                x, y = torch.randint(3, (2,), generator=generator).tolist() if shift else (1, 1)
                yield padded[chosen, :, y : y + 8, x : x + 8], self.labels[chosen]


def digits(device: torch.device) -> Digits:
    """The data on `device`, with the mean and deviation of the training half taken out."""
    raw = load_digits()
    train, test = train_test_split(range(len(raw.target)), train_size=0.5, random_state=0, stratify=raw.target)
    images = torch.tensor(raw.images, dtype=torch.float32)[:, None]
    images = ((images - images[train].mean()) / images[train].std()).to(device)
    labels = torch.tensor(raw.target).to(device)
    return Digits(images[train], labels[train], images[test], labels[test])


def conv_net(width: int = 32) -> nn.Sequential:
    """Four convolutions, each followed by batch norm and so scale-invariant, and a linear classifier, which is not."""
    layers: list[nn.Module] = []
    channels = 1
    for out, stride in ((width, 1), (width, 1), (2 * width, 2), (2 * width, 1)):
        conv = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class DeepNets(nn.Module):
    """Residual nets of `2*blocks + 2` linear layers without normalisation, one for each of `seeds`, trained side by side.

    Layer i of all of them is one tensor of shape (nets, in, out). They do not touch each other, since the rules of the
    Adam family are elementwise: each net goes the way it would go alone.
    """

    def __init__(self, seeds: list[int], width: int = 48, blocks: int = 24):
        super().__init__()
        sizes = [(64, width), *[(width, width)] * (2 * blocks), (width, 10)]
        drawn = [_linears(sizes, seed) for seed in seeds]
        self.weights = nn.ParameterList(torch.stack([net[i][0] for net in drawn]) for i in range(len(sizes)))
        self.biases = nn.ParameterList(torch.stack([net[i][1] for net in drawn]) for i in range(len(sizes)))

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1).expand(self.weights[0].shape[0], -1, -1)
        x = self.layer(0, x)
        for i in range(1, len(self.weights) - 1, 2):
            x = x + self.layer(i + 1, self.layer(i, x).relu())
        return self.layer(len(self.weights) - 1, x)

    def layer(self, i: int, x: Tensor) -> Tensor:
        return torch.baddbmm(self.biases[i], x, self.weights[i])


def _linears(sizes: list[tuple[int, int]], seed: int) -> list[tuple[Tensor, Tensor]]:
    """Weights of variance 1/fan_in (LeCun's initialization), three times that of torch.nn.Linear; biases as it draws them."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for fan_in, fan_out in sizes:
        bound = 1 / math.sqrt(fan_in)
        weight, bias = torch.empty(fan_in, fan_out), torch.empty(1, fan_out)
        weight.uniform_(-math.sqrt(3) * bound, math.sqrt(3) * bound, generator=generator)
        bias.uniform_(-bound, bound, generator=generator)
        layers.append((weight, bias))
    return layers


def mislabelled(data: Digits, share: float, seed: int = 0) -> Digits:
    """The data with this share of the training labels drawn anew, at random."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(10, data.labels.shape, generator=generator)
    chosen = torch.rand(data.labels.shape, generator=generator) < share
    return replace(data, labels=torch.where(chosen, drawn, data.labels.cpu()).to(data.labels.device))


def hold_then_fall(total: int, hold: float = 0.7):
    """The learning rate's factor at each of `total` steps: 1 for the first `hold` of them, then linearly to 0."""
    return lambda step: min(1.0, (total - step) / (total * (1 - hold)))
