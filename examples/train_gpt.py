"""A GPT, trained on text that is on every machine: the sources of Python's standard library, byte by byte.

python examples/train_gpt.py                               # 10 M parameters, for a CPU
python examples/train_gpt.py --size 125m --bf16 --compile  # for a GPU
torchrun --nproc-per-node 2 examples/train_gpt.py          # FSDP2: every rank has a part of each parameter
python examples/train_gpt.py --beside --steps 20           # the first steps of torch's AdamW, onepass and adamp
"""

from __future__ import annotations

import argparse
import math
import os
import sysconfig
import time
from pathlib import Path

import adamp
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from rich import print, progress, table
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy, gelu, rms_norm, scaled_dot_product_attention
from torch.utils.tensorboard import SummaryWriter

import onepass

SIZES = {"1m": (4, 4, 128), "10m": (6, 6, 384), "125m": (13, 14, 896)}  # layers, heads, width
CONTEXT, BYTES = 256, 256
OPTIMIZERS = {
    "torch AdamW": lambda *args, **how: torch.optim.AdamW(*args, fused=True, **how),
    "onepass AdamW": onepass.AdamW,
    "onepass AdamP": onepass.AdamP,
    "adamp AdamP": adamp.AdamP,
}


class Block(nn.Module):
    def __init__(self, heads: int, width: int):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = rms_norm(q, q.shape[-1:]), rms_norm(k, k.shape[-1:])  # AdamP finds both layers scale-invariant
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        return x + self.down(gelu(self.up(self.norm2(x))))


class Embedding(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.byte, self.place = nn.Embedding(BYTES, width), nn.Embedding(CONTEXT, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.byte(x) + self.place(torch.arange(x.shape[1], device=x.device))


def made(args: argparse.Namespace, name: str, device: torch.device) -> tuple:
    """The net, its optimizer with decay for matrices alone, and a schedule: a linear rise, then half a cosine."""
    torch.manual_seed(args.seed)
    layers, heads, width = SIZES[args.size]
    blocks = [Block(heads, width) for _ in range(layers)]
    net = nn.Sequential(Embedding(width), *blocks, nn.LayerNorm(width), nn.Linear(width, BYTES, bias=False))
    net = net.to(device, torch.bfloat16 if args.bf16 else torch.float32)
    if dist.is_initialized():
        for part in (*blocks, net):
            fully_shard(part, mesh=dist.init_device_mesh(device.type, (dist.get_world_size(),)))
    params = [*net.parameters()]
    groups = [{"params": [p for p in params if (p.dim() > 1) == (wd > 0)], "weight_decay": wd} for wd in (0.1, 0.0)]
    exact = {"master_weights": True} if args.bf16 and name.startswith("onepass") else {}
    opt = OPTIMIZERS[name](groups, lr=args.lr, betas=(0.9, 0.95), **exact)
    factor = lambda i: min(20 * (i + 1) / args.steps, 0.55 + 0.45 * math.cos(math.pi * i / args.steps))  # noqa: E731
    return net, opt, torch.optim.lr_scheduler.LambdaLR(opt, factor)


def clock(device: torch.device) -> float:
    torch.cuda.synchronize() if device.type == "cuda" else None
    return time.perf_counter()


def train(args: argparse.Namespace, name: str, device: torch.device) -> list[str]:
    """Trains, and saves a checkpoint; returns a line of the table."""
    net, opt, schedule = made(args, name, device)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    data = torch.frombuffer(bytearray(b"\n".join(file.read_bytes() for file in files)), dtype=torch.uint8)
    saved = {"net": net.state_dict(), "schedule": schedule.state_dict(), "opt": {}}
    if args.resume:
        saved["opt"] = get_optimizer_state_dict(net, opt)
        dcp.load(saved, checkpoint_id=Path(args.out, "checkpoint"))
        net.load_state_dict(saved["net"])
        set_optimizer_state_dict(net, opt, saved["opt"])
        schedule.load_state_dict(saved["schedule"])
    run, first = torch.compile(net) if args.compile else net, schedule.last_epoch
    log = SummaryWriter(args.out) if rank == 0 and not args.beside else None
    spent, begin = 0.0, clock(device)
    for step in progress.track(range(first, args.steps), name, disable=rank > 0):
        for part in range(args.accumulate):
            dice = torch.Generator().manual_seed((step * args.accumulate + part) * ranks + rank)
            at = torch.randint(len(data) - CONTEXT, (args.batch, 1), generator=dice) + torch.arange(CONTEXT + 1)
            x = data[at].long().to(device)
            loss = cross_entropy(run(x[:, :-1]).float().flatten(0, 1), x[:, 1:].flatten())
            (loss / args.accumulate).backward()
        start, ours = clock(device), name.startswith("onepass")
        norm = opt.clip_grad_norm_(1.0) if ours else nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        spent += clock(device) - start
        if log:
            seen = {"loss": loss.detach(), "norm": norm, "lr": opt.param_groups[0]["lr"]}
            for key, value in (seen | opt.last_step().flat(net.named_parameters())).items():
                log.add_scalar(key, float(value), step)
        schedule.step()
        opt.zero_grad()
    took = clock(device) - begin
    if not args.beside:
        saved |= {"schedule": schedule.state_dict(), "opt": get_optimizer_state_dict(net, opt)}
        dcp.save(saved, checkpoint_id=Path(args.out, "checkpoint"))
    tokens = (args.steps - first) * args.accumulate * args.batch * CONTEXT * ranks / took
    kept = [t for own in opt.state.values() for t in own.values() if torch.is_tensor(t)]
    memory = " + ".join(f"{sum(t.nbytes for t in part) / 1e6:,.0f}" for part in ([*net.parameters()] * 2, kept))
    return [name, f"{loss.item():.3f}", f"{tokens:,.0f}", f"{100 * spent / took:.1f}%", memory]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="10m")
    parser.add_argument("--out", default="runs/gpt", help="folder of the checkpoint and of TensorBoard's log")
    for option, default in {"steps": 200, "batch": 8, "accumulate": 1, "seed": 0, "lr": 1e-3}.items():
        parser.add_argument(f"--{option}", type=type(default), default=default, help=f"default: {default}")
    for option in ("bf16", "compile", "resume", "beside"):
        parser.add_argument(f"--{option}", action="store_true")
    args = parser.parse_args()
    dist.init_process_group() if "RANK" in os.environ else None
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    lines = table.Table("optimizer", "loss", "tokens a second", "clipping and step", "MB: weights, gradients + state")
    for name in OPTIMIZERS if args.beside else ["onepass AdamP"]:
        lines.add_row(*train(args, name, device))
    if os.environ.get("RANK", "0") == "0":
        print(lines)


if __name__ == "__main__":
    main()
