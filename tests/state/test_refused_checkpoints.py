"""Refused state dicts: options that the optimizer does not implement, or foreign state. Loading then changes nothing.

State dicts that do load, foreign ones included, add no key.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import adamp
import pytest
import torch
from torch import Tensor

import onepass
from compare import assert_same_bits
from drive import parameters, parameters_of, through_a_file, train, train_both
from onepass.checkpoint_groups import FOREIGN, HARMLESS, OF_SOME, REFUSED
from oracles import Arguments, _timm
from records import RECORDS, Record, each_optimizer
from tensors import values

StateDict = dict[str, Any]
LAST = 5  # the last parameter: a load without prior checks would have written the others


def stepped(record: Record, **arguments: Any) -> Any:
    return train(record.make(parameters(), backend="cpu", **{**record.typical, **arguments}), range(2))


def refused(opt: Any, state_dict: StateDict, *words: str) -> None:
    """Loading raises an error with these words, and leaves the optimizer and the state dict unchanged."""

    def holding() -> Any:
        groups = [(id(group), dict(group)) for group in opt.param_groups]
        state = [(id(key), id(own), dict(own)) for key, own in opt.state.items()]
        runtime = {name: value for name, value in vars(opt._execution).items() if name != "loading"}
        return copy.copy(vars(opt)), dict(opt.defaults), groups, state, runtime

    def flat(tree: Any) -> list[Any]:
        return torch.utils._pytree.tree_leaves(tree)

    def marks() -> list[tuple[int, int]]:
        return [(id(leaf), leaf._version if isinstance(leaf, Tensor) else 0) for leaf in flat(state_dict)]

    before, given = holding(), marks()
    bits = {id(leaf): leaf.detach().clone() for leaf in flat(before) if isinstance(leaf, Tensor)}
    with pytest.raises((ValueError, TypeError)) as caught:
        opt.load_state_dict(state_dict)
    for word in words:
        assert word in str(caught.value)
    after = holding()
    assert len(flat(after)) == len(flat(before))
    for leaf, was in zip(flat(after), flat(before), strict=True):
        assert leaf is was or (type(leaf) is int and leaf == was)  # an int may be an id
    for leaf in flat(after):
        if isinstance(leaf, Tensor):
            assert_same_bits(leaf, bits[id(leaf)], "tensor")
    assert opt._execution.loading is None and not opt._optimizer_load_state_dict_pre_hooks
    assert marks() == given


# ------------------------------------------------------------------ arguments

Make = Callable[[list[Tensor]], torch.optim.Optimizer]

ASKED: dict[str, tuple[Make, str, tuple[str, ...]]] = {
    "decoupled in Adam": (
        lambda ps: torch.optim.Adam(ps, weight_decay=0.1, decoupled_weight_decay=True),
        "Adam",
        ("decoupled_weight_decay=True", "use onepass.AdamW"),
    ),
    "l2 in AdamW": (
        lambda ps: torch.optim.Adam(ps, weight_decay=0.1),
        "AdamW",
        ("decoupled_weight_decay=False", "use onepass.Adam,"),
    ),
    "l2 in AdamP": (lambda ps: torch.optim.Adam(ps), "AdamP", ("decoupled_weight_decay=False", "use onepass.Adam,")),
    "amsgrad": (lambda ps: torch.optim.AdamW(ps, amsgrad=True), "AdamW", ("amsgrad=True", "torch.optim.AdamW")),
    "differentiable": (
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, differentiable=True),
        "SGD",
        ("differentiable=True", "of torch.optim"),
    ),
    "caution of AdamP": (lambda ps: _timm("adamp", "AdamP")(ps, caution=True), "AdamP", ("caution=True", "timm.optim")),
    "caution of SGDP": (
        lambda ps: _timm("sgdp", "SGDP")(ps, lr=0.1, caution=True),
        "SGDP",
        ("caution=True", "timm.optim"),
    ),
    "corrected decay": (
        lambda ps: _timm("adamw", "AdamWLegacy")(ps, corrected_weight_decay=True),
        "AdamW",
        ("corrected_weight_decay=True", "timm.optim"),
    ),
    "NAdam": (lambda ps: torch.optim.NAdam(ps), "Adam", ("momentum_decay=0.004", "torch.optim.NAdam")),
    "nesterov": (lambda ps: adamp.AdamP(ps, nesterov=True), "AdamProx", ("which onepass.AdamProx does not have",)),
    "projection": (lambda ps: adamp.AdamP(ps), "AdamW", ("=0.1", "use onepass.AdamP")),
    "RAdam": (lambda ps: torch.optim.RAdam(ps), "Adam", ("'foreach' but no 'amsgrad'", "RAdam")),
    "RAdam, decoupled": (
        lambda ps: torch.optim.RAdam(ps, decoupled_weight_decay=True),
        "AdamW",
        ("'foreach' but no 'amsgrad'", "RAdam"),
    ),
    "RMSprop": (lambda ps: torch.optim.RMSprop(ps, momentum=0.9), "SGD", ("torch.optim.RMSprop",)),
    "our l2 in AdamW": (lambda ps: onepass.Adam(ps), "AdamW", ("decoupled_weight_decay=False", "use onepass.Adam,")),
    "our decoupled in Adam": (
        lambda ps: onepass.AdamW(ps),
        "Adam",
        ("decoupled_weight_decay=True", "use onepass.AdamW"),
    ),
    "our proximal in Adam": (lambda ps: onepass.AdamProx(ps), "Adam", ("decoupled_weight_decay=True", "onepass.AdamW")),
    "decoupled in AdamProxL2": (
        lambda ps: torch.optim.AdamW(ps),
        "AdamProxL2",
        ("decoupled_weight_decay=True", "that of l2 regularization"),
    ),
    "SGDP in SGD": (lambda ps: adamp.SGDP(ps, lr=0.1, momentum=0.9), "SGD", ("=0.1", "onepass.SGDP")),
}


@pytest.mark.parametrize("has_stepped", [False, True], ids=["new", "stepped"])
@pytest.mark.parametrize(("make", "name", "words"), ASKED.values(), ids=ASKED)
def test_arguments_that_change_the_step(make: Make, name: str, words: tuple[str, ...], has_stepped: bool) -> None:
    """The check reads the groups: before the first step a state dict has no state."""
    theirs = make(parameters())
    if has_stepped and not theirs.param_groups[0].get("differentiable"):  # a differentiable step does not take leaves
        train(theirs, range(2))
    refused(stepped(RECORDS[name]), theirs.state_dict(), "the state dict's param group 0 has", *words)


@each_optimizer
def test_every_foreign_argument_is_refused(record: Record) -> None:
    """The argument is in the last group, after one that could be loaded."""
    groups = [{"params": [values((3, 4), torch.float32, i)]} for i in range(2)]
    opt = train(record.make(groups, backend="cpu", **record.typical), range(2))
    for key, (neutral, use) in {**REFUSED, **OF_SOME}.items():
        if key in opt.defaults:
            continue
        saved = opt.state_dict()
        saved["param_groups"][1][key] = not neutral if isinstance(neutral, bool) else 0.25
        refused(opt, saved, f"group 1 has {key}=", f"onepass.{record.name} does not have", use, "to go on without it")
    for bad, words in ({"lr": -1.0}, "lr must be at least 0"), ({"weight_decay": "x"}, "weight_decay must be a number"):
        saved = opt.state_dict()
        saved["param_groups"][1].update(bad)
        refused(opt, saved, f"the state dict's param group 1: {words}")


@each_optimizer
def test_loads_without_the_refused_arguments(record: Record) -> None:
    """With the refused arguments neutral, the state dict loads, and no foreign argument is left in the groups."""
    opt = stepped(record)
    saved, keys = opt.state_dict(), list(opt.param_groups[0])
    decoupled = record.name not in ("Adam", "AdamProxL2", "SGD")
    also = {key: True for key in HARMLESS} | {key: neutral for key, (neutral, _) in REFUSED.items()}
    also |= dict.fromkeys(("decoupled_weight_decay", "weight_decouple"), decoupled)
    if not decoupled:
        del also["corrected_weight_decay"]  # only for classes with decoupled decay
    also = {key: value for key, value in also.items() if key not in keys and type(value) is not object}
    saved["param_groups"][0].update(also, name="of the user", lr_scale=0.5)
    opt.load_state_dict(saved)
    assert sorted(opt.param_groups[0]) == sorted([*keys, "name", "lr_scale"])
    assert FOREIGN.issuperset(also)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda ps: torch.optim.Adam(ps, fused=True), "Adam"),
        (lambda ps: torch.optim.AdamW(ps, foreach=True), "AdamW"),
        (lambda ps: torch.optim.AdamW(ps), "AdamProx"),
        (lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9), "SGD"),
        (lambda ps: torch.optim.SGD(ps, lr=0.1), "SGD"),
        (lambda ps: adamp.AdamP(ps), "AdamP"),
        (lambda ps: adamp.SGDP(ps, lr=0.1, momentum=0.9), "SGDP"),
        (lambda ps: _timm("adamp", "AdamP")(ps), "AdamP"),
        (lambda ps: _timm("adamw", "AdamWLegacy")(ps), "AdamW"),
    ],
)
def test_foreign_state_dicts_add_no_key(make: Make, name: str) -> None:
    opt = stepped(RECORDS[name])
    keys = sorted(opt.param_groups[0])
    opt.load_state_dict(through_a_file(train(make(parameters()), range(2)).state_dict()))
    assert sorted(opt.param_groups[0]) == keys
    train(opt, [2])


# ------------------------------------------------------------------ keys


@each_optimizer
def test_foreign_keys_of_our_groups_are_loaded_again(record: Record) -> None:
    """As torchtitan puts them there, which then looks for each of them in the saved groups; a checkpoint has no order of keys."""

    def made() -> Any:
        groups = [{"params": [p], "foreach": False, "fused": True, "lr_scale": 0.5} for p in parameters()]
        return record.make(groups, backend="cpu", **record.typical)

    opt, other = train(made(), range(2)), made()
    saved = through_a_file(opt.state_dict())
    saved["param_groups"] = [dict(sorted(group.items())) for group in saved["param_groups"]]
    other.load_state_dict(saved)
    assert [set(group) for group in other.param_groups] == [set(group) for group in opt.param_groups]
    for mine, loaded in zip(parameters_of(opt), parameters_of(other), strict=True):
        loaded.data.copy_(mine)
    for each in (opt, other):
        train(each, [2])
    for mine, loaded in zip(parameters_of(opt), parameters_of(other), strict=True):
        assert_same_bits(loaded, mine, "parameter")


@each_optimizer
@pytest.mark.parametrize("arguments", [{}, {"decouple_lr": True}], ids=["plain", "decouple_lr"])
def test_state_dict_round_trip_keeps_keys_and_order(record: Record, arguments: Arguments) -> None:
    """Keys and their order are equal too, also after deepcopy and pickle."""
    opt = stepped(record, **arguments)
    other = record.make(parameters(), backend="cpu", **{**record.typical, **arguments})
    other.load_state_dict(through_a_file(opt.state_dict()))
    both = [other, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    assert [list(twin.defaults.items()) for twin in both] == [list(opt.defaults.items())] * 3
    want = opt.state_dict()
    for twin in both:
        got = twin.state_dict()
        assert repr(got["param_groups"]) == repr(want["param_groups"])
        assert [[*own] for own in got["state"].values()] == [[*own] for own in want["state"].values()]
        assert list(got["state"]) == list(want["state"])
        twin.add_param_group({"params": [torch.ones(2)]})
        assert set(twin.param_groups[1]) - {"params"} <= {*opt.defaults, "initial_lr"}


# ------------------------------------------------------------------ state


def _with(key: str, value: Any) -> Callable[[StateDict], StateDict]:
    return lambda own: {**own, key: value(own[key]) if callable(value) else value}


def _without(key: str) -> Callable[[StateDict], StateDict]:
    return lambda own: {name: value for name, value in own.items() if name != key}


def _negative(moment: Tensor) -> Tensor:
    """One negative element; the others are NaN, which a minimum would return."""
    out = torch.full_like(moment, torch.nan)
    out.view(-1)[7] = -1e-30
    return out


inf, nan = float("inf"), float("nan")
WRONG: dict[str, tuple[Callable[[StateDict], Any], tuple[str, ...]]] = {
    "no count": (_without("step"), ("must have 'exp_avg', 'exp_avg_sq', 'step', got ", "without 'step'")),
    "no moment": (_without("exp_avg"), ("without 'exp_avg'",)),
    "another optimizer": (lambda own: {"square_avg": own["exp_avg_sq"]}, ("got 'square_avg'",)),
    "another optimizer, counted": (lambda own: {"step": own["step"], "sum": own["exp_avg_sq"]}, ("got 'step', 'sum'",)),
    "SGD's": (lambda own: {"momentum_buffer": None}, ("got 'momentum_buffer'",)),
    "not a dict": (lambda own: [own], ("state of parameter 5", "must be a dict")),
    "not a number": (_with("step", "x"), ("'step' of parameter 5 must be one number, got 'x'",)),
    "two numbers": (_with("step", torch.ones(2)), ("must be one number",)),
    "boolean count": (_with("step", torch.tensor(True)), ("must be one number",)),
    "complex count": (_with("step", torch.tensor(1j)), ("must be one number",)),
    **{f"{n} steps": (_with("step", torch.tensor(n)), ("at least 0, got", str(n))) for n in (-1.0, nan, inf)},
    "-1 as a number": (_with("step", -1), ("'step' of parameter 5 must be a finite number, at least 0, got -1.0",)),
    "integers": (_with("exp_avg", Tensor.long), ("'exp_avg' of parameter 5", "torch.int64")),
    "complex moment": (_with("exp_avg_sq", lambda v: v + 0j), ("'exp_avg_sq'", "torch.complex64")),
    "not a tensor": (_with("exp_avg", 0.5), ("'exp_avg' of parameter 5 must be a tensor, got 0.5",)),
    "meta": (_with("exp_avg", lambda m: m.to("meta")), ("'exp_avg' of parameter 5 is on the meta device",)),
    "meta count": (_with("step", lambda t: t.to("meta")), ("must be one number",)),
    "sparse": (_with("exp_avg", Tensor.to_sparse), ("dense", "torch.sparse_coo")),
    "negative": (_with("exp_avg_sq", _negative), ("'exp_avg_sq' of parameter 5", "below 0")),
    "shape": (_with("exp_avg", lambda m: m[:7]), ("shape (7, 150)", "shape (20, 150)", "is it of another model?")),
    "flat": (_with("exp_avg_sq", Tensor.flatten), ("shape (3000,)", "shape (20, 150)", "is it of another model?")),
}
GATE = {f"counter {x}": (_with("gate_counter", x), ("'gate_counter' of parameter 5",)) for x in (-1, 4, 1.5, nan, "x")}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        *[pytest.param("AdamW", *case, id=f"AdamW {name}") for name, case in WRONG.items()],
        *[pytest.param("AdamP", *case, id=f"AdamP {name}") for name, case in GATE.items()],
        pytest.param("SGD", _with("momentum_buffer", lambda b: b[:7]), ("is it of another model?",), id="SGD shape"),
        pytest.param("SGD", lambda own: {"exp_avg": own["momentum_buffer"]}, ("got 'exp_avg'",), id="SGD Adam's"),
    ],
)
def test_invalid_state_is_refused(name: str, change: Callable[[StateDict], Any], words: tuple[str, ...]) -> None:
    opt = stepped(RECORDS[name])
    saved = opt.state_dict()
    saved["state"] = {**saved["state"], LAST: change(saved["state"][LAST])}
    saved["param_groups"] = [{**group, "lr": 7.0} for group in saved["param_groups"]]
    refused(opt, saved, *words)


@each_optimizer
def test_parameters_in_another_order(record: Record) -> None:
    """The state dict of another model. The message has the parameter's name, if it has one."""
    opt = record.make(zip("ab", parameters(shapes=[(3, 4), (5,)]), strict=True), backend="cpu", **record.typical)
    other = train(record.make(parameters(shapes=[(3, 4), (6,)]), backend="cpu", **record.typical), range(2))
    words = ("shape (6,)", "shape (5,)", "is it of another model?", "of parameter 1 ('b')")
    refused(opt, through_a_file(other.state_dict()), *words)
    train(opt, range(2))
    refused(opt, other.state_dict(), *words)


