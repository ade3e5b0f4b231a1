"""Tensor parallelism, and FSDP2 over it: the rows of a weight are on several ranks, or parts of each row are.

torchrun --nproc-per-node 4 examples/tools/tensor_parallel.py
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import onepass
import toy
from fsdp2 import train


def parallel_net(data: int, tensor: int) -> torch.nn.Module:
    """toy.net on a mesh of `data` x `tensor` ranks."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (data, tensor), mesh_dim_names=("data", "tensor"))
    plan = {
        "0": ColwiseParallel(output_layouts=Replicate()),  # rows of the weight are parted
        "3": RowwiseParallel(input_layouts=Replicate()),  # each row is split
    }
    net = parallelize_module(toy.net().to(device), mesh["tensor"], plan)
    return fully_shard(net, mesh=mesh["data"])


def main() -> tuple[torch.nn.Module, list[float]]:
    tensor = 2 if dist.get_world_size() % 2 == 0 else 1
    net = parallel_net(dist.get_world_size() // tensor, tensor)
    return net, train(net, onepass.AdamP(net.parameters(), lr=1e-2, weight_decay=1e-2), 10)


if __name__ == "__main__":
    dist.init_process_group()
    losses = main()[1]
    if dist.get_rank() == 0:
        print("losses:", " ".join(f"{loss:.4f}" for loss in losses))
    dist.destroy_process_group()
