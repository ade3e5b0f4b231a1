"""Lightning: automatic and manual steps, with clipping and under autocast, give the weights of a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

lightning = pytest.importorskip("lightning")

import lightning_module  # noqa: E402
import onepass  # noqa: E402
import toy  # noqa: E402
from tools import assert_same_weights, by_hand, each_optimizer_of_both, with_torch_beside  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's hints on workers and logging
each_module = pytest.mark.parametrize("module", [lightning_module.Automatic, lightning_module.Manual])


def fit(module: Any, folder: Path, resume: str | None = None, epochs: int = 4, **arguments: Any) -> Any:
    """Trains `module`; returns its Trainer."""
    clip = {"gradient_clip_val": 1.0} if module.automatic_optimization else {}
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, default_root_dir=folder, **clip, **quiet, **arguments
    )
    trainer.fit(module, DataLoader(toy.data(), 16), ckpt_path=resume)
    return trainer


def hand_made(optimizer: Any, epochs: int = 4, autocast: bool = False) -> torch.nn.Module:
    model = toy.net()

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
            return torch.nn.functional.mse_loss(model(x), y)

    opt = optimizer(model.parameters(), lr=1e-2, weight_decay=1e-2)
    batches = list(DataLoader(toy.data(), 16)) * epochs
    by_hand(model, opt, [lambda x=x, y=y: loss(x, y) for x, y in batches], clip=1.0)
    return model


@each_module
@each_optimizer_of_both
def test_equals_a_plain_loop(tmp_path: Path, module: Any, optimizer: Any) -> None:
    trained = module(optimizer)
    fit(trained, tmp_path)
    assert_same_weights(trained.net, hand_made(optimizer))


@each_module
def test_steps_equal_torch(tmp_path: Path, module: Any) -> None:
    """With gradients clipped by Lightning, every step equals torch's."""
    beside = []
    fit(module(with_torch_beside(beside)), tmp_path)
    assert beside[0].steps == 16


@each_module
def test_autocast(tmp_path: Path, module: Any) -> None:
    trained = module()
    fit(trained, tmp_path, precision="bf16-mixed")
    assert_same_weights(trained.net, hand_made(onepass.AdamP, autocast=True))


@each_module
def test_resumed(tmp_path: Path, module: Any) -> None:
    """Resumed after two epochs of four: the bits of the uninterrupted run."""
    first, second = module(), module()
    fit(first, tmp_path, epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, tmp_path, resume=str(tmp_path / "half.ckpt"))
    assert_same_weights(second.net, hand_made(onepass.AdamP))


def test_last_step_of_the_wrapper(tmp_path: Path) -> None:
    """`self.optimizers()` returns an instance of a class derived from Lightning's and ours; it has `last_step`."""
    seen = []

    class Looks(lightning_module.Manual):
        def training_step(self, batch: Any, index: int) -> None:
            super().training_step(batch, index)
            seen.append((self.optimizers(), self.optimizers().last_step()))

    module = Looks()
    fit(module, tmp_path, epochs=1)
    opt, verdicts = seen[-1]
    assert isinstance(opt, onepass.AdamP) and opt.optimizer.param_groups is opt.param_groups
    assert set(verdicts) == {p for p in module.parameters() if p.dim() > 1}


@pytest.mark.parametrize("wrapper", ["lightning.pytorch.core.optimizer.LightningOptimizer", "Fabric"])
def test_clipping_through_the_wrapper(wrapper: str) -> None:
    """The wrapper uses the optimizer's methods but has attributes of its own."""
    made = [onepass.AdamP([torch.nn.Parameter(torch.ones(3, 4))], lr=0.1) for _ in range(2)]
    if wrapper == "Fabric":
        fabric = lightning.Fabric(accelerator="cpu", devices=1)
        wrapped = fabric.setup_optimizers(made[0])
    else:
        wrapped = lightning.pytorch.core.optimizer.LightningOptimizer(made[0])
    for opt, through in ((made[0], wrapped), (made[1], made[1])):
        (p,) = opt.param_groups[0]["params"]
        for time in range(2):
            p.grad = torch.linspace(-9, 5, 12).reshape(3, 4) * (1 + time)
            through.clip_grad_norm_(0.1)
            opt.step()
        p.grad = torch.linspace(-9, 5, 12).reshape(3, 4)
        through.clip_grad_norm_(0.1)
        through.zero_grad()
        p.grad = torch.ones(3, 4)
        opt.step()
    assert_same_weights(*[torch.nn.ParameterList(opt.param_groups[0]["params"]) for opt in made])


def test_loss_scaling(tmp_path: Path) -> None:
    """float16 with a gradient scaler and clipping: each step equals torch's, and an overflow skips the step."""
    beside = []
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=5)  # overflows at first
    plugin = lightning.pytorch.plugins.MixedPrecision("16-mixed", "cpu", scaler)
    fit(lightning_module.Automatic(with_torch_beside(beside)), tmp_path, plugins=[plugin])
    assert 2.0**10 < scaler.get_scale() < 2.0**20
    assert beside[0].steps + beside[0].skipped == 16 and beside[0].steps > 5