def test_nonfinite_moments_are_loaded() -> None:
    """A diverged run has NaN and inf in its moments; loading keeps the bits."""
    opt = stepped(RECORDS["AdamW"])
    first = next(iter(opt.state.values()))
    first["exp_avg"][0, 0], first["exp_avg_sq"][0, 0], first["exp_avg_sq"][0, 1] = nan, inf, -0.0
    other = onepass.AdamW(parameters())
    other.load_state_dict(through_a_file(opt.state_dict()))
    for key in ("exp_avg", "exp_avg_sq"):
        assert_same_bits(next(iter(other.state.values()))[key], first[key], key)


# ------------------------------------------------------------------ honoured or refused

THEIRS: list[tuple[str, str, Arguments]] = [
    ("torch", "Adam", {}),
    *[("torch", cls, {"weight_decay": 0.3, **more}) for cls in ("Adam", "AdamW") for more in (
        {}, {"maximize": True}, {"amsgrad": True}, {"fused": True}, {"foreach": True}, {"betas": (0.5, 0.9)},
        {"decoupled_weight_decay": True}, {"eps": 0.1}, {"capturable": False},
    ) if not (cls == "AdamW" and "decoupled_weight_decay" in more)],
    *[("torch", "SGD", {"lr": 0.1, "weight_decay": 0.3, **more}) for more in (
        {}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.5, "maximize": True},
        {"momentum": 0.9, "fused": True},
    )],
    *[("torch", cls, {}) for cls in ("NAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Rprop", "ASGD")],
    *[(package, "AdamP", {"weight_decay": 0.3, **more}) for package in ("adamp", "timm") for more in (
        {}, {"nesterov": True}, {"delta": 5.0, "wd_ratio": 0.5}, *[{"caution": True}] * (package == "timm"),
    )],
    *[("timm", "SGDP", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3, **more}) for more in (
        {}, {"nesterov": True}, {"dampening": 0.5, "delta": 5.0}, {"caution": True},
    )],
    *[("timm", "AdamWLegacy", {"weight_decay": 0.3, **more}) for more in (
        {}, {"caution": True}, {"corrected_weight_decay": True}, {"amsgrad": True}, {"maximize": True},
    )],
    ("timm", "Adopt", {}), ("timm", "LaProp", {}), ("timm", "Lion", {}), ("timm", "Lamb", {}), ("timm", "MADGRAD", {}),
]  # fmt: skip


