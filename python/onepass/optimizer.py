"""The base of every optimizer: param groups, state, checkpoints and the order of a step. The rules are elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from operator import is_
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast, overload

import torch
from torch import Tensor

from . import backends
from .arguments import OF_TORCH, refuse_unknown, refuse_unsupported, warn_unknown
from .checkpoints import prepare
from .checks import check_gradients, check_parameters, check_rows, check_state, step_device
from .forks import one_thread_after_fork
from .hooks import hooked
from .hyper import Hyper, Rule, has_buffer, hyper_of
from .last_step import LastStep
from .reference import working_dtype
from .runtime import Runtime
from .scaling import NO_SCALING, Clip, Scaling, check_whole, checked_max_norm, clip_coefficient, total_norm_of
from .values import truth_of

if TYPE_CHECKING:
    from typing_extensions import Self

ParamsT = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
LossT = TypeVar("LossT")

_PLAIN = (bool, int, float, str, type(None))  # values that do not change in place


class Optimizer(torch.optim.Optimizer):
    """The base class of all onepass optimizers, for annotations and isinstance. A subclass gives its `rule` and the defaults
    of its arguments.

    A step: the hyper-parameters of every group are checked, then every tensor, then missing state is made, and only
    then does anything get written. Tensors are looked at anew at every step, so a replaced `.data` or `.grad`, or a
    state tensor put in by hand, is seen.
    """

    rule: ClassVar[Rule]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if cls is Optimizer:
            raise TypeError("onepass.Optimizer is the base class; use one of its subclasses, such as onepass.AdamW")
        # Python refuses unknown keyword arguments too, but cannot say what to use.
        refuse_unknown(cls, cls.rule, kwargs)
        return super().__new__(cls)

    def __init__(self, params: ParamsT, defaults: dict[str, Any]):
        refuse_unsupported(self.rule, defaults, type(self).__name__)
        self._runtime = Runtime()
        super().__init__(params, {name: value for name, value in defaults.items() if name not in OF_TORCH})
        check_rows(self.rule, self.param_groups)

    # ------------------------------------------------------------------ param groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch.optim, in a time that does not depend on how many groups there are."""
        index = len(self.param_groups)
        # torch.optim looks for the new parameters in all groups at every call. It is given a group without any, which
        # says whether parameters have names; `_checked_members` looks for them.
        last = [{**group, "params": []} for group in self.param_groups[-1:]]
        stand_in = cast(torch.optim.Optimizer, SimpleNamespace(defaults=self.defaults, param_groups=last))
        torch.optim.Optimizer.add_param_group(stand_in, param_group)
        if "lr" not in param_group:
            raise TypeError(
                f"param group {index}: lr is missing, and {type(self).__name__} has no default; give it to the group, or "
                "to the class for all groups"
            )
        self._hyper(param_group, index)
        backends.check_name(param_group["backend"])
        members = self._checked_members(param_group, index)
        self.param_groups.append(param_group)
        self._runtime.forget()
        self._runtime.members = members

    def _checked_members(self, group: dict[str, Any], index: int) -> set[int]:
        """Raises if a parameter of a new group cannot be stepped, or is in another group already; returns the identities of
        the parameters of all groups."""
        new, members = {id(p) for p in group["params"]}, self._runtime.members
        if members is not None and members.isdisjoint(new):
            check_parameters(self.rule, [group], first=index)
        else:  # unknown, or groups were changed by hand
            check_parameters(self.rule, [*self.param_groups, group])
            members = {id(p) for other in self.param_groups for p in other["params"]}
        members.update(new)
        return members

    def _hyper(self, group: dict[str, Any], index: int) -> Hyper:
        """The checked hyper-parameters of one group."""
        warn_unknown(type(self), self.rule, group, index, self.defaults.keys(), self._runtime.warned)
        refuse_unsupported(self.rule, group, f"param group {index}")
        return hyper_of(self.rule, group, index, self._runtime.counts_on_device)

    def _hypers(self) -> list[Hyper]:
        """The checked hyper-parameters of every group; a group that holds the very objects it held is not checked again."""
        if len(self._runtime.cached) != len(self.param_groups):
            self._runtime.cached = [None] * len(self.param_groups)
        hypers = []
        for index, group in enumerate(self.param_groups):
            cached = self._runtime.cached[index]
            if cached is not None and len(cached[0]) == len(group) and all(map(is_, cached[0], group.values())):
                hypers.append(cached[1])
                continue
            hypers.append(self._hyper(group, index))
            plain = all([_is_plain(value) for key, value in group.items() if key not in ("params", "param_names")])
            self._runtime.cached[index] = ([*group.values()], hypers[-1]) if plain else None
        return hypers

    # ------------------------------------------------------------------ the step

    profile_hook_step = staticmethod(hooked)  # torch calls it on `step` of every subclass

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], LossT]) -> LossT: ...

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one step on every parameter that has a gradient.

        closure: re-evaluates the model with gradients enabled and returns the loss, which is then returned.

        Raises ValueError, TypeError or RuntimeError on bad hyper-parameters, parameters, gradients or state, naming
        the group and the parameter; nothing has been written then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    @one_thread_after_fork
    def _step(self) -> None:
        runtime, scaling = self._runtime, self._scaling()
        hypers = self._make_ready(scaled=bool(scaling))
        for runner in runtime.runners:
            runner.run(hypers, scaling)
        if not scaling.known_to_skip:
            runtime.stepped = runtime.runners
            if runtime.unstepped:
                runtime.unstepped = {p for p in runtime.unstepped if p.grad is None}
        runtime.clip = None

    def _make_ready(self, scaled: bool) -> list[Hyper]:
        """Looks at every group and tensor and has all runners ready for a step; returns the groups' hyper-parameters.

        scaled: whether the step has a `Scaling`.
        """
        hypers = self._hypers()
        layout = [id(self.state), *[(id(group), group["backend"]) for group in self.param_groups]]
        if layout != self._runtime.layout or not all(
            [runner.ready(self.param_groups, hypers) for runner in self._runtime.runners]
        ):
            self._prepare(hypers)
            self._runtime.layout = layout
        if scaled and not self._runtime.counts_on_device and self._needs_counts_on_device():
            self._move_counts()
            return self._make_ready(scaled)
        return hypers

    @torch.no_grad()
    def _prepare(self, hypers: list[Hyper]) -> None:
        """The slow path: checks everything, makes missing state, and gives every backend its groups."""
        for runner in self._runtime.runners:
            runner.let_go()
        check_parameters(self.rule, self.param_groups)
        check_rows(self.rule, self.param_groups)
        check_gradients(self.param_groups)
        check_state(self.rule, self.param_groups, self.state, self._runtime.counts_on_device)
        runners = backends.runners_for(self)
        with torch.inference_mode(False):  # or no later step could write to it
            for group, h in zip(self.param_groups, hypers, strict=True):
                self._runtime.unstepped.update(self._make_state(group, h))
        for runner in runners:
            runner.bind(self.state, list(self._runtime.unstepped))
            if not runner.ready(self.param_groups, hypers):
                raise RuntimeError(f"onepass: backend {runner.name!r} refuses tensors that passed every check; a bug")
        self._runtime.runners = runners

    def _make_state(self, group: dict[str, Any], h: Hyper) -> list[Tensor]:
        """Makes the missing state of the parameters that have a gradient; returns those whose moments are new."""
        first = []
        for p in group["params"]:
            if p.grad is None or not (has_buffer(self.rule, h) or self.rule.counted):
                continue
            state = self.state[p]
            if self.rule.counted and state.get("step") is None:
                device = step_device(p, group, self._runtime.counts_on_device)
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            if self.rule.projected and p.dim() > 1 and state.get("gate_counter") is None:
                state["gate_counter"] = torch.ones((), dtype=torch.uint8, device=p.device)
            for key in self.rule.moments if has_buffer(self.rule, h) else ():
                if state.get(key) is None:
                    state[key] = torch.zeros_like(p, dtype=working_dtype(p.dtype), requires_grad=False)
                    first.append(p)
        return first

    def last_step(self) -> LastStep:
        """What the gates saw at the last step: a snapshot, as a mapping from each projected parameter that was stepped
        to its `Verdict`, and as tensors on the device.

        The numbers are by-products of the step: taking them costs no pass over memory and does not wait for the device;
        the first `Verdict` that is read does. As with any tensor, take them on the stream that stepped. Empty before the
        first step, and for optimizers without projection. A step that a gradient scaler has skipped is none.
        """
        return LastStep([seen for runner in self._runtime.stepped for seen in runner.verdicts()], self.param_groups)

    # ------------------------------------------------------------------ scaled gradients

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by torch.amp.GradScaler, which then leaves the gradients as they are, and sets `grad_scale` and
        `found_inf` for the step. Lightning asks too, and would refuse to clip, where it need only call `unscale_` first: so
        the answer is for the scaler alone."""
        return sys._getframe(1).f_globals.get("__name__") == torch.amp.GradScaler.__module__

    @torch._disable_dynamo  # type: ignore[attr-defined]  # nor is `step` traced: see hooks.py
    @one_thread_after_fork
    def clip_grad_norm_(self, max_norm: float | Tensor, *, error_if_nonfinite: bool = False) -> Tensor:
        """Has the coming step clip the norm of all gradients of this optimizer, taken as one vector, to `max_norm`.

            total_norm = sqrt(sum over all groups of |g|^2)        g = min(1, max_norm/(total_norm + 1e-6))*g

        The same as `torch.nn.utils.clip_grad_norm_(params, max_norm)`, but the gradients are read once and not written:
        the coming step multiplies the coefficient in, and no later one. A second call clips what the first has left, or
        starts anew if all gradients are new. With a `torch.amp.GradScaler`, call `scaler.unscale_(optimizer)` before.
        `zero_grad` forgets the coefficient; a copy of the optimizer does not have it.

        Args:
            max_norm: at least 0.
            error_if_nonfinite: raise RuntimeError if the norm is infinite or NaN, which waits for the device. Otherwise
                such a norm makes the coefficient 0 or NaN, as in torch.

        Returns the norm before clipping, a tensor of one number on the device of the first group: float32, or float64 if
        some parameter is; sums are taken in float64, in one fixed order.

        Raises what `step` raises, and ValueError for a parameter that FSDP has sharded. The step raises RuntimeError if a
        gradient was replaced or written to in between; writes through `.data` and by collectives cannot be seen.
        """
        limit = checked_max_norm(max_norm)
        if truth_of(error_if_nonfinite) is None:
            raise TypeError(f"error_if_nonfinite must be True or False, got {error_if_nonfinite!r}")
        check_whole(self.param_groups)
        clip = self._runtime.clip
        earlier = clip.coefficient_for(self.param_groups, may_be_new=True) if clip else None
        self._make_ready(scaled=True)
        parameters = [p for group in self.param_groups for p in group["params"]]
        dtype = torch.float64 if any([p.dtype == torch.float64 for p in parameters]) else torch.float32
        with torch.no_grad():
            square_sums = [runner.square_sum() for runner in self._runtime.runners] or [
                torch.zeros((), dtype=torch.float64, device="cpu")
            ]
            total_norm = total_norm_of(square_sums, earlier, dtype)
            if error_if_nonfinite and not bool(total_norm.isfinite()):
                raise RuntimeError(
                    f"the norm of all gradients is {float(total_norm)}, so they cannot be clipped to {limit:g}; skip this "
                    "step, or use error_if_nonfinite=False to clip by it all the same"
                )
            self._runtime.clip = Clip(clip_coefficient(limit, total_norm, earlier), self.param_groups)
        return total_norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch.optim. Forgets what `clip_grad_norm_` has left for the coming step."""
        self._runtime.clip = None
        super().zero_grad(set_to_none)

    def _scaling(self) -> Scaling:
        """What the coming step is to multiply gradients by."""
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if self._runtime.clip is None and grad_scale is None and found_inf is None:
            return NO_SCALING
        # To look for infinities, a scaler multiplies gradients that were not unscaled by 1.
        writes = 0 if grad_scale is None else 1
        clip = self._runtime.clip
        return Scaling(clip.coefficient_for(self.param_groups, writes) if clip else None, grad_scale, found_inf)

    def _needs_counts_on_device(self) -> bool:
        return any(
            [
                runner.capturable and not self.param_groups[i]["capturable"]
                for runner in self._runtime.runners
                for i in runner.indices
            ]
        )

    @torch.no_grad()
    def _move_counts(self) -> None:
        """Puts step counts beside their parameters."""
        self._runtime.counts_on_device, self._runtime.cached, self._runtime.layout = True, [], []
        for p in (p for group in self.param_groups for p in group["params"]):
            own = self.state.get(p, {})
            if self.rule.counted and own.get("step") is not None:
                own["step"] = own["step"].to(p.device)

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim, without the state that was made for a step that has not been taken. The groups of the Adam
        family say what torch's say of the weight decay, so that Adam and AdamW refuse each other's."""
        self._drop_unstepped()
        saved = super().state_dict()
        if self.rule.family == "adam":
            for group in saved["param_groups"]:
                group["decoupled_weight_decay"] = self.rule.decoupled
        return saved

    def _drop_unstepped(self) -> None:
        """Drops the state that a clipping or a skipped step has made: loaded, it would be that of a parameter that was
        stepped."""
        if self._runtime.unstepped:
            for p in self._runtime.unstepped:
                own = self.state.get(p, {})
                for key in self.rule.state_keys:
                    own.pop(key, None)
                if not own:
                    self.state.pop(p, None)
            self._runtime.unstepped = set()
            self._runtime.forget()

    def __getstate__(self) -> dict[str, Any]:
        self._drop_unstepped()
        return {
            "defaults": self.defaults,
            "state": self.state,
            "param_groups": self.param_groups,
            "counts_on_device": self._runtime.counts_on_device,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not hasattr(self, "_runtime"):
            self._runtime = Runtime()
        runtime = self._runtime
        state = dict(state)
        runtime.counts_on_device = state.pop("counts_on_device", runtime.counts_on_device)
        if runtime.loading is not None:
            state["state"] = runtime.loading.state
        defaults = dict(state.get("defaults") or self.defaults)
        super().__setstate__(state)
        self.defaults = defaults  # torch adds an argument of its own
        runtime.forget()
        runtime.unstepped = set()
        for group in self.param_groups:
            for name, value in defaults.items():
                group.setdefault(name, value)

    @one_thread_after_fork
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class, of the torch.optim class of the same name, or of the adamp package's.

        Unlike torch's base class, which casts moments to the parameter's dtype, this keeps them in the dtype that the
        arithmetic runs in, so they survive bit for bit.

        As in torch, what a group of the state dict holds replaces what the group here holds, but for backend and
        capturable. What it does not hold stays, but for decouple_lr: a state dict of torch's or adamp's has its
        weight_decay in torch's convention, and so decouple_lr becomes False.

        Raises ValueError or TypeError, before anything has changed, if the state dict asks for what this class does not
        do (`amsgrad=True`, say, or the decay of Adam in AdamW), if a state is not of the parameter's shape, or if the
        state or the arguments are not those of such an optimizer.
        """

        def prepared(_: Any, final: dict[str, Any]) -> dict[str, Any] | None:
            runtime = self._runtime
            with torch.inference_mode(False):  # or no later step could write to the state
                runtime.loading = prepare(
                    self.rule, type(self).__name__, self.param_groups, self.defaults, runtime.counts_on_device, final
                )
            if runtime.loading is None:
                return None
            return {**final, "state": {}, "param_groups": runtime.loading.groups}

        # Registered last, so that it sees what every other pre-hook has made of the state dict.
        handle = self.register_load_state_dict_pre_hook(prepared)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._runtime.loading = None


def _is_plain(value: Any) -> bool:
    """Whether it cannot change in place."""
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))
