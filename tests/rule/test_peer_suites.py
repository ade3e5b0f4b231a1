"""The small problems of the test suites of timm and pytorch_optimizer: every optimizer solves them.

Both minimize functions with a known minimum and train a small classifier. Other files test what else they check: closures,
gradients that are None, sparse or complex, torch's flags, cleared state, reproducibility.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compare import assert_same_state
from drive import parameters_of
from records import Record, each_optimizer

Function = Callable[[Tensor], Tensor]


def rosenbrock(at: Tensor) -> Tensor:
    """A curved valley with minimum 0 at (1, 1)."""
    x, y = at
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def beale(at: Tensor) -> Tensor:
    """Flat between steep walls, with minimum 0 at (3, 0.5)."""
    x, y = at
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


# Function, start, minimum, and learning rates of the Adam and the SGD family.
VALLEYS: dict[str, tuple[Function, tuple[float, float], tuple[float, float], float, float]] = {
    "rosenbrock": (rosenbrock, (1.5, 1.5), (1.0, 1.0), 0.05, 1e-3),
    "beale": (beale, (1.5, 0.75), (3.0, 0.5), 0.1, 5e-3),
}


def _arguments(record: Record, adam: float, sgd: float) -> dict[str, Any]:
    return dict(lr=adam, betas=(0.9, 0.99)) if record.name.startswith("Adam") else dict(lr=sgd, momentum=0.9)


def _descend(record: Record, function: Function, opt: Any, steps: int) -> Any:
    (p,) = parameters_of(opt)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = function(p)
        loss.backward()
        return loss

    for _ in range(steps):
        opt.step(closure)
    return opt


@each_optimizer
@pytest.mark.parametrize("valley", VALLEYS)
def test_minimizes_a_function(record: Record, valley: str) -> None:
    """Reaches the minimum; maximize on the negated function gives the same bits."""
    function, start, minimum, *rates = VALLEYS[valley]
    arguments = {**_arguments(record, *rates), "weight_decay": 0.0}
    steps = 800
    opts = [record.make([nn.Parameter(torch.tensor(start))], **arguments, maximize=up) for up in (False, True)]
    down, up = _descend(record, function, opts[0], steps), _descend(record, lambda p: -function(p), opts[1], steps)
    (p,), (q,) = parameters_of(down), parameters_of(up)
    assert float((p.detach() - torch.tensor(minimum)).norm()) < 0.05, p
    p.grad = q.grad = None
    assert_same_state(down, up)


def _blobs() -> tuple[Tensor, Tensor]:
    """Two linearly separable clouds of 64 points in 8 dimensions."""
    draws = torch.randn(128, 8, generator=torch.Generator().manual_seed(3))
    labels = (torch.arange(128) % 2).float()
    return draws + 2.5 * (labels[:, None] - 0.5) * torch.linspace(0.5, 1.5, 8), labels


def _classify(
    record: Record, dtype: torch.dtype, arguments: dict[str, Any], steps: int
) -> tuple[Any, list[float], Tensor]:
    """Trains two layers, the first one scale-invariant; biases and norms are in a group without decay."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    opt = record.make([{"params": matrices}, {"params": others, "weight_decay": 0.0}], **arguments)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps, arguments["lr"] / 10)
    x, labels = _blobs()
    losses = []
    for _ in range(steps):
        opt.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x.to(dtype))[:, 0].float(), labels)
        loss.backward()
        opt.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return opt, losses, (model(x.to(dtype))[:, 0] > 0).float().eq(labels).float().mean()


@each_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_trains_a_classifier(record: Record, dtype: torch.dtype) -> None:
    """The loss falls, and a second run gives the same bits."""
    arguments = {**_arguments(record, 0.02, 0.05), "weight_decay": 1e-3}
    opt, losses, right = _classify(record, dtype, arguments, 60)
    assert losses[0] > 0.5 and losses[-1] < 0.1 and right > 0.97, (losses[0], losses[-1], right)
    assert_same_state(_classify(record, dtype, arguments, 60)[0], opt)


@each_optimizer
def test_decay_alone(record: Record) -> None:
    """Gradients of zero leave the decay to work: every element gets smaller at every step, and none changes its sign."""
    opt = record.make([nn.Parameter(torch.linspace(-2, 2, 24).reshape(4, 6))], lr=0.01, weight_decay=0.1)
    (p,) = parameters_of(opt)
    for _ in range(3):
        before = p.detach().clone()
        p.grad = torch.zeros_like(p)
        opt.step()
        assert bool((p.abs() < before.abs()).all()) and torch.equal(p.sign(), before.sign())
