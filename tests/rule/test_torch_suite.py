"""The checks of torch's own optimizer tests, with torch's arguments and schedules.

They come from `torch.testing._internal.common_optimizers`, which torch installs. Other files test hooks around a step,
gradients that are None, copies, groups and checkpoints between classes, on every backend.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from compare import assert_same_bits, assert_same_state
from drive import parameters, parameters_of, through_a_file, train
from records import RECORDS, Record, each_optimizer

# For each class: torch's class whose inputs it gets, and further inputs.
RELATIVES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "Adam": ("Adam", []),
    "AdamW": ("AdamW", []),
    "AdamProx": ("AdamW", []),
    "AdamProxL2": ("AdamW", [{"decouple_lr": True}]),
    "AdamP": ("AdamW", [{"nesterov": True}, {"decay": "proximal", "weight_decay": 0.1}]),
    "SGD": ("SGD", []),
    "SGDP": ("SGD", [{"momentum": 0.9, "project_momentum": True}, {"decay": "proximal", "weight_decay": 0.1}]),
}
# Errors that torch raises only because of its foreach implementation.
ACCEPTED = {
    "lr as Tensor doesn't work with foreach & not capturable",
    "betas must be either both floats or both Tensors",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True",
}


@dataclass(frozen=True)
class Entry:
    """inputs: arguments by torch's description. errors: torch's `ErrorOptimizerInput`s. schedules: lists of schedulers."""

    inputs: list[tuple[str, dict[str, Any]]]
    errors: list[Any]
    schedules: list[list[Callable[[Any], Any]]]


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    """By name of our class. Importing torch's module changes process-wide settings, which this fixture restores."""
    with (
        mock.patch.dict(os.environ),
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        mock.patch.object(torch.backends, "__allow_nonbracketed_mutation_flag", True),
    ):
        db = pytest.importorskip("torch.testing._internal.common_optimizers", exc_type=ImportError).optim_db
        infos = {info.optim_cls.__name__: info for info in db}
        return {name: _entry(infos[relative], own) for name, (relative, own) in RELATIVES.items()}


def _entry(info: Any, own: list[dict[str, Any]]) -> Entry:
    # Inputs for CUDA have tensors in more places; on a CPU they work without capturable.
    given = {i.desc: i.kwargs for i in info.optim_inputs_func(device="cuda")}
    inputs = [
        (desc, {key: value for key, value in kwargs.items() if key not in ("amsgrad", "capturable")})
        for desc, kwargs in given.items()
    ]
    errors = info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    return Entry([*inputs, *((str(kwargs), kwargs) for kwargs in own)], errors, list(info.scheduler_inputs))


