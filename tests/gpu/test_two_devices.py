"""Several GPUs in one process: a step runs on the device of its parameters, for any current device."""

from __future__ import annotations

import pytest
import torch

from compare import assert_same_bits
from drive import gradient_at, parameters
from gpu.target import BACKEND, HAS_GPU, cuda_only, to_host
from records import Record, each_optimizer

pytestmark = [
    cuda_only,
    pytest.mark.skipif(HAS_GPU and torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@each_optimizer
@pytest.mark.parametrize("current", [0, 1])
def test_a_group_on_each(record: Record, current: int) -> None:
    models = [[q.detach() for q in parameters()] for _ in range(2)]
    groups = [[q.to(f"cuda:{i}", copy=True) for q in own] for i, own in enumerate(models)]
    opt = record.make([{"params": own} for own in groups], backend=BACKEND, **record.typical)
    reference = record.make([{"params": own} for own in models], backend="reference", **record.typical)
    with torch.cuda.device(current):
        for time in range(3):
            for own, theirs in zip(groups, models, strict=True):
                for p, q in zip(own, theirs, strict=True):
                    q.grad = gradient_at(q, time)
                    p.grad = q.grad.to(p.device)
            opt.step()
            reference.step()
            assert torch.cuda.current_device() == current
    verdicts, wanted = opt.last_step(), reference.last_step()
    for own, theirs in zip(groups, models, strict=True):
        for p, q in zip(own, theirs, strict=True):
            if q in wanted:
                assert verdicts[p].gate == wanted[q].gate
                torch.testing.assert_close(to_host(p), q, rtol=1e-5, atol=1e-6)
            else:
                assert_same_bits(to_host(p), q, "parameter")


@each_optimizer
def test_stream_of_the_parameters_device(record: Record) -> None:
    """A step uses the current stream of the parameters' device, not of the current device."""
    p = torch.ones(5, 40, device="cuda:1")
    opt = record.make([p], backend=BACKEND, **record.typical)
    p.grad = torch.ones_like(p)
    opt.step()
    torch.cuda.synchronize(1)
    before, stream = to_host(p), torch.cuda.Stream(device=1)
    with torch.cuda.device(0), torch.cuda.stream(stream):
        with torch.cuda.device(1):
            torch.cuda._sleep(400_000_000)
        with torch.cuda.device(0):
            opt.step()
        done = stream.record_event()
    assert torch.equal(to_host(p), before) and not done.query()
    stream.synchronize()
    assert not torch.equal(to_host(p), before)
