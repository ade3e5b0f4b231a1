"""Arguments and param group keys without effect or unknown: accepted, refused with advice, or warned about."""

from __future__ import annotations

import inspect
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import onepass
from compare import assert_same_state
from drive import parameters, train
from onepass.arguments import ADVICE, KNOWN_KEYS, ONE_VALUE
from onepass.hyperparams import hyper_of
from records import PROJECTED, RECORDS, Record, each_optimizer, each_variant
from schedules import CYCLES, SCHEDULERS, advance

P = [torch.zeros(2, 3)]


def make(name: str, params: Any = P, **arguments: Any) -> Any:
    return RECORDS[name].make(params, **arguments)


# ------------------------------------------------------------------ arguments


@each_optimizer
def test_arguments_of_torch_without_effect(record: Record) -> None:
    """No bit of a step and no key of a param group changes."""
    plain = train(record.make(parameters(), **record.typical), range(2))
    flags = {"foreach": (None, True, False), "fused": (None, False, True), "differentiable": (False, 0, np.False_)}
    if "amsgrad" in inspect.signature(record.make).parameters:
        flags["amsgrad"] = (False, 0, np.False_)
    for values in zip(*flags.values(), strict=True):
        arguments = dict(zip(flags, values, strict=True))
        opt = train(record.make(parameters(), **record.typical, **arguments), range(2))
        assert_same_state(opt, plain)
        assert opt.state_dict()["param_groups"] == plain.state_dict()["param_groups"]
        in_group = train(record.make([{"params": parameters(), **arguments}], **record.typical), range(2))
        assert_same_state(in_group, plain)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("AdamW", {"amsgrad": True}, "AdamW: amsgrad is not implemented; use amsgrad=False, got True"),
        ("AdamP", {"amsgrad": "no"}, "AdamP: amsgrad is not implemented; use amsgrad=False, got 'no'"),
        ("AdamProxL2", {"differentiable": True}, "AdamProxL2: a step that autograd records is not implemented"),
        ("SGD", {"fused": "yes"}, "SGD: fused must be None, True or False, which change nothing, got 'yes'"),
        ("SGDP", {"foreach": 3}, "SGDP: foreach must be None, True or False, which change nothing, got 3"),
        ("Adam", {"decoupled_weight_decay": True}, "Adam: decoupled_weight_decay=True .* use onepass.AdamW"),
    ],
)
def test_unsupported_values_are_refused(name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        make(name, **arguments)
    mine = type("Mine", (RECORDS[name].make,), {})  # a user's subclass
    with pytest.raises(ValueError, match=f"^{words.replace(name, 'Mine', 1)}"):
        mine(P, **arguments)


@pytest.mark.parametrize(
    ("name", "argument", "advice"),
    [
        ("AdamW", "decay", "onepass.AdamProx for proximal decay; onepass.AdamP takes either"),
        ("AdamW", "nesterov", "onepass.AdamP has it; with delta=0 it projects nothing"),
        ("AdamProx", "delta", "onepass.AdamP"),
        ("AdamW", "momentum", "the first of betas"),
        ("AdamW", "decoupled_weight_decay", "onepass.AdamW for decoupled and onepass.Adam for l2"),
        ("AdamP", "caution", "timm's cautious update is not implemented"),
        ("AdamP", "project_momentum", "onepass.SGDP"),
        ("SGD", "betas", "use momentum"),
        ("SGD", "decay", "onepass.SGDP takes"),
        ("SGDP", "learning_rate", "it is called lr"),
        ("SGD", "weigth_decay", r"did you mean 'weight_decay'\?"),
        ("SGD", "qqq", "it takes params, lr, momentum"),
    ],
)
def test_unknown_arguments(name: str, argument: str, advice: str) -> None:
    """Python's own message, and advice what to use instead."""
    with pytest.raises(TypeError) as caught:
        make(name, **{argument: 0})
    given = rf"^{name}.__init__\(\) got an unexpected keyword argument '{argument}'; .*{advice}"
    assert re.search(given, str(caught.value))


def test_no_message_names_a_private_class() -> None:
    for record in RECORDS.values():
        for arguments in ((), (P, *[0.1] * 20)):
            with pytest.raises(TypeError, match=rf"^{record.name}.__init__\(\) "):
                record.make(*arguments)


def test_unknown_arguments_of_a_subclass() -> None:
    class Mine(onepass.AdamW):
        def __init__(self, params: Any, weight_decay: float = 0.5):
            super().__init__(params, weight_decay=weight_decay)

    class PassedOn(onepass.AdamW):
        def __init__(self, params: Any, **options: Any):
            super().__init__(params, **options)

    with pytest.raises(
        TypeError, match=r"^Mine.__init__\(\) got an unexpected .* 'fused'; it takes params, weight_decay$"
    ):
        Mine(P, fused=True)
    with pytest.raises(TypeError, match=r"got an unexpected keyword argument 'decay'"):
        PassedOn(P, decay="proximal")
    assert PassedOn(P, lr=0.5).defaults["lr"] == 0.5


def test_advice_names_existing_classes_and_missing_arguments() -> None:
    for rule, advice in ADVICE.items():
        classes = [record.make for record in RECORDS.values() if record.make.spec.rule == rule]
        for name, words in advice.items():
            assert any(name not in inspect.signature(cls).parameters for cls in classes), name
            assert all(hasattr(onepass, other) for other in re.findall(r"onepass\.(\w+)", words)), words


# ------------------------------------------------------------------ required lr of SGDP


def test_lr_of_every_group() -> None:
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters(), (0.1, 0.2, 0.3), strict=False)]
    opt = train(make("SGDP", groups), range(2))
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.2, 0.3]
    assert_same_state(
        opt,
        train(
            make("SGDP", [{**g, "params": [p]} for g, p in zip(groups, parameters(), strict=False)], lr=9.0), range(2)
        ),
    )


