"""Training runs on two processes, for test_distributed.py."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from processes import Result, run_all

WORLD = 2
STEPS = 3


def model_of() -> nn.Module:
    """Sizes that two processes cannot share evenly: a shard begins in the middle of a row."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def batch(rank: int, time: int) -> Tensor:
    return torch.randn(4, 7, generator=torch.Generator().manual_seed(10 * time + rank))


def backward(model: nn.Module, rank: int, time: int) -> None:
    for p in model.parameters():
        p.grad = None
    model(batch(rank, time)).square().sum().backward()


def train(model: nn.Module, opt: Any, times: range = range(STEPS)) -> None:
    for time in times:
        backward(model, dist.get_rank(), time)
        opt.step()


def alone(model: nn.Module, opt: Any, times: range = range(STEPS)) -> None:
    """The same in one process, with the mean of all ranks' gradients."""
    params = list(model.parameters())
    for time in times:
        gradients = []
        for rank in range(WORLD):
            backward(model, rank, time)
            gradients.append([p.grad.clone() for p in params if p.grad is not None])
        for p, *ranks in zip(params, *gradients, strict=True):
            p.grad = sum(g / WORLD for g in ranks)
        opt.step()


def weights(params: Any) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def refusal(make: Callable[[], Any]) -> str:
    try:
        make()
    except (TypeError, ValueError) as error:
        return str(error)
    return "accepted"


# ------------------------------------------------------------------ runs


def ddp(name: str, backend: str) -> Result:
    record = RECORDS[name]
    # Gradients are views of the buckets that DDP reduces.
    model = DistributedDataParallel(model_of(), gradient_as_bucket_view=True)
    train(model, record.make(model.parameters(), backend=backend, **record.typical))
    return {"weights": weights(model.parameters())}


def zero(name: str) -> Result:
    """Half way the optimizer's state is consolidated, and loaded into another one."""
    record = RECORDS[name]
    model = DistributedDataParallel(model_of())
    first, second = (ZeroRedundancyOptimizer(model.parameters(), record.make, **record.typical) for _ in range(2))
    train(model, first)
    first.consolidate_state_dict(to=0)
    saved = [first.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(saved)
    half, kept = weights(model.parameters()), copy.deepcopy(saved[0])
    second.load_state_dict(saved[0])
    train(model, second, range(STEPS, 2 * STEPS))
    shard = sum(len(group["params"]) for group in second.optim.param_groups)
    return {"half": half, "weights": weights(model.parameters()), "state_dict": kept, "own": shard}


def fsdp1(name: str, keep_parameters: bool, shard: bool) -> Result:
    record = RECORDS[name]

    def make() -> Any:
        strategy = ShardingStrategy.FULL_SHARD if shard else ShardingStrategy.NO_SHARD
        model = FullyShardedDataParallel(
            model_of(), use_orig_params=keep_parameters, sharding_strategy=strategy, device_id=torch.device("cpu")
        )
        return model, record.make(model.parameters(), **record.typical)

    said = refusal(make)
    if said != "accepted":
        return {"refused": said}
    model, first = make()
    second = record.make(model.parameters(), **record.typical)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    train(model, first)
    saved = get_optimizer_state_dict(model, first, options=options)
    set_optimizer_state_dict(model, second, saved, options=options)
    train(model, second, range(STEPS, 2 * STEPS))
    with FullyShardedDataParallel.summon_full_params(model):
        return {"weights": weights(model.parameters()), "refused": "accepted"}


BACKENDS = ["cpu", "reference", "emulated", "triton"]
RUNS: dict[str, Callable[[], Result]] = {
    **{f"ddp {n} {b}": lambda n=n, b=b: ddp(n, b) for n in ("AdamW", "AdamP", "SGDP") for b in BACKENDS},
    **{f"zero {n}": lambda n=n: zero(n) for n in ("AdamW", "AdamP", "SGD")},
    **{
        f"fsdp1 {n} {'parameters' if keep else 'flat'} {'sharded' if shard else 'whole'}": (
            lambda n=n, keep=keep, shard=shard: fsdp1(n, keep, shard)
        )
        for n in ("AdamW", "AdamP", "SGDP")
        for keep in (True, False)
        for shard in (True, False)
    },
}


if __name__ == "__main__":
    from paths import TESTS

    sys.path.append(str(TESTS))
    import conftest  # noqa: F401  Triton's interpreter

    from processor import THREADS
    from records import RECORDS

    run_all(RUNS, WORLD, THREADS)
