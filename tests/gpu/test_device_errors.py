"""Choice of the backend on a GPU, and errors for tensors on the wrong device or unreadable: nothing is written."""

from __future__ import annotations

import pytest
import torch

import onepass
from gpu.drive_device import assert_same_everywhere, feed, on_device, train
from gpu.target import BACKEND, DEVICE, cuda_only, to_host
from records import RECORDS, Record, each_optimizer


@cuda_only
def test_the_backend_is_usable() -> None:
    assert onepass.backends()["cuda"] is None


@cuda_only
@each_optimizer
def test_auto_is_this_backend(record: Record, recwarn: pytest.WarningsRecorder) -> None:
    opt = train(record.make(on_device(), backend="auto", **record.typical), range(2))
    assert [bound.name for bound in opt._execution.backends] == [BACKEND]
    assert not [warning for warning in recwarn if "onepass" in str(warning.message)]
    assert_same_everywhere(opt, train(record.make(on_device(), backend=BACKEND, **record.typical), range(2)))


@cuda_only
@pytest.mark.parametrize(
    ("backend", "device", "words"), [("cuda", "cpu", "CUDA tensors"), ("cpu", "cuda", "CPU tensors")]
)
def test_tensors_on_the_wrong_device(backend: str, device: str, words: str) -> None:
    p = torch.ones(3, device=device)
    p.grad = torch.ones_like(p)
    opt = onepass.AdamW([p], backend=backend)
    with pytest.raises(ValueError, match=f"steps {words}, got parameters on {device}"):
        opt.step()
    assert p.tolist() == [1, 1, 1]


@cuda_only
def test_a_group_on_two_devices() -> None:
    with pytest.raises(ValueError, match="must lie on one device"):
        onepass.AdamW([torch.ones(2, device=DEVICE), torch.ones(2)])


@cuda_only
def test_groups_on_host_and_device() -> None:
    """One optimizer binds a backend for each device."""
    params = [torch.ones(5, 4), torch.ones(5, 4, device=DEVICE)]
    opt = onepass.AdamP([{"params": [p]} for p in params], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        for p in params:
            p.grad = p.detach().cumsum(1)
        opt.step()
    torch.testing.assert_close(to_host(params[1]), params[0], rtol=1e-6, atol=1e-6)
    assert [opt.last_step()[p].gate for p in params] == ["none", "none"]


@pytest.mark.parametrize("key", ["exp_avg", "step", "gate_counter"])
def test_invalid_state_is_refused(key: str) -> None:
    record = RECORDS["AdamP"]
    opt, other = (train(record.make(on_device(), backend=BACKEND, **record.typical), range(2)) for _ in range(2))
    p = opt.param_groups[0]["params"][0]
    kept, wrong = opt.state[p][key], torch.zeros(3, 3, dtype=torch.int32, device=DEVICE)
    opt.state[p][key] = wrong
    feed(opt, 2)
    with pytest.raises(ValueError, match=f"its state '{key}' must be"):
        opt.step()
    opt.state[p][key] = kept
    assert_same_everywhere(opt, other)
    for each in (opt, other):
        train(each, [2])
    assert_same_everywhere(opt, other)


@cuda_only
@pytest.mark.parametrize("key", ["exp_avg", "gate_counter"])
def test_state_on_the_host(key: str) -> None:
    record = RECORDS["AdamP"]
    opt = train(record.make(on_device(), backend=BACKEND, **record.typical), range(2))
    p = opt.param_groups[0]["params"][0]
    opt.state[p][key] = to_host(opt.state[p][key])
    feed(opt, 2)
    with pytest.raises(ValueError, match=f"'{key}' must be .* on cuda:0"):
        opt.step()


@each_optimizer
def test_expanded_gradient_is_refused(record: Record) -> None:
    """The error is raised before the first write and has no effect on the next step."""
    opt, other = (train(record.make(on_device(), backend=BACKEND, **record.typical), range(2)) for _ in range(2))
    feed(opt, 2)
    p = opt.param_groups[0]["params"][0]
    p.grad = torch.ones(p.size(1), device=DEVICE).expand(p.shape)
    with pytest.raises(ValueError, match="its gradient is expanded"):
        opt.step()
    assert_same_everywhere(opt, other)
    for each in (opt, other):
        train(each, [2])
    assert_same_everywhere(opt, other)
