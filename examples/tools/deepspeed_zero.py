"""DeepSpeed's ZeRO 1 and 2: every rank steps a part of the parameters, as one flat float32 vector. AdamP and SGDP refuse that.

torchrun --nproc-per-node 4 examples/tools/deepspeed_zero.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

import onepass
import toy


def made(optimizer: Any, stage: int, bf16: bool) -> Any:
    net = toy.net()
    opt = optimizer(net.parameters(), lr=1e-2, weight_decay=1e-2)
    config = {
        "train_micro_batch_size_per_gpu": 64 // dist.get_world_size(),
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,  # the list of tested ones is DeepSpeed's own and torch's
        "gradient_clipping": 1.0,
        "bf16": {"enabled": bf16},
    }
    return deepspeed.initialize(model=net, optimizer=opt, config=config)[0]


def train(engine: Any, steps: int) -> list[float]:
    own = slice(dist.get_rank(), None, dist.get_world_size())
    x, y = (t[own].to(engine.device, next(engine.parameters()).dtype) for t in toy.data().tensors)
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.mse_loss(engine(x), y)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def main(folder: Path, optimizer: Any = onepass.AdamW, stage: int = 2, bf16: bool = True) -> tuple[Any, list[float]]:
    """Trains, saves, and goes on with what was saved."""
    engine = made(optimizer, stage, bf16)
    losses = train(engine, 5)
    engine.save_checkpoint(folder)
    engine = made(optimizer, stage, bf16)
    engine.load_checkpoint(folder)
    return engine.module, losses + train(engine, 5)


if __name__ == "__main__":
    deepspeed.init_distributed()
    losses = main(Path(tempfile.gettempdir()) / "onepass-zero")[1]
    if dist.get_rank() == 0:
        print("losses:", " ".join(f"{loss:.4f}" for loss in losses))