def test_a_module_in_place_of_parameters() -> None:
    with pytest.raises(
        TypeError, match=r"params must be parameters or param groups, got a Linear; give its parameters\(\)"
    ):
        onepass.AdamW(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "at"), [(P, 0), ([{"params": P, "lr": 0.1}, {"params": [torch.zeros(1)]}], 1)], ids=["none", "one group"]
)
def test_lr_is_missing(params: Any, at: int) -> None:
    with pytest.raises(
        TypeError, match=f"param group {at}: lr is missing, and SGDP has no default; give it to the group"
    ):
        make("SGDP", params)


# ------------------------------------------------------------------ keys of param groups


def here() -> int:
    """The line of the caller."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


def seen_at(caught: list[warnings.WarningMessage]) -> list[tuple[str, int]]:
    assert all(each.filename == __file__ for each in caught)
    return [(re.findall("'(.*?)'", str(each.message))[0], each.lineno) for each in caught]


def test_unknown_keys_warn_once() -> None:
    """At the line that gave them, no matter how often the group is read."""
    first, second = parameters()[:2]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt = onepass.AdamW([{"params": [first], "weigth_decay": 0}], lr=torch.tensor(0.1)); line = here()  # noqa: E702  # fmt: skip
        opt.add_param_group({"params": [second], "weigth_decay": 0, "qqq": 1, "_mine": 2}); other = here()  # noqa: E702  # fmt: skip
        opt.param_groups[0]["learning_rate"] = 0.2
        train(opt, range(3))
    stepped = inspect.getsourcelines(train)
    assert seen_at(caught[:2]) == [("weigth_decay", line), ("qqq", other)]
    assert len(caught) == 3 and caught[2].filename == inspect.getfile(train)
    assert stepped[0][caught[2].lineno - stepped[1]].strip() == "opt.step()"
    messages = [str(each.message) for each in caught]
    assert (
        "param group 0 has a key 'weigth_decay', which AdamW does not read; did you mean 'weight_decay'?" in messages[0]
    )
    assert "param group 1 has a key 'qqq', which AdamW does not read; it takes lr, betas" in messages[1]
    assert "'learning_rate', which AdamW does not read; it is called lr" in messages[2]
    assert all("begin the name of a key of your own with an underscore" in message for message in messages)


@pytest.mark.parametrize("schedule", [*SCHEDULERS, *CYCLES])
@pytest.mark.parametrize("name", ["AdamP", "SGD"])
def test_keys_of_schedulers_and_tools_are_known(name: str, schedule: str) -> None:
    values = {key: True for key in ONE_VALUE if ONE_VALUE[key][0]}
    values["decoupled_weight_decay"] = RECORDS[name].make.spec.decoupled
    others = {key: values.get(key, False) for key in KNOWN_KEYS - {"params", "param_names", "lr"}}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        opt = make(name, parameters()[:2], **RECORDS[name].typical)
        scheduler = (SCHEDULERS | CYCLES)[schedule](opt)
        for time in range(3):
            train(opt, [time])
            advance(scheduler)
        if schedule == "StepLR":
            make(name, [{"params": P, **others}], lr=0.1)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", *PROJECTED])
def test_keys_of_other_classes_change_nothing(name: str) -> None:
    """A state dict of another class may contain them."""
    record = RECORDS[name]
    foreign = {"nesterov": True, "project_momentum": True, "delta": "x", "momentum": None, "betas": None, "eps": -1.0}
    foreign = {key: value for key, value in foreign.items() if key not in record.make(P, lr=0.1).defaults}
    with pytest.warns(UserWarning, match="does not read") as caught:
        opt = record.make([{"params": parameters(), **foreign}], **record.typical)
    assert_same_state(train(opt, range(3)), train(record.make(parameters(), **record.typical), range(3)))
    assert len(caught) == len(foreign)


class Recorded(dict):
    """A param group that records which keys are read."""

    def __init__(self, group: dict[str, Any]):
        super().__init__(group)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


@each_variant
@pytest.mark.parametrize("on_device", [False, True])
def test_hyper_of_reads_exactly_the_defaults(record: Record, arguments: dict[str, Any], on_device: bool) -> None:
    """`hyper_of` reads every default and no other key."""
    opt = record.make(parameters(), **arguments)
    group = Recorded({**opt.param_groups[0], "initial_lr": 0.5})
    hyper_of(record.make.spec, group, 0, on_device)
    besides = {"initial_lr"} if arguments.get("decouple_lr") else set()
    assert group.read - {"params"} == (opt.defaults.keys() - {"backend"}) | besides


# ------------------------------------------------------------------ flags


@pytest.mark.parametrize("true", [1, np.True_, np.array(True), torch.tensor(True)], ids=lambda v: type(v).__name__)
def test_flags_of_other_types(true: Any) -> None:
    opt, other = (make("AdamW", parameters(), maximize=value, lr=0.1) for value in (true, True))
    assert_same_state(train(opt, range(2)), train(other, range(2)))


def test_arguments_of_clipping() -> None:
    opt = make("AdamW", parameters())
    with pytest.raises(TypeError, match="error_if_nonfinite must be True or False, got 'false'"):
        opt.clip_grad_norm_(1.0, error_if_nonfinite="false")
    for wrong in (np.True_, torch.tensor(True)):
        with pytest.raises(TypeError, match="max_norm must be a number"):
            opt.clip_grad_norm_(wrong)
