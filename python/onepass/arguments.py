"""Arguments and keys of param groups that no rule reads: those of torch that change nothing, wrong ones, unknown ones."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from .callers import callers_level
from .spec import OptimizerSpec
from .values import truth_of

# Only one value of each can be honoured: which, and why.
ONE_VALUE: dict[str, tuple[bool, str]] = {
    "amsgrad": (False, "amsgrad is not implemented"),
    "differentiable": (False, "a step that autograd records is not implemented"),
    "caution": (False, "timm's cautious update is not implemented"),
    "bias_correction": (True, "moments without bias correction are not implemented"),
}
# How torch is to traverse the tensors. Every step here is fused.
NO_CHOICE = ("foreach", "fused")
# DecidedParams, checked and kept out of the param groups, where torch.optim fills in its own defaults when it loads them.
OF_TORCH = ("amsgrad", "differentiable", "decoupled_weight_decay", *NO_CHOICE)

# Keys that timm, MMEngine, Megatron and others put into groups, and read themselves.
OF_TOOLS = ("lr_scale", "lr_mult", "wd_mult", "decay_mult", "use_fallback", "name", "group_name", "layer_id")

KNOWN_KEYS = frozenset(
    {
        *("params", "param_names", "lr", "maximize", "capturable"),
        *OF_TORCH,
        *ONE_VALUE,
        # of torch's schedulers
        *("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"),
        *OF_TOOLS,
    }
)

_BOTH = {
    "learning_rate": "it is called lr",
    "caution": "timm's cautious update is not implemented",
    "set_grad_none": "use opt.zero_grad(set_to_none=...)",
}
_OF_ADAMP = "the projection is that of onepass.AdamP"
_OF_SGDP = "the projection is that of onepass.SGDP"
_BY_CLASS = "use onepass.AdamW for decoupled and onepass.Adam for l2 weight decay"
_BETAS = "use betas=(beta1, beta2)"
# What to use in place of an argument that others have, by the rule.
ADVICE: dict[str, dict[str, str]] = {
    "adam": {
        **_BOTH,
        "decay": "use onepass.AdamW for decoupled and onepass.AdamProx for proximal decay; onepass.AdamP takes either",
        "delta": _OF_ADAMP,
        "projection": _OF_ADAMP,
        "wd_ratio": _OF_ADAMP,
        "speculate": _OF_ADAMP,
        "nesterov": "onepass.AdamP has it; with delta=0 it projects nothing",
        "project_momentum": "it is an argument of onepass.SGDP",
        "momentum": "the momentum of Adam is the first of betas",
        "dampening": "it is an argument of onepass.SGD",
        "decoupled_weight_decay": _BY_CLASS,
        "adam_w_mode": _BY_CLASS,
        "beta1": _BETAS,
        "beta2": _BETAS,
        "bias_correction": "moments are always corrected for their bias",
    },
    "momentum": {
        **_BOTH,
        "decay": "the weight decay of onepass.SGD is l2; onepass.SGDP takes 'decoupled' or 'proximal'",
        "delta": _OF_SGDP,
        "projection": _OF_SGDP,
        "wd_ratio": _OF_SGDP,
        "speculate": _OF_SGDP,
        "project_momentum": _OF_SGDP,
        "betas": "use momentum, which is the first of them",
        "amsgrad": "it is an argument of Adam",
        "wd_after_momentum": "not implemented; the decay enters before the momentum",
    },
}


def refuse_unknown(cls: type, spec: OptimizerSpec, names: Iterable[str]) -> None:
    """Raises TypeError if `cls` does not take one of these keyword arguments: as Python would, and says what to use."""
    taken = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return  # a subclass that passes them on
    for name in names:
        if name not in taken:
            advice = _advice(spec, name, [*taken][1:])
            raise TypeError(f"{cls.__name__}.__init__() got an unexpected keyword argument {name!r}; {advice}")


def refuse_unsupported(spec: OptimizerSpec, values: Mapping[str, Any], where: str) -> None:
    """Raises ValueError if arguments, or a param group, ask for what is not implemented. `where` begins the message."""
    for name, (only, why) in ONE_VALUE.items():
        if name in values and truth_of(values[name]) is not only:
            raise ValueError(f"{where}: {why}; use {name}={only}, got {values[name]!r}")
    if "decoupled_weight_decay" in values:
        asked = values["decoupled_weight_decay"]
        if truth_of(asked) is not spec.decoupled:
            use = spec.class_whose_decay_is(not spec.decoupled)
            raise ValueError(f"{where}: decoupled_weight_decay={asked!r} asks for another rule; use {use}")
    for name in NO_CHOICE:
        value = values.get(name)
        if value is not None and truth_of(value) is None:
            raise ValueError(f"{where}: {name} must be None, True or False, which change nothing, got {value!r}")


def warn_unknown(
    cls: type, spec: OptimizerSpec, group: Mapping[str, Any], index: int, own: Collection[str], warned: set[str]
) -> None:
    """Warns of each key of a param group that changes nothing, once.

    own: the keys that the optimizer has defaults of. warned: the keys that it has warned of. Keys that begin with an
    underscore are left to whoever put them there.
    """
    for key in [key for key in group if key not in own and key not in KNOWN_KEYS and key not in warned]:
        warned.add(key)
        if not str(key).startswith("_"):
            advice = _advice(spec, key, [*own])
            warnings.warn(
                f"onepass: param group {index} has a key {key!r}, which {cls.__name__} does not read; {advice}; begin "
                "the name of a key of your own with an underscore",
                stacklevel=callers_level(),
            )


def _advice(spec: OptimizerSpec, name: str, known: list[str]) -> str:
    if name in ADVICE[spec.rule]:
        return ADVICE[spec.rule][name]
    nearest = get_close_matches(str(name), known, 1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else f"it takes {', '.join(known)}"
