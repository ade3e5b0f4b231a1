"""Checkpoints between the CPU and the device, and between backends."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from compare import assert_same_bits, state_tensors
from drive import parameters, parameters_of, through_a_file
from drive import train as train_on_host
from gpu.drive_device import assert_same_everywhere, everything_on_host, on_device, train
from gpu.target import BACKEND, DEVICE, pick, to_host
from records import DTYPES, Record, each_optimizer

each_dtype = pytest.mark.parametrize("dtype", pick(DTYPES, DTYPES[:3]), ids=lambda d: str(d).removeprefix("torch."))


def continued(opt: Any, record: Record, backend: str, device: torch.device | str, **options: Any) -> Any:
    """A new optimizer on copies of the parameters on `device`, loaded from a checkpoint of `opt`."""
    params = [p.detach().to(device, copy=True).requires_grad_() for p in parameters_of(opt)]
    other = record.make(params, backend=backend, **record.typical, **options)
    other.load_state_dict(through_a_file(opt.state_dict()))
    return other


@each_dtype
@each_optimizer
def test_resumed_on_the_device(dtype: torch.dtype, record: Record) -> None:
    """The bits of the uninterrupted run."""
    opt = train(record.make(on_device(dtype), backend=BACKEND, **record.typical), range(4))
    other = continued(opt, record, BACKEND, DEVICE)
    assert_same_everywhere(train(other, range(4, 8)), train(opt, range(4, 8)))


@each_dtype
@each_optimizer
def test_cpu_device_cpu_round_trip(dtype: torch.dtype, record: Record) -> None:
    """CPU, device, CPU: moments keep their bits, and the run equals one that stays on the CPU."""
    stayed = train_on_host(record.make(parameters(dtype), backend="cpu", **record.typical), range(6))
    first = train_on_host(record.make(parameters(dtype), backend="cpu", **record.typical), range(2))
    second = continued(first, record, BACKEND, DEVICE)
    for name, tensor in state_tensors(second).items():
        assert_same_bits(to_host(tensor), state_tensors(first)[name], name)
        counts = name.endswith("step")
        assert tensor.device.type == ("cpu" if counts else DEVICE.type)
    third = train_on_host(continued(train(second, range(2, 4)), record, "cpu", "cpu"), range(4, 6))
    if not record.projected:
        assert_same_everywhere(third, stayed)
    loose = {torch.float16: 1e-2, torch.bfloat16: 5e-2}.get(dtype, 1e-5)
    for name, tensor in everything_on_host(third).items():
        if "state" not in name:
            torch.testing.assert_close(tensor, everything_on_host(stayed)[name], rtol=loose, atol=loose)


@each_optimizer
def test_capturable_and_back(record: Record) -> None:
    """The optimizer, not the checkpoint, determines the device of the step counts."""
    plain = train(record.make(on_device(), backend=BACKEND, **record.typical), range(3))
    capturable = continued(plain, record, BACKEND, DEVICE, capturable=True)
    back = continued(train(capturable, [3]), record, BACKEND, DEVICE)
    for opt, device in ((capturable, DEVICE.type), (back, "cpu")):
        counts = [tensor for name, tensor in state_tensors(opt).items() if name.endswith("step")]
        assert all(count.device.type == device for count in counts)
    assert_same_everywhere(train(back, [4]), train(plain, [3, 4]))


@each_optimizer
def test_deep_copies_are_independent(record: Record) -> None:
    opt = train(record.make(on_device(), backend=BACKEND, **record.typical), range(2))
    twin = copy.deepcopy(opt)
    before = everything_on_host(opt)
    train(twin, range(2, 4))
    for name, tensor in everything_on_host(opt).items():
        assert_same_bits(tensor, before[name], name)
    assert_same_everywhere(train(opt, range(2, 4)), twin)
