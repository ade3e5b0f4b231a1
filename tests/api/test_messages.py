"""Error messages: parameter names, and advice after a conversion or from a scheduler out of range."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from drive import feed, parameters, train
from records import RECORDS


def named_model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))


@pytest.mark.parametrize("name", ["AdamW", "AdamP"])
def test_messages_have_parameter_names(name: str) -> None:
    model = named_model()
    opt = train(RECORDS[name].make(model.named_parameters()), range(2))
    bias, weight = model[0].bias, model[0].weight
    prefix = r"^parameter 1 of group 0 \('0.bias'\), shape \(3,\): "
    for spoil, step, words in (
        (lambda: setattr(bias, "grad", torch.ones(1).expand(3)), opt.step, "its gradient is expanded"),
        (lambda: setattr(bias, "grad", torch.ones(3)), lambda: clipped_and_replaced(opt, bias), "was replaced"),
        (lambda: opt.state[bias].update(exp_avg=torch.ones(2)), opt.step, "its state 'exp_avg'"),
    ):
        feed(opt, 2)
        opt.zero_grad(set_to_none=False)  # forgets the clipping
        spoil()
        with pytest.raises((ValueError, RuntimeError), match=prefix + ".*" + words):
            step()
    with pytest.raises(ValueError, match=r"^parameter 0 of group 1 \('again'\), shape \(3, 4\): was given twice"):
        opt.add_param_group({"params": [("again", weight)]})
    # A tool may store other names under this key.
    opt.param_groups[0]["param_names"] = ["one"]
    with pytest.raises(ValueError, match=r"^parameter 1 of group 0, shape \(3,\): "):
        opt.step()


def clipped_and_replaced(opt: Any, p: Tensor) -> None:
    opt.clip_grad_norm_(1.0)
    p.grad = torch.ones_like(p)
    opt.step()


@pytest.mark.parametrize("name", ["AdamW", "AdamP", "SGDP"])
@pytest.mark.parametrize(("before", "after"), [(torch.float32, torch.float64), (torch.float64, torch.bfloat16)])
def test_model_converted_after_a_step(name: str, before: torch.dtype, after: torch.dtype) -> None:
    """The advice in the message works."""
    model = named_model().to(before)
    opt = train(RECORDS[name].make(model.parameters(), lr=0.1), range(2))
    model.to(after)
    with pytest.raises(
        ValueError, match=r"converted or moved after a step.*opt\.load_state_dict\(opt\.state_dict\(\)\)"
    ):
        train(opt, [2])
    kept = {p: {key: t.clone() for key, t in own.items()} for p, own in opt.state.items()}
    opt.load_state_dict(opt.state_dict())
    work = torch.float64 if after == torch.float64 else torch.float32
    for p, own in opt.state.items():
        for key in RECORDS[name].moments:
            assert own[key].dtype == work and torch.equal(own[key], kept[p][key].to(work))
    train(opt, [2])


def test_model_converted_to_16_bits_continues() -> None:
    """Its moments are float32 before and after."""
    model = named_model()
    opt = train(onepass.AdamW(model.parameters()), range(2))
    model.bfloat16()
    train(opt, [2])
    for p in model.parameters():
        assert p.dtype == torch.bfloat16
        assert opt.state[p]["exp_avg"].dtype == opt.state[p]["exp_avg_sq"].dtype == torch.float32


def scheduled(opt: Any, schedule: Any, times: Iterable[int]) -> None:
    for time in times:
        train(opt, [time])
        schedule.step()


def test_a_scheduler_below_zero() -> None:
    opt = onepass.AdamW(parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda epoch: 1 - epoch / 2)
    with pytest.raises(
        ValueError,
        match=r"lr must be at least 0 and finite, got -0\.05 \(it started at 0\.1\); a scheduler has to end before it goes below 0",
    ):
        scheduled(opt, schedule, range(4))
    opt.param_groups[0]["lr"] = 0.0
    train(opt, [4])


@pytest.mark.parametrize(("name", "what"), [("SGD", "momentum"), ("AdamP", r"betas\[0\]")])
def test_a_cycle_of_momentum_below_zero(name: str, what: str) -> None:
    opt = RECORDS[name].make(parameters(), **RECORDS[name].typical)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 0.2, total_steps=8, base_momentum=-0.5)
    with pytest.raises(
        ValueError, match=rf"{what} must be .* got -.* \(its base_momentum is -0\.5\); a scheduler has to end"
    ):
        scheduled(opt, schedule, range(6))


def test_no_advice_on_schedulers_without_one() -> None:
    with pytest.raises(ValueError, match=r"lr must be at least 0 and finite, got -1\.0$"):
        onepass.AdamW(parameters(), lr=-1.0)


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]], ids=["too few", "too many"])
def test_param_names_of_another_length_are_ignored(names: list[str]) -> None:
    """If `param_names` has another length (a tool's own names, an appended parameter), no message uses it."""
    p, q = (torch.ones(2, 3) for _ in range(2))
    opt = onepass.AdamP([{"params": [p, q], "param_names": ["a", "b"]}])
    opt.param_groups[0]["param_names"] = names
    for each in (p, q):
        each.grad = torch.ones(2, 3)
    opt.step()
    opt.load_state_dict(opt.state_dict())
    assert {key.partition("/")[0] for key in opt.last_step().flat()} == {"group0.param0", "group0.param1"}