def _copied(kwargs: dict[str, Any], dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Arguments with copies of their tensors, of `dtype`."""

    def own(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(own, value))
        return value.detach().clone().to(dtype) if isinstance(value, Tensor) else value

    return {key: own(value) for key, value in kwargs.items()}


def _made(record: Record, params: Any, kwargs: dict[str, Any] | None = None) -> Any:
    """With torch's default lr where the class, like the adamp package's, has none."""
    return record.make(params, **{**({"lr": 1e-3} if record.name == "SGDP" else {}), **_copied(kwargs or {})})


def _model(dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 2), nn.PReLU())
    return model.to(dtype)


def _loss(model: nn.Module, time: int) -> Tensor:
    """The loss of one of three batches."""
    weight = next(model.parameters())
    x = torch.arange(12.0, dtype=weight.dtype).reshape(4, 3).sin() + time % 3
    return (model(x) - x.cos()[:, :2]).square().mean()


def test_every_class_has_an_entry() -> None:
    assert RELATIVES.keys() == RECORDS.keys()


@pytest.mark.parametrize("name", [name for name, (relative, _) in RELATIVES.items() if name == relative])
def test_matches_torch_for_loop(name: str, entries: dict[str, Entry]) -> None:
    """Results of torch's for-loop implementation; one parameter has no gradient at two steps."""
    assert len(entries[name].inputs) >= 8
    for desc, kwargs in entries[name].inputs:
        models = [_model(torch.float64) for _ in range(2)]
        ours = RECORDS[name].make(models[0].parameters(), **_copied(kwargs, torch.float64))
        theirs = getattr(torch.optim, name)(models[1].parameters(), foreach=False, **_copied(kwargs, torch.float64))
        for time in range(7):
            for model, opt in zip(models, (ours, theirs), strict=True):
                opt.zero_grad()
                _loss(model, time).backward()
                if time in (0, 3):
                    model[2].bias.grad = None
                opt.step()
        for p, q, start in zip(*(m.parameters() for m in models), _model(torch.float64).parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13, msg=lambda m, desc=desc: f"{desc}: {m}")
            assert not torch.equal(p, start)
            assert {k for k, v in theirs.state[q].items() if v is not None} == ours.state[p].keys(), desc
            for key, value in ours.state[p].items():
                torch.testing.assert_close(
                    value.double(), theirs.state[q][key].double(), rtol=1e-12, atol=1e-13, msg=f"{desc}: {key}"
                )


@each_optimizer
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate:UserWarning")
def test_errors_of_torch(record: Record, entries: dict[str, Entry]) -> None:
    """onepass raises the same exception; arguments in ACCEPTED act as their numbers."""
    accepted = set()
    for error in entries[record.name].errors:
        given = error.optimizer_error_input
        params = given.params if given.params is not None else [nn.Parameter(torch.ones(1, 1))]
        if given.desc in ACCEPTED:
            accepted.add(given.desc)
            plain = {key: value for key, value in given.kwargs.items() if key != "foreach"}
            plain.update({key: float(value) for key, value in plain.items() if isinstance(value, Tensor)})
            if "betas" in plain:
                plain["betas"] = tuple(map(float, plain["betas"]))
            pair = (_made(record, parameters(), kwargs) for kwargs in (given.kwargs, plain))
            assert_same_state(*(train(opt, range(3)) for opt in pair))
            continue
        # torch only warns of a duplicate parameter in a group, onepass raises.
        kind = ValueError if error.error_type is UserWarning else error.error_type
        with pytest.raises(kind) as raised:
            _made(record, params, given.kwargs)
        assert raised.type is kind, given.desc
    assert accepted == (ACCEPTED if record.name.startswith("Adam") else set())


@each_optimizer
def test_loss_changes_in_the_right_direction(record: Record, entries: dict[str, Entry]) -> None:
    """Each of torch's inputs with one of its lists of schedulers, in groups of two lrs, on tensors with and without gaps."""
    entry = entries[record.name]
    for case, (desc, kwargs) in enumerate(entry.inputs):
        schedules = entry.schedules[case % len(entry.schedules)]
        big = 1 if case % 2 else 2
        weight = nn.Parameter(torch.linspace(-1, 1, 50 * big).sin().reshape(10, 5, big)[..., 0])
        bias, x = nn.Parameter(torch.linspace(1, 2, 10 * big).reshape(10, big)[..., 0]), torch.linspace(0, 1, 5)
        opt = _made(record, [{"params": [weight]}, {"params": [bias], "lr": 0.01}], kwargs)
        made = [make(opt) for make in schedules]

        def closure(opt: Any = opt, weight: Tensor = weight, bias: Tensor = bias, x: Tensor = x) -> Tensor:
            opt.zero_grad()
            loss = (weight.mv(x) + bias).square().sum()
            loss.backward()
            return loss

        first, moved = float(closure().detach()), [p.detach().clone() for p in (weight, bias)]
        for _ in range(20):
            loss = opt.step(closure)
            for schedule in made:
                needs_loss = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
                schedule.step(loss.detach()) if needs_loss else schedule.step()
        last = float(closure().detach())
        assert last > first if kwargs.get("maximize") else last < first, desc
        assert not any(torch.equal(p, start) for p, start in zip((weight, bias), moved, strict=True)), desc


@each_optimizer
def test_resume_with_each_input(record: Record, entries: dict[str, Entry]) -> None:
    """From a saved state dict, which loading does not change and which the loaded optimizer saves again."""
    for desc, kwargs in entries[record.name].inputs:
        model = _model(torch.float32)
        opt = _made(record, model.named_parameters(), kwargs)

        def steps(opt: Any, model: nn.Module, times: range) -> None:
            for time in times:
                opt.zero_grad()
                _loss(model, time).backward()
                opt.step()

        steps(opt, model, range(4))
        saved, twin_model = through_a_file(opt.state_dict()), copy.deepcopy(model)
        twin = _made(record, twin_model.named_parameters())
        twin.load_state_dict(saved)
        assert str(twin.state_dict()) == str(saved) == str(opt.state_dict()), desc
        for each, its_model in ((opt, model), (twin, twin_model)):
            steps(each, its_model, range(4, 8))
        assert_same_state(opt, twin)


@each_optimizer
def test_older_state_dict(record: Record) -> None:
    """Without the group keys that torch and this package added over time, and with integer steps."""
    opt = train(record.make(parameters(), **record.typical), range(3))
    saved = copy.deepcopy(opt.state_dict())
    for group in saved["param_groups"]:
        for key in ("maximize", "capturable", "decouple_lr", "backend", "speculate", "decay", "project_momentum"):
            group.pop(key, None)
    for own in saved["state"].values():
        if "step" in own:
            own["step"] = int(own["step"])
    twin = record.make([p.detach().clone() for p in parameters_of(opt)], **record.typical)
    twin.load_state_dict(saved)
    for each in (twin, copy.deepcopy(twin)):
        assert each.state_dict()["param_groups"] == opt.state_dict()["param_groups"]
        assert each.defaults == opt.defaults
    assert_same_state(train(opt, range(3, 6)), train(twin, range(3, 6)))


def _hooks_in(opt: Any) -> list[int]:
    return [len(value) for name, value in vars(opt).items() if name.endswith("_hooks")]


@each_optimizer
def test_state_dict_hooks(record: Record) -> None:
    """Hooks run in order; a returned dict replaces the argument; onepass leaves none of its own; removed hooks do not run."""
    opt, seen = train(record.make(parameters(), **record.typical), [0]), []
    before = _hooks_in(opt)

    def note(word: str, change: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> Callable[..., Any]:
        def hook(own: Any, *state_dict: Any) -> Any:
            assert own is opt
            seen.append(word)
            return change(*state_dict) if change else None

        return hook

    def faster(state_dict: dict[str, Any]) -> dict[str, Any]:
        return {**state_dict, "param_groups": [{**g, "lr": 2 * g["lr"]} for g in state_dict["param_groups"]]}

    handles = [
        opt.register_state_dict_pre_hook(note("pre save")),
        opt.register_state_dict_post_hook(note("post save", faster)),
        opt.register_state_dict_post_hook(note("first post save"), prepend=True),
        opt.register_load_state_dict_pre_hook(note("pre load", faster)),
        opt.register_load_state_dict_pre_hook(note("first pre load", faster), prepend=True),
        opt.register_load_state_dict_post_hook(note("post load")),
    ]
    registered, lr = _hooks_in(opt), opt.param_groups[0]["lr"]
    opt.load_state_dict(opt.state_dict())
    assert seen == ["pre save", "first post save", "post save", "first pre load", "pre load", "post load"]
    assert opt.param_groups[0]["lr"] == 8 * lr
    with pytest.raises(ValueError):
        opt.load_state_dict({"state": {}, "param_groups": []})
    assert _hooks_in(opt) == registered
    for handle in handles:
        handle.remove()
    seen.clear()
    opt.load_state_dict(opt.state_dict())
    assert not seen and _hooks_in(opt) == before


@each_optimizer
def test_zero_gradients(record: Record) -> None:
    """Without decay they change no bit of p, and count as a step."""
    shapes = [(6, 20), (13,), (), (1, 9)]
    opt = record.make(parameters(shapes=shapes), **{**record.typical, "weight_decay": 0})
    for _ in range(3):
        for p in parameters_of(opt):
            p.grad = torch.zeros_like(p)
        opt.step()
    for p, start in zip(parameters_of(opt), parameters(shapes=shapes), strict=True):
        assert_same_bits(p, start, "parameter")
        assert not any(opt.state[p][key].any() for key in record.moments)
        assert opt.state[p].get("step", 3) == 3


@each_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_default_dtype_has_no_effect(record: Record, dtype: torch.dtype) -> None:
    """It affects neither a step nor a load."""

    def run() -> Any:
        opt = train(record.make(params[0], **record.typical), range(2))
        twin = record.make([p.detach().clone() for p in params[0]], **record.typical)
        twin.load_state_dict(opt.state_dict())
        norm = opt.clip_grad_norm_(0.5)
        opt.step()
        params.pop(0)
        return norm, twin, opt

    params = [parameters(), parameters()]
    norm, *want = run()
    torch.set_default_dtype(dtype)
    try:
        other_norm, *got = run()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_bits(norm, other_norm, "norm")
    for a, b in zip(got, want, strict=True):
        assert_same_state(a, b)


@each_optimizer
def test_repr(record: Record) -> None:
    """The class, and all arguments of each group but the parameters."""
    opt = record.make([{"params": [torch.ones(1)]}, {"params": [torch.ones(2)], "lr": 0.125}], **record.typical)
    text = repr(train(opt, [0]))
    assert text.startswith(f"{record.name} (") and "Parameter Group 1" in text and "tensor" not in text
    for group in opt.param_groups:
        for key, value in group.items():
            assert (f"    {key}: {value}\n" in text) == (key != "params")


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_subclass_runs_hooks_as_in_torch(name: str) -> None:
    """A subclass that overrides `step`, and one that does not."""
    for overrides in (True, False):
        counts = []
        for base in (getattr(torch.optim, name), RECORDS[name].make):
            base(parameters(), lr=0.1)  # torch wraps `step` when the first instance of a class is made
            seen: list[Any] = []
            methods = {"step": lambda self, closure=None: super(type(self), self).step(closure)} if overrides else {}
            opt = type("Own", (base,), methods)(parameters(), lr=0.1)
            opt.register_step_pre_hook(lambda *_, seen=seen: seen.append("pre"))
            opt.register_step_post_hook(lambda *_, seen=seen: seen.append("post"))
            train(opt, range(2))
            counts.append(seen)
        assert counts[0] == counts[1] and counts[0]
