"""Optimizer state and its checkpoints: keys, dtypes, resuming, copying, other backends."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from compare import Snapshot, assert_same_bits, assert_same_state, state_tensors
from drive import feed, parameters, parameters_of, through_a_file, train, train_both
from oracles import Arguments
from records import (
    BACKENDS,
    COMPILED,
    RECORDS,
    Record,
    each_backend,
    each_compiled,
    each_dtype,
    each_optimizer,
    each_projected,
    each_variant,
)
from tensors import values


def resumed(opt: Any, record: Record, backend: str, **arguments: Any) -> Any:
    """A new optimizer on copies of the parameters, from a checkpoint of `opt`."""
    params = [p.detach().clone().requires_grad_() for p in parameters_of(opt)]
    other = record.make(params, backend=backend, **{**record.typical, **arguments})
    other.load_state_dict(through_a_file(opt.state_dict()))
    return other


@each_backend
@each_dtype
@each_variant
def test_keys_and_dtypes(backend: str, dtype: torch.dtype, record: Record, arguments: Arguments) -> None:
    opt = train(record.make(parameters(dtype), backend=backend, **arguments), range(2))
    work = torch.float64 if dtype == torch.float64 else torch.float32
    for i, p in enumerate(parameters_of(opt)):
        own = opt.state_dict()["state"].get(i, {})
        want = {}
        if not (record.name == "SGD" and arguments.get("momentum", 0) == 0):
            want = dict.fromkeys(record.moments, (work, p.shape))
        if record.name.startswith("Adam"):
            want["step"] = (torch.float32, torch.Size())
        if record.projected and p.dim() > 1:
            want["gate_counter"] = (torch.uint8, torch.Size())
        assert {key: (value.dtype, value.shape) for key, value in own.items()} == want
        assert all(value.device.type == "cpu" and not value.requires_grad for value in own.values())


@each_backend
@each_dtype
@each_optimizer
def test_loading_keeps_the_bits_of_moments(backend: str, dtype: torch.dtype, record: Record) -> None:
    """torch's base class would round the moments of 16-bit parameters to 16 bits on loading."""
    opt = train(record.make(parameters(dtype), backend=backend, **record.typical), range(3))
    other = resumed(opt, record, backend)
    assert state_tensors(opt)
    assert state_tensors(other).keys() == state_tensors(opt).keys()
    for name, tensor in state_tensors(other).items():
        assert_same_bits(tensor, state_tensors(opt)[name], name)


@each_backend
@each_dtype
@each_variant
def test_resumed_run_equals_the_uninterrupted_one(
    backend: str, dtype: torch.dtype, record: Record, arguments: Arguments
) -> None:
    opt = train(record.make(parameters(dtype), backend=backend, **arguments), range(4))
    other = train(resumed(opt, record, backend, **arguments), range(4, 8))
    assert_same_state(other, train(opt, range(4, 8)))


@each_compiled
@each_projected
def test_loading_keeps_the_predictor(backend: str, record: Record) -> None:
    """Different predictions round differently, so without the counter a resumed run would differ."""
    opt = train(record.make(parameters(), backend=backend, **record.typical), range(3))
    counters = {k: int(v) for k, v in state_tensors(opt).items() if "gate_counter" in k}
    assert 2 in counters.values()  # not the initial value
    assert {k: int(v) for k, v in state_tensors(resumed(opt, record, backend)).items() if k in counters} == counters

    forgetful = resumed(opt, record, backend)
    for own in forgetful.state.values():
        own.pop("gate_counter", None)
    ends = [train(each, [4]) for each in (opt, forgetful)]
    corrected = [[verdict.corrected for verdict in end.last_step().values()] for end in ends]
    assert corrected[0] != corrected[1]


@pytest.mark.parametrize("source", BACKENDS)
@pytest.mark.parametrize("target", BACKENDS)
@each_dtype
@each_optimizer
def test_load_onto_another_backend(source: str, target: str, dtype: torch.dtype, record: Record) -> None:
    """The backend comes from the optimizer, not from the checkpoint."""
    opt = train(record.make(parameters(dtype), backend=source, **record.typical), range(3))
    other = resumed(opt, record, target)
    assert [group["backend"] for group in other.param_groups] == [target]
    train_both(opt, other, range(3, 5))
    loose = {torch.float16: 1e-2, torch.bfloat16: 5e-2}.get(dtype, 1e-5)
    for p, q in zip(parameters_of(opt), parameters_of(other), strict=True):
        torch.testing.assert_close(p, q, rtol=loose, atol=loose)


@each_backend
@each_optimizer
def test_loaded_moments_take_the_strides_of_the_parameter(backend: str, record: Record) -> None:
    """For any saved layout: a moment with other strides would be gathered and scattered at every step."""
    start = values((4, 3, 5, 5), torch.float32, 1)
    saved = train(record.make([start.clone()], backend=backend, **record.typical), range(2)).state_dict()
    p = start.to(memory_format=torch.channels_last)
    opt = record.make([p], backend=backend, **record.typical)
    opt.load_state_dict(saved)
    assert p.stride() != start.stride()
    assert [opt.state[p][key].stride() for key in record.moments] == [p.stride()] * len(record.moments)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("reference", "cpu")])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_keeps_device_counted_steps(backend: str, how: str) -> None:
    """After a step with a gradient scaler the device counts the steps, of the copy too."""
    opt = RECORDS["AdamW"].make(parameters(), backend=backend)
    opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    train(opt, [0])
    del opt.grad_scale, opt.found_inf
    assert opt._execution.counts_on_device
    twin = copy.deepcopy(opt) if how == "deepcopy" else pickle.loads(pickle.dumps(opt))
    assert twin._execution.counts_on_device


