"""Steps in a child forked from a process whose steps have used several threads, which the child does not have.

A parallel region in the child, torch's too, would wait for them forever: the child itself calls no operation of torch on
a large tensor.
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from drive import gradient_at, parameters_of
from oracles import Arguments
from records import RECORDS, Record, each_backend, each_optimizer
from tensors import values

PATIENCE = 60  # seconds; a child took less than one
LARGE = (300, 700)  # several items of the kernels, and more than torch gives to one thread


@pytest.fixture
def several_threads(threads: None) -> None:
    torch.set_num_threads(3)


def bits_of(opt: Any) -> bytes:
    """A digest of parameters and state, without an operation of torch."""
    digest = hashlib.sha256()
    for p in parameters_of(opt):
        for t in (p, *opt.state.get(p, {}).values()):
            digest.update(t.detach().numpy().tobytes())
    return digest.digest()


def in_a_child(work: Callable[[], bytes]) -> bytes:
    """What `work` returns in a forked child. A child that hangs is killed, and the test fails."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, work())
        finally:
            os._exit(0)
    os.close(write)
    try:
        readable, _, _ = select.select([read], [], [], PATIENCE)
        assert readable, f"the child hangs: it has said nothing for {PATIENCE} s"
        said = os.read(read, 1000)
        assert said, "the child has failed; what it has printed says how"
        return said
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)


def make(record: Record, backend: str, shape: tuple[int, ...], **arguments: Any) -> Any:
    opt = record.make([values(shape, torch.float32, 1)], backend=backend, **{**record.typical, **arguments})
    feed(opt, 0)
    return opt


def feed(opt: Any, time: int) -> list[Tensor]:
    gradients = [gradient_at(p, time) for p in parameters_of(opt)]
    for p, g in zip(parameters_of(opt), gradients, strict=True):
        p.grad = g
    return gradients


@each_optimizer
@pytest.mark.usefixtures("several_threads")
def test_child_steps_after_its_parent(record: Record) -> None:
    """With the bits of the parent's next step; the child's number of threads is the same afterwards."""
    opt = make(record, "cpu", LARGE)
    opt.step()
    assert torch.get_num_threads() == 3
    feed(opt, 1)

    def step() -> bytes:
        opt.step()
        return bits_of(opt) + bytes([torch.get_num_threads()])

    said = in_a_child(step)
    assert said == in_a_child(lambda: in_a_child(step)), "a child of the child"
    opt.step()
    assert said == bits_of(opt) + bytes([3])


@each_optimizer
def test_unforked_process_keeps_its_threads(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step sets the number of threads in a child only."""
    opt, asked, set_num_threads = make(record, "cpu", LARGE), [], torch.set_num_threads

    def note(threads: int) -> None:
        asked.append(threads)
        set_num_threads(threads)

    monkeypatch.setattr(torch, "set_num_threads", note)
    opt.step()
    assert not asked
    assert in_a_child(lambda: bytes([opt.step() is None, *asked])) == bytes([True, 1, torch.get_num_threads()])


@pytest.mark.usefixtures("several_threads")
def test_child_restores_its_threads_after_an_error() -> None:
    opt = make(RECORDS["AdamW"], "cpu", LARGE)
    opt.step()
    opt.param_groups[0]["lr"] = -1.0

    def step() -> bytes:
        with pytest.raises(ValueError, match="lr"):
            opt.step()
        return bytes([torch.get_num_threads()])

    assert in_a_child(step) == bytes([3])


@each_backend
@pytest.mark.usefixtures("several_threads")
def test_child_clips_loads_and_steps(backend: str) -> None:
    """Clips, makes state in its first step, loads a state dict and steps again, on every backend."""
    record = RECORDS["AdamP"]
    shape = LARGE if backend in ("cpu", "reference") else (40, 300)
    arguments: Arguments = dict(speculate=False)
    used = make(RECORDS["AdamW"], "cpu", LARGE)
    used.step()
    torch.zeros(LARGE).add_(1)  # torch uses its threads too
    saved = make(record, backend, shape, **arguments)
    saved.step()
    state_dict, gradient = saved.state_dict(), feed(saved, 1)[0]
    opts = [make(record, backend, shape, **arguments) for _ in range(2)]

    def run(opt: Any) -> bytes:
        norm = opt.clip_grad_norm_(0.5)
        opt.step()
        opt.load_state_dict(state_dict)
        (p,) = parameters_of(opt)
        p.grad = gradient
        opt.step()
        return bits_of(opt) + norm.numpy().tobytes()

    assert in_a_child(lambda: run(opts[0])) == run(opts[1])


@pytest.mark.parametrize("name", ["step", "clip_grad_norm_", "load_state_dict"])
def test_methods_keep_their_names_and_docstrings(name: str) -> None:
    method = getattr(onepass.AdamW, name)
    assert method.__name__ == name
    assert method.__doc__