def class_of(package: str, name: str) -> Any:
    files = {"AdamWLegacy": "adamw"}
    if package == "timm":
        return _timm(files.get(name, name.lower()), name)
    return getattr({"torch": torch.optim, "adamp": adamp}[package], name)


# Classes whose state dicts are honoured. AdamProx, AdamProxL2 and AdamP have no counterpart in torch: loading a state dict of
# Adam or AdamW there switches to another rule, with the same meaning of the decay.
SAME = {
    "Adam": {"Adam"},
    "AdamW": {"Adam", "AdamW", "AdamWLegacy"},
    "AdamP": {"AdamP"},
    "SGD": {"SGD"},
    "SGDP": {"SGDP"},
}


@pytest.mark.parametrize("record", [RECORDS[name] for name in SAME], ids=SAME)
def test_every_state_dict_is_honoured_or_refused(record: Record) -> None:
    """For the optimizers of torch, adamp and timm: loading raises, or our next step equals theirs."""
    honoured = []
    for package, name, arguments in THEIRS:
        ours = record.make(parameters(torch.float64), lr=7.0, backend="cpu")
        theirs = class_of(package, name)(parameters(torch.float64), **arguments)
        train(theirs, range(2))
        saved = theirs.state_dict()
        with torch.no_grad():
            for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
                p.copy_(q)
        try:
            ours.load_state_dict(saved)
        except (TypeError, ValueError):
            continue
        if (record.name, name) in (("AdamP", "Adam"), ("AdamP", "AdamW"), ("AdamP", "AdamWLegacy")):
            continue
        train_both(theirs, ours, [2])
        for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
            torch.testing.assert_close(
                p, q, rtol=1e-12, atol=1e-12, msg=f"{package} {name} {arguments}: {tuple(p.shape)}"
            )
        honoured.append(name)
    assert honoured and set(honoured) <= SAME[record.name]
