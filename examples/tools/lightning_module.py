"""Lightning with onepass: steps that its Trainer takes, and steps that `training_step` takes itself."""

from __future__ import annotations

import lightning
import torch
from torch.utils.data import DataLoader

import onepass
import toy


class Automatic(lightning.LightningModule):
    """Trainer clips, where it is given `gradient_clip_val`, and calls `step` with forward and backward as closure."""

    def __init__(self, optimizer=onepass.AdamP):
        super().__init__()
        self.net, self.optimizer = toy.net(), optimizer

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=1e-2, weight_decay=1e-2)

    def training_step(self, batch, index):
        return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])


class Manual(Automatic):
    automatic_optimization = False

    def training_step(self, batch, index):
        opt = self.optimizers()
        opt.zero_grad()
        self.manual_backward(super().training_step(batch, index))
        self.clip_gradients(opt, gradient_clip_val=1.0)
        opt.step()


if __name__ == "__main__":
    lightning.Trainer(max_epochs=30, gradient_clip_val=1.0).fit(Automatic(), DataLoader(toy.data(), 16))
    lightning.Trainer(max_epochs=30).fit(Manual(), DataLoader(toy.data(), 16))
