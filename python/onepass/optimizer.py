"""The base of every optimizer: param groups, state and the order of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import is_
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar, cast, overload

import torch
from torch import Tensor
from typing_extensions import Self

from .arguments import OF_TORCH, refuse_unknown, refuse_unsupported, warn_unknown
from .backend import registry
from .checkpoints import Checkpointed
from .checks import check_gradients, check_parameters, check_rows, check_state, step_device
from .clipping import check_whole, checked_max_norm, clip_gradients
from .dtypes import moment_dtype
from .execution_state import ExecutionState
from .forks import one_thread_after_fork
from .hyperparams import Hyper, has_moments, hyper_of
from .last_step import LastStep
from .phases import take_step
from .scaling import NO_SCALING, Scaling
from .spec import OptimizerSpec
from .torch_compat import disable_dynamo
from .values import truth_of

ParamsT = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
LossT = TypeVar("LossT")

_PLAIN = (bool, int, float, str, type(None))  # values that do not change in place


class Optimizer(Checkpointed):
    """The base class of all onepass optimizers, for annotations and isinstance. A subclass gives its `spec` and the defaults
    of its arguments.

    A step checks the hyper-parameters of every group, then every tensor, then makes missing state, and writes only after
    that. Every tensor is read anew at every step: a replaced `.data`, `.grad` or state tensor is stepped like any other.
    """

    spec: ClassVar[OptimizerSpec]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if cls is Optimizer:
            raise TypeError("onepass.Optimizer is the base class; use one of its subclasses, such as onepass.AdamW")
        # Python refuses unknown keyword arguments too, but cannot say what to use.
        refuse_unknown(cls, cls.spec, kwargs)
        return super().__new__(cls)

    def __init__(self, params: ParamsT, defaults: dict[str, Any]):
        refuse_unsupported(self.spec, defaults, type(self).__name__)
        self._execution = ExecutionState()
        super().__init__(params, {name: value for name, value in defaults.items() if name not in OF_TORCH})
        check_rows(self.spec, self.param_groups)

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
        registry.check_name(param_group["backend"])
        members = self._checked_members(param_group, index)
        self.param_groups.append(param_group)
        self._execution.forget()
        self._execution.members = members

    def _checked_members(self, group: dict[str, Any], index: int) -> set[int]:
        """Raises if a parameter of a new group cannot be stepped, or is in another group already; returns the identities of
        the parameters of all groups."""
        new, members = {id(p) for p in group["params"]}, self._execution.members
        if members is not None and members.isdisjoint(new):
            check_parameters(self.spec, [group], first=index)
        else:  # unknown, or groups were changed by hand
            check_parameters(self.spec, [*self.param_groups, group])
            members = {id(p) for other in self.param_groups for p in other["params"]}
        members.update(new)
        return members

    def _hyper(self, group: dict[str, Any], index: int) -> Hyper:
        """The checked hyper-parameters of one group."""
        warn_unknown(type(self), self.spec, group, index, self.defaults.keys(), self._execution.warned)
        refuse_unsupported(self.spec, group, f"param group {index}")
        return hyper_of(self.spec, group, index, self._execution.counts_on_device)

    def _hypers(self) -> list[Hyper]:
        """The checked hyper-parameters of every group; a group whose values are the same objects is not checked again."""
        if len(self._execution.cached) != len(self.param_groups):
            self._execution.cached = [None] * len(self.param_groups)
        hypers = []
        for index, group in enumerate(self.param_groups):
            cached = self._execution.cached[index]
            if cached is not None and len(cached[0]) == len(group) and all(map(is_, cached[0], group.values())):
                hypers.append(cached[1])
                continue
            hypers.append(self._hyper(group, index))
            plain = all([_is_plain(value) for key, value in group.items() if key not in ("params", "param_names")])
            self._execution.cached[index] = ([*group.values()], hypers[-1]) if plain else None
        return hypers

    # ------------------------------------------------------------------ the step

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
        execution, scaling = self._execution, self._scaling()
        hypers = self._make_ready(scaled=bool(scaling))
        take_step(execution.backends, hypers, scaling)
        if not scaling.known_to_skip:
            execution.stepped = execution.backends
            if execution.provisional:
                execution.provisional = {p for p in execution.provisional if p.grad is None}
        execution.clip = None

    def _make_ready(self, scaled: bool) -> list[Hyper]:
        """Checks every group and tensor and makes all backends ready for a step; returns the groups' hyper-parameters.

        scaled: whether the step has a `Scaling`.
        """
        hypers = self._hypers()
        layout = [id(self.state), *[(id(group), group["backend"]) for group in self.param_groups]]
        if layout != self._execution.layout or not all(
            [backend.ready(self.param_groups, hypers) for backend in self._execution.backends]
        ):
            self._prepare(hypers)
            self._execution.layout = layout
        if scaled and not self._execution.counts_on_device and self._needs_counts_on_device():
            self._move_counts()
            return self._make_ready(scaled)
        return hypers

    @torch.no_grad()
    def _prepare(self, hypers: list[Hyper]) -> None:
        """The slow path: checks everything, makes missing state, and gives every backend its groups."""
        for backend in self._execution.backends:
            backend.release_gradients()
        check_parameters(self.spec, self.param_groups)
        check_rows(self.spec, self.param_groups)
        check_gradients(self.param_groups)
        check_state(self.spec, self.param_groups, self.state, self._execution.counts_on_device)
        backends = registry.make_backends(self.spec, self.param_groups, self._execution.graph_tensors)
        with torch.inference_mode(False):  # or no later step could write to it
            for group, h in zip(self.param_groups, hypers, strict=True):
                self._execution.provisional.update(self._make_state(group, h))
        for backend in backends:
            backend.bind(self.state, list(self._execution.provisional))
            if not backend.ready(self.param_groups, hypers):
                raise RuntimeError(f"onepass: backend {backend.name!r} refuses tensors that passed every check; a bug")
        self._execution.backends = backends

    def _make_state(self, group: dict[str, Any], h: Hyper) -> list[Tensor]:
        """Makes the missing state of the parameters that have a gradient; returns those whose moments are new."""
        first = []
        for p in group["params"]:
            if p.grad is None or not (has_moments(self.spec, h) or self.spec.counted):
                continue
            state = self.state[p]
            if self.spec.counted and state.get("step") is None:
                device = step_device(p, group, self._execution.counts_on_device)
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            if self.spec.projected and p.dim() > 1 and state.get("gate_counter") is None:
                state["gate_counter"] = torch.ones((), dtype=torch.uint8, device=p.device)
            for key in self.spec.moments if has_moments(self.spec, h) else ():
                if state.get(key) is None:
                    state[key] = torch.zeros_like(p, dtype=moment_dtype(p.dtype), requires_grad=False)
                    first.append(p)
        return first

    def last_step(self) -> LastStep:
        """Gate statistics of the last step: a snapshot, as a mapping from each projected parameter that was stepped to its
        `Verdict`, and as tensors on the device.

        The numbers are by-products of the step: taking them costs no pass over memory and does not wait for the device;
        the first `Verdict` that is read does. As with any tensor, take them on the stream that stepped. Empty before the
        first step, and for optimizers without projection. A step that a gradient scaler has skipped does not count.
        """
        return LastStep([part for backend in self._execution.stepped for part in backend.verdicts()], self.param_groups)

    # ------------------------------------------------------------------ scaled gradients

    @disable_dynamo
    @one_thread_after_fork
    def clip_grad_norm_(self, max_norm: float | Tensor, *, error_if_nonfinite: bool = False) -> Tensor:
        """Makes the next step clip the norm of all gradients of this optimizer, taken as one vector, to `max_norm`.

            total_norm = sqrt(sum over all groups of |g|^2)        g = min(1, max_norm/(total_norm + 1e-6))*g

        The same as `torch.nn.utils.clip_grad_norm_(params, max_norm)`, but the gradients are read once and not written:
        the next step multiplies them by the coefficient, and no later one. A second call clips the clipped gradients, or
        starts anew if all gradients are new. With a `torch.amp.GradScaler`, call `scaler.unscale_(optimizer)` before.
        `zero_grad` forgets the coefficient; a copy of the optimizer does not have it.

        Args:
            max_norm: at least 0.
            error_if_nonfinite: raise RuntimeError if the norm is infinite or NaN, which waits for the device. Otherwise
                such a norm makes the coefficient 0 or NaN, as in torch.

        Returns the norm before clipping, a tensor of one number on the device of the first group: float32, or float64 if
        some parameter is; sums are taken in float64, in one fixed order.

        Raises what `step` raises, and ValueError for a parameter that FSDP has sharded. The step raises RuntimeError if a
        gradient was replaced or written to in between; writes through `.data` and by collectives are not detected.
        """
        limit = checked_max_norm(max_norm)
        if truth_of(error_if_nonfinite) is None:
            raise TypeError(f"error_if_nonfinite must be True or False, got {error_if_nonfinite!r}")
        check_whole(self.param_groups)
        clip = self._execution.clip
        earlier = clip.coefficient_for(self.param_groups, may_be_new=True) if clip else None
        self._make_ready(scaled=True)
        square_sums = [backend.square_sum() for backend in self._execution.backends]
        total_norm, self._execution.clip = clip_gradients(
            square_sums, self.param_groups, limit, earlier, bool(error_if_nonfinite)
        )
        return total_norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch.optim. Forgets the coefficient of `clip_grad_norm_`."""
        self._execution.clip = None
        super().zero_grad(set_to_none)

    def _scaling(self) -> Scaling:
        """The factor of the gradients of the next step."""
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if self._execution.clip is None and grad_scale is None and found_inf is None:
            return NO_SCALING
        # To look for infinities, a scaler multiplies gradients that were not unscaled by 1.
        writes = 0 if grad_scale is None else 1
        clip = self._execution.clip
        return Scaling(clip.coefficient_for(self.param_groups, writes) if clip else None, grad_scale, found_inf)

    def _needs_counts_on_device(self) -> bool:
        return any(
            [
                backend.capturable and not self.param_groups[i]["capturable"]
                for backend in self._execution.backends
                for i in backend.indices
            ]
        )

    @torch.no_grad()
    def _move_counts(self) -> None:
        """Moves step counts to the devices of their parameters."""
        self._execution.counts_on_device, self._execution.cached, self._execution.layout = True, [], []
        for p in (p for group in self.param_groups for p in group["params"]):
            own = self.state.get(p, {})
            if self.spec.counted and own.get("step") is not None:
                own["step"] = own["step"].to(p.device)


def _is_plain(value: Any) -> bool:
    """Whether a value cannot change in place."""
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))
