"""After the first steps, a step neither synchronizes with the device nor allocates memory."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from gpu.drive_device import feed, on_device, train
from gpu.graphs import no_synchronization
from gpu.target import BACKEND, DEVICE, cuda_only
from records import Record, each_optimizer, each_projected

pytestmark = cuda_only

each_way = pytest.mark.parametrize("capturable", [False, True], ids=["eager", "capturable"])


def stepped(record: Record, dtype: torch.dtype, capturable: bool) -> Any:
    arguments = {**record.typical, "capturable": capturable}
    if capturable:
        arguments["lr"] = torch.tensor(0.01, device=DEVICE)
    opt = train(record.make(on_device(dtype), backend=BACKEND, **arguments), range(3))
    feed(opt, 3)
    return opt


def change_lr(opt: Any) -> None:
    lr = opt.param_groups[0]["lr"]
    if isinstance(lr, torch.Tensor):
        lr.mul_(0.9)
    else:
        opt.param_groups[0]["lr"] = 0.9 * lr


@each_optimizer
@each_way
def test_no_synchronization(record: Record, capturable: bool) -> None:
    opt = stepped(record, torch.float32, capturable)
    with no_synchronization():
        for _ in range(4):
            change_lr(opt)
            opt.step()


@each_optimizer
@each_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_no_allocation(record: Record, dtype: torch.dtype, capturable: bool) -> None:
    opt = stepped(record, dtype, capturable)
    opt.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    in_use, allocations = torch.cuda.memory_allocated(), torch.cuda.memory_stats()["allocation.all.allocated"]
    free = torch.cuda.mem_get_info()[0]
    for _ in range(4):
        opt.step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocations
    assert torch.cuda.memory_allocated() == torch.cuda.max_memory_allocated() == in_use
    # Nor outside of torch's allocator. >=, since another process may free memory meanwhile.
    assert torch.cuda.mem_get_info()[0] >= free


@each_projected
@each_way
def test_last_step_synchronizes_when_a_verdict_is_read(record: Record, capturable: bool) -> None:
    opt = stepped(record, torch.float32, capturable)
    with no_synchronization():
        opt.step()
        last = opt.last_step()
        tensors = [last.gate, last.cosine, last.p_norm, last.g_norm, last.corrected]
        with pytest.raises(RuntimeError, match="synchroniz"):
            last.flat()
    cosines = [verdict.cosine for verdict in last.values()]
    assert cosines and cosines == last.cosine.tolist()
    assert all(t.device == DEVICE and len(t) == len(cosines) for t in tensors)


def test_synchronization_is_detected() -> None:
    x = torch.ones(3, device=DEVICE)
    with no_synchronization(), pytest.raises(RuntimeError, match="synchroniz"):
        x.sum().item()


@each_optimizer
@each_way
def test_memory_of_a_plan_is_freed(record: Record, capturable: bool) -> None:
    in_use = []
    for _ in range(3):
        stepped(record, torch.float32, capturable).step()
        gc.collect()
        in_use.append(torch.cuda.memory_allocated())
    assert in_use[0] == in_use[1] == in_use[2]
