"""FSDP2: every rank holds and steps a part of each parameter, and AdamP decides as one process would.

torchrun --nproc-per-node 4 examples/tools/fsdp2.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import onepass
import toy


def made() -> tuple[torch.nn.Module, onepass.AdamP]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = fully_shard(toy.net().to(device), mesh=init_device_mesh(device, (dist.get_world_size(),)))
    return net, onepass.AdamP(net.parameters(), lr=1e-2, weight_decay=1e-2)


def train(net: torch.nn.Module, opt: onepass.AdamP, steps: int) -> list[float]:
    x, y = (t.to(next(net.parameters()).device) for t in toy.data().tensors)
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.mse_loss(net(x), y)
        loss.backward()
        opt.clip_grad_norm_(1.0)  # of the whole, on any meshes; torch.nn.utils refuses several
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return losses


def main(folder: Path) -> tuple[torch.nn.Module, list[float]]:
    """Trains, saves, and goes on with what was saved, on any number of ranks."""
    net, opt = made()
    losses = train(net, opt, 5)
    dcp.save(dict(zip(("model", "opt"), get_state_dict(net, opt), strict=True)), checkpoint_id=folder)

    net, opt = made()
    saved = dict(zip(("model", "opt"), get_state_dict(net, opt), strict=True))
    dcp.load(saved, checkpoint_id=folder)
    set_state_dict(net, opt, model_state_dict=saved["model"], optim_state_dict=saved["opt"])
    return net, losses + train(net, opt, 5)


if __name__ == "__main__":
    dist.init_process_group()
    losses = main(Path(tempfile.gettempdir()) / "onepass-fsdp2")[1]
    if dist.get_rank() == 0:
        print("losses:", " ".join(f"{loss:.4f}" for loss in losses))
    dist.destroy_process_group()
