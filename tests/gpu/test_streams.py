"""Streams: a step runs on torch's current stream, and neither the host nor other streams wait."""

from __future__ import annotations

import time

import torch

from gpu.drive_device import assert_same_everywhere, feed, on_device, train
from gpu.target import BACKEND, cuda_only, to_host
from records import RECORDS, Record, each_optimizer

pytestmark = cuda_only

# Cycles. LONG is about 200 ms at 2 GHz: much longer than a step, much shorter than a test.
LONG, SHORT = 400_000_000, 200_000


@each_optimizer
def test_runs_on_the_current_stream(record: Record) -> None:
    """The step waits for earlier work on that stream; meanwhile the default stream reads the old weights."""
    opt = train(record.make(on_device(), backend=BACKEND, **record.typical), range(2))
    other = train(record.make(on_device(), backend=BACKEND, **record.typical), range(2))
    feed(opt, 2)
    feed(other, 2)
    (p, *_) = opt.param_groups[0]["params"]
    before, stream, done = to_host(p), torch.cuda.Stream(), torch.cuda.Event()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        opt.step()
        done.record()
    meanwhile = to_host(p)  # on the default stream
    assert not done.query(), "the device was done before it could be looked at: the test sleeps too short"
    assert torch.equal(meanwhile, before)
    stream.synchronize()
    other.step()
    assert_same_everywhere(opt, other)


def test_does_not_wait_for_other_streams() -> None:
    record = RECORDS["AdamP"]
    opt = train(record.make(on_device(), backend=BACKEND, **record.typical), range(2))
    feed(opt, 2)
    stream, done = torch.cuda.Stream(), torch.cuda.Event()
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    with torch.cuda.stream(stream):
        opt.step()
    stream.synchronize()
    done.record()
    assert not done.query(), "the step on one stream has waited for another"


@each_optimizer
def test_the_host_does_not_wait(record: Record) -> None:
    opt = train(record.make(on_device(), backend=BACKEND, **record.typical), range(2))
    feed(opt, 2)
    done = torch.cuda.Event()
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    begin = time.perf_counter()
    opt.step()
    took = time.perf_counter() - begin
    done.record()
    assert not done.query() and took < 0.1


@each_optimizer
def test_two_optimizers_on_two_streams(record: Record) -> None:
    """Interleaved steps on two streams have the bits of separate runs."""
    alone = [record.make(on_device(), backend=BACKEND, **record.typical) for _ in range(2)]
    both = [record.make(on_device(), backend=BACKEND, **record.typical) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for number in range(10):
        for opt, stream in zip(both, streams, strict=True):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(SHORT * (1 + number % 3))
                for i, p in enumerate(opt.param_groups[0]["params"]):
                    p.grad = torch.sin(p.detach() * (1 + i) + number)
                opt.step()
    torch.cuda.synchronize()
    for opt in alone:
        for number in range(10):
            for i, p in enumerate(opt.param_groups[0]["params"]):
                p.grad = torch.sin(p.detach() * (1 + i) + number)
            opt.step()
    for got, want in zip(both, alone, strict=True):
        assert_same_everywhere(got, want)


@each_optimizer
def test_one_optimizer_passed_from_stream_to_stream(record: Record) -> None:
    """Events order the steps."""
    opt = record.make(on_device(), backend=BACKEND, **record.typical)
    other = record.make(on_device(), backend=BACKEND, **record.typical)
    streams, event = [torch.cuda.Stream() for _ in range(2)], torch.cuda.Event()
    event.record()
    for number in range(8):
        stream = streams[number % 2]
        with torch.cuda.stream(stream):
            stream.wait_event(event)
            torch.cuda._sleep(SHORT)
            for p in opt.param_groups[0]["params"]:
                p.grad = torch.cos(p.detach() + number)
            opt.step()
            event = torch.cuda.Event()
            event.record()
        event.synchronize()  # the host frees the gradients of the last step
    for number in range(8):
        for p in other.param_groups[0]["params"]:
            p.grad = torch.cos(p.detach() + number)
        other.step()
    assert_same_everywhere(opt, other)
