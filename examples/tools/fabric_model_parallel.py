"""Lightning Fabric's ModelParallelStrategy: FSDP2, with Fabric's checkpoints.

torchrun --nproc-per-node 4 examples/tools/fabric_model_parallel.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

import onepass
import toy


def shard(net: torch.nn.Module, mesh) -> torch.nn.Module:
    return fully_shard(net, mesh=mesh["data_parallel"])


def made(ranks: int):
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    strategy = ModelParallelStrategy(shard, data_parallel_size=ranks, tensor_parallel_size=1)
    fabric = Fabric(accelerator=accelerator, devices=ranks, strategy=strategy)
    fabric.launch()
    net = fabric.setup_module(toy.net())
    return fabric, net, fabric.setup_optimizers(onepass.AdamP(net.parameters(), lr=1e-2, weight_decay=1e-2))


def main(ranks: int, folder: Path) -> tuple[torch.nn.Module, list[float]]:
    """Trains, saves, and goes on with what was saved."""
    losses = []
    for start in (True, False):
        fabric, net, opt = made(ranks)
        x, y = (t.to(fabric.device) for t in toy.data().tensors)
        if not start:
            fabric.load(folder, {"net": net, "opt": opt})
        for _ in range(5):
            opt.zero_grad()
            loss = torch.nn.functional.mse_loss(net(x), y)
            fabric.backward(loss)
            opt.step()
            losses.append(loss.item())
        if start:
            fabric.save(folder, {"net": net, "opt": opt})
    return net, losses


if __name__ == "__main__":
    import os

    losses = main(int(os.environ.get("WORLD_SIZE", "1")), Path(tempfile.gettempdir()) / "onepass-fabric")[1]
    if os.environ.get("RANK", "0") == "0":
        print("losses:", " ".join(f"{loss:.4f}" for loss in losses))
