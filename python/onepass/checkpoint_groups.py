"""The param groups of a state dict: what they ask for is done or refused, and what means nothing here is left out."""

from __future__ import annotations

from typing import Any, NamedTuple

from .spec import OptimizerSpec

# Arguments of the optimizer that loads, never of the checkpoint, which may have been written on another machine.
OWN = ("backend", "capturable", "master_weights", "state_dtype", "stochastic_rounding")

# Arguments of other optimizers that have no influence on the result of a step.
HARMLESS = ("foreach", "fused", "max_lr_snapshot")

_ANY = object()  # no value of the argument leaves the step as it is


class Argument(NamedTuple):
    """An argument of another optimizer that changes its step.

    neutral: the value with which it does not. use: the class that has the argument.
    """

    neutral: Any
    use: str


_TIMM = "the class of timm.optim"
_OTHERS = "the class of pytorch_optimizer"
REFUSED = {
    "amsgrad": Argument(False, "torch.optim.Adam or torch.optim.AdamW"),
    "differentiable": Argument(False, "the class of torch.optim"),
    "momentum_decay": Argument(_ANY, "torch.optim.NAdam"),
    "caution": Argument(False, _TIMM),
    "corrected_weight_decay": Argument(False, _TIMM),
    "clipping_threshold": Argument(None, _TIMM),
    "schedule_decay": Argument(_ANY, _TIMM),
    "clip_exp": Argument(_ANY, "timm.optim.Adopt"),
    "buffer": Argument(_ANY, "timm.optim.RAdamLegacy"),
    "trust_coeff": Argument(_ANY, "timm.optim.Lars"),
    "centered": Argument(_ANY, "torch.optim.RMSprop"),
    "ns_steps": Argument(_ANY, "torch.optim.Muon"),
    "bias_correction": Argument(True, "apex.optimizers.FusedAdam"),
    "correct_bias": Argument(True, "the class of transformers"),
    "fixed_decay": Argument(False, _OTHERS),
    "use_gc": Argument(False, _OTHERS),
    "adanorm": Argument(False, _OTHERS),
    "adam_debias": Argument(False, _OTHERS),
    "ams_bound": Argument(False, _OTHERS),
    "cautious": Argument(False, _OTHERS),
    "stable_adamw": Argument(False, _OTHERS),
}

# Of our own classes, loaded into one that does not have them.
OF_SOME = {
    "nesterov": Argument(False, "onepass.AdamP"),
    "delta": Argument(_ANY, "onepass.AdamP or onepass.SGDP"),
    "wd_ratio": Argument(_ANY, "onepass.AdamP or onepass.SGDP"),
    "projection": Argument(_ANY, "onepass.AdamP or onepass.SGDP"),
    "momentum": Argument(_ANY, "onepass.SGD or onepass.SGDP"),
    "dampening": Argument(_ANY, "onepass.SGD or onepass.SGDP"),
    "betas": Argument(_ANY, "onepass.AdamW or another class of the Adam family"),
}

# Whether the weight decay stays out of the gradient: torch's name of the argument, timm's and pytorch_optimizer's.
DECOUPLED = ("decoupled_weight_decay", "decoupled", "weight_decouple")

FOREIGN = frozenset([*HARMLESS, *REFUSED, *OF_SOME, *DECOUPLED])


def check_arguments(spec: OptimizerSpec, name: str, groups: list[dict[str, Any]], mine: list[dict[str, Any]]) -> None:
    """Raises ValueError if a group of a state dict asks for what the class `name` does not do.

    mine: the groups to be replaced. An argument of some of our classes that the user has put there is the user's own.
    """
    for index, (group, own) in enumerate(zip(groups, mine, strict=True)):
        refused = REFUSED | {key: argument for key, argument in OF_SOME.items() if key not in own}
        where = f"the state dict's param group {index} has"
        for key, value in group.items():
            if key in DECOUPLED:
                _check_decay(spec, name, f"{key}={value!r}", bool(value), where)
            elif key in refused and not _is_neutral(value, refused[key].neutral):
                neutral, use = refused[key]
                instead = f"delete {key}" if neutral is _ANY else f"set {key}={neutral!r}"
                raise ValueError(
                    f"{where} {key}={value!r}, which onepass.{name} does not have; use {use}, or {instead} in the state dict to go on "
                    "without it"
                )
        if "corrected_weight_decay" in group:  # timm's classes that have it decouple the decay
            _check_decay(spec, name, "corrected_weight_decay, whose decay is decoupled", True, where)
        # A user may have put it into a group of ours, as torchtitan does.
        if spec.rule == "adam" and "foreach" in group and "amsgrad" not in group and "backend" not in group:
            raise ValueError(
                f"{where} 'foreach' but no 'amsgrad', which torch.optim.Adam and AdamW have, so it is of another optimizer, such as "
                f"RAdam or timm's NAdamW; use the class that it is of, or delete 'foreach' to go on with onepass.{name}"
            )
        for key in _required(spec):
            if key not in group:
                raise ValueError(
                    f"{where} no {key!r}, so it is of another optimizer; use the class that it is of, or put {key!r} "
                    f"there to go on with onepass.{name}"
                )


def _required(spec: OptimizerSpec) -> tuple[str, ...]:
    """Arguments that no optimizer with such a rule is without. SGD, whose decay is l2, has no delta."""
    if spec.rule == "adam":
        return ("betas",)
    return ("momentum", "delta") if spec.projected else ("momentum",)


def _check_decay(spec: OptimizerSpec, name: str, what: str, decoupled: bool, where: str) -> None:
    if decoupled != spec.decoupled:
        own = "decoupled from the gradient" if spec.decoupled else "that of l2 regularization"
        raise ValueError(
            f"{where} {what}, but the weight decay of onepass.{name} is {own}; use {spec.class_whose_decay_is(decoupled)}, or "
            f"delete it from the state dict to go on with the decay of {name}"
        )


def _is_neutral(value: Any, neutral: Any) -> bool:
    return value is None or (neutral is not _ANY and bool(value == neutral))


def merged(saved: dict[str, Any], mine: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The group to load: `saved`, completed by this optimizer's group `mine` and the defaults of its class.

    A group without decouple_lr is of torch's or adamp's optimizers, whose convention is `decouple_lr=False`.
    """
    kept = {key: value for key, value in saved.items() if key not in FOREIGN or key in mine or key in defaults}
    kept.update({key: mine[key] for key in OWN if key in mine})
    kept.setdefault("decouple_lr", False)
    return {**kept, **{key: mine.get(key, value) for key, value in defaults.items() if key not in kept}}