@each_backend
@each_optimizer
def test_loading_copies(backend: str, record: Record) -> None:
    """Steps after loading do not write to the loaded state dict."""
    opt = train(record.make(parameters(), backend=backend, **record.typical), range(2))
    saved = copy.deepcopy(opt.state_dict())
    before = copy.deepcopy(saved)
    other = record.make(parameters(), backend=backend, **record.typical)
    other.load_state_dict(saved)
    train(other, range(2))
    for i, own in before["state"].items():
        for key, tensor in own.items():
            assert_same_bits(saved["state"][i][key], tensor, f"saved {key} of parameter {i}")


@each_backend
@each_optimizer
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_independent(backend: str, record: Record, how: str) -> None:
    opt = train(record.make(parameters(), backend=backend, **record.typical), range(3))
    twin = copy.deepcopy(opt) if how == "deepcopy" else pickle.loads(pickle.dumps(opt))
    assert type(twin) is record.make
    before = Snapshot(opt)
    train(twin, range(3, 5))
    before.assert_unchanged()
    train(opt, range(3, 5))
    assert_same_state(twin, opt)


@each_backend
@each_optimizer
def test_deepcopy_of_model_and_optimizer_together(backend: str, record: Record) -> None:
    model = torch.nn.Linear(5, 3)
    opt = record.make(model.parameters(), backend=backend, **record.typical)
    train(opt, range(2))
    other_model, other = copy.deepcopy((model, opt))
    assert all(a is b for a, b in zip(other_model.parameters(), parameters_of(other), strict=True))
    start = [p.detach().clone() for p in other_model.parameters()]
    train(other, [2])
    assert not any(torch.equal(p, q) for p, q in zip(other_model.parameters(), start, strict=True))


@each_backend
@each_optimizer
def test_new_group_after_some_steps(backend: str, record: Record) -> None:
    """Old parameters continue, and new ones start, as in optimizers of their own."""
    old, new = parameters(), [values((4, 6), torch.float32, 9).requires_grad_()]
    alone = [record.make([p], backend=backend, **record.typical) for p in parameters()]
    late = record.make([new[0].detach().clone().requires_grad_()], backend=backend, **{**record.typical, "lr": 0.2})
    opt = train(record.make(old, backend=backend, **record.typical), range(2))
    for each in alone:
        train(each, range(2))
    opt.add_param_group({"params": new, "lr": 0.2})
    train(opt, range(2, 4))
    for each in (*alone, late):
        train(each, range(2, 4))
    got = [(p, opt.state.get(p, {})) for p in parameters_of(opt)]
    want = [(p, each.state.get(p, {})) for each in (*alone, late) for p in parameters_of(each)]
    for (p, own), (q, other) in zip(got, want, strict=True):
        assert_same_bits(p, q, "parameter")
        assert own.keys() == other.keys()
        for key in own:
            assert_same_bits(own[key], other[key], key)


@each_backend
@each_optimizer
def test_parameters_without_state_are_saved_and_loaded(backend: str, record: Record) -> None:
    opt = record.make(parameters(), backend=backend, **record.typical)
    feed(opt, 0)
    parameters_of(opt)[1].grad = None
    opt.step()
    other = resumed(opt, record, backend)
    assert parameters_of(opt)[1] not in opt.state
    assert_same_state(train(other, [1]), train(opt, [1]))


@each_backend
def test_load_state_dict_pre_hooks_are_called(backend: str) -> None:
    record = RECORDS["AdamW"]
    opt = train(record.make(parameters(), backend=backend, **record.typical), range(2))
    other = record.make(parameters(), backend=backend, **record.typical)

    def double_moments(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        state = {i: {**own, "exp_avg": 2 * own["exp_avg"]} for i, own in state_dict["state"].items()}
        return {**state_dict, "state": state}

    other.register_load_state_dict_pre_hook(double_moments)
    other.load_state_dict(opt.state_dict())
    for p, q in zip(parameters_of(opt), parameters_of(other), strict=True):
        assert_same_bits(other.state[q]["exp_avg"], 2 * opt.state[p]["exp_avg"], "exp_avg")


@each_backend
def test_initial_lr_is_saved(backend: str) -> None:
    """decouple_lr: lr/initial_lr must not restart at 1 when a run resumes at a lower lr."""
    record, arguments = RECORDS["AdamW"], dict(lr=0.1, weight_decay=0.3, decouple_lr=True)
    opt = record.make(parameters(), backend=backend, **arguments)
    opt.param_groups[0]["lr"] = 0.01
    train(opt, range(2))
    other = resumed(opt, record, backend, **{**arguments, "lr": 0.01})
    assert other.param_groups[0]["initial_lr"] == 0.1
    assert_same_state(train(other, [2]), train(opt, [2]))


@each_backend
@each_optimizer
def test_a_checkpoint_of_other_groups_is_refused(backend: str, record: Record) -> None:
    opt = train(record.make(parameters(), backend=backend, **record.typical), range(2))
    before = Snapshot(opt)
    other = record.make(parameters()[:2], backend=backend, **record.typical)
    with pytest.raises(ValueError, match="group"):
        opt.load_state_dict(other.state_dict())
    before.assert_unchanged()
    train(opt, [2])


def test_a_compiled_backend_exists() -> None:
    """The tests of the predictor run on COMPILED; if it were empty, they would not run."""
    assert COMPILED
