"""Tests that could break the CUDA context, each in its own process: `python alone.py NAME`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import contextlib

import torch

from gpu.drive_device import feed, on_device, train
from gpu.target import BACKEND, DEVICE
from records import RECORDS

LONG = 400_000_000


def plan_is_dropped_while_a_side_stream_steps() -> None:
    """The plan's memory was allocated on the default stream, which may reuse it as soon as it is free."""
    record = RECORDS["AdamP"]
    opt, other = (train(record.make(on_device(), backend=BACKEND, **record.typical), range(2)) for _ in range(2))
    for each in (opt, other):
        feed(each, 2)
    (bound,) = opt._execution.backends
    nbytes, stream, done = bound.memory.nbytes, torch.cuda.Stream(), torch.cuda.Event()
    del bound
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        opt.step()
        done.record()
    opt._execution.forget()
    opt._execution.stepped = []  # last_step would read it
    garbage = [torch.full((nbytes,), 255, dtype=torch.uint8, device=DEVICE) for _ in range(8)]
    torch.cuda.current_stream().synchronize()
    assert not done.query(), "the test sleeps too short"
    torch.cuda.synchronize()
    other.step()
    for p, q in zip(opt.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)
    print(f"as if alone, beside {len(garbage)} others")


def after_an_error_of_the_device() -> None:
    """Another kernel has failed: the next step reports the error of the device."""
    record = RECORDS["AdamP"]
    opt = train(record.make(on_device(), backend=BACKEND, **record.typical), range(2))
    with contextlib.suppress(RuntimeError):
        torch.zeros(4, device=DEVICE)[torch.tensor([10], device=DEVICE)]
        torch.cuda.synchronize()
    try:
        opt.step()
    except RuntimeError as error:
        print(error)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
