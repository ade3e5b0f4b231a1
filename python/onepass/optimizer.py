"""The base of every optimizer: param groups, state and the order of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat
from operator import is_
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar, cast, overload

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from typing_extensions import Self

from .arguments import OF_TORCH, refuse_unknown, refuse_unsupported, warn_unknown
from .backend import registry
from .backend.base import Backend
from .checkpoints import Checkpointed
from .checks import (
    check_gradients,
    check_memory,
    check_parameters,
    check_rows,
    check_state,
    check_state_tensor,
    name_of,
)
from .clipping import ScaledGradients
from .exchange import Exchange, found_anywhere, is_needed
from .execution_state import ExecutionState
from .forks import one_thread_after_fork
from .hyperparams import Hyper, hyper_of
from .last_step import LastStep
from .masters import MASTER, joined, split
from .phases import nothing, take_step
from .precision import precision_of
from .sharding import Axis, every_axis, is_placed_as, part_of, place_gradients, sharded
from .spec import OptimizerSpec
from .state import make_state, make_state_of, move_counts
from .torch_compat import is_dtensor, is_faking, like_local, local_of, without_torch_function

ParamsT = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
LossT = TypeVar("LossT")

_PLAIN = (bool, int, float, str, type(None), torch.dtype)  # values that do not change in place


class Optimizer(ScaledGradients, Checkpointed):
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
        if isinstance(params, torch.nn.Module):
            raise TypeError(
                f"params must be parameters or param groups, got a {type(params).__name__}; give its parameters()"
            )
        self._execution = ExecutionState()
        super().__init__(params, {name: value for name, value in defaults.items() if name not in OF_TORCH})
        check_rows(self.spec, self.param_groups, self._execution.had_matrices)

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
        self._execution.had_matrices |= any(p.dim() > 1 for p in param_group["params"])
        # The backends are kept until the next step: they know with which buffers no step was taken yet.
        self._execution.layout, self._execution.members = [], members

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
        if scaling.found_inf is not None:
            found_anywhere(scaling.found_inf, self._mesh_axes())
        skips = scaling.known_to_skip
        hypers = self._make_ready(scaled=bool(scaling), needs_state=not skips)
        if skips:
            for backend in execution.backends:
                backend.release_gradients()
        else:
            execution.stepped = (
                take_step(execution.backends, hypers, scaling, execution.exchange or nothing) or execution.stepped
            )
        execution.clip = None

    def _mesh_axes(self) -> list[Axis]:
        """Of all meshes that parameters are on."""
        exchange = self._execution.exchange
        return exchange.axes if exchange else every_axis(sharded(self.param_groups), "all")

    def _make_ready(self, scaled: bool, needs_state: bool) -> list[Hyper]:
        """Checks every group and tensor and makes all backends ready; returns the groups' hyper-parameters.

        scaled: whether the step has a `Scaling`. needs_state: whether a step follows; a clipping takes gradients alone.
        """
        if is_faking():
            raise RuntimeError(
                "onepass: a step was taken in torch's FakeTensorMode, in which tensors have no memory; step outside of it"
            )
        execution, hypers = self._execution, self._hypers()
        layout = [id(self.state), *[(id(group), group["backend"]) for group in self.param_groups]]

        def ready() -> bool:
            with without_torch_function(bool(execution.sharded)):
                return all([backend.ready(self.param_groups, hypers, needs_state) for backend in execution.backends])

        if (
            layout != execution.layout
            or (scaled and self._counts_must_move(execution.backends))
            or not (ready() or (place_gradients(execution.sharded) and ready()))
        ):
            hypers = self._prepare(hypers, scaled, needs_state)
            execution.layout = layout
        return hypers

    @torch.no_grad()
    def _prepare(self, hypers: list[Hyper], scaled: bool, needs_state: bool) -> list[Hyper]:
        """The slow path: checks everything, makes the state that is needed and missing, and gives every backend its groups."""
        execution, groups = self._execution, self.param_groups
        for backend in execution.backends:
            backend.release_gradients()
        check_memory(groups, self.state)
        check_parameters(self.spec, groups)
        check_rows(self.spec, groups, execution.had_matrices)
        execution.sharded = sharded(groups)
        place_gradients(execution.sharded)
        check_gradients(groups)
        check_state(self.spec, groups, self.state, execution.counts_on_device)
        backends = registry.make_backends(self.spec, groups, execution.graph_tensors)
        execution.first = execution.unstepped(self.state)
        execution.backends, execution.layout = [], []
        with torch.inference_mode(False):  # or no later step could write to it
            if scaled and self._counts_must_move(backends):
                execution.counts_on_device, execution.cached = True, []
                move_counts(self.spec, groups, self.state)
                hypers = self._hypers()
            if needs_state:
                execution.first |= make_state(self.spec, groups, hypers, self.state, execution.counts_on_device)
        execution.exchange = Exchange(self.spec, backends) if execution.sharded else None
        for backend in backends:
            backend.bind(self.state, list(execution.first), exchanges=is_needed(self.spec, backend))
            if not backend.ready(groups, hypers, needs_state):
                raise RuntimeError(f"onepass: backend {backend.name!r} refuses tensors that passed every check; a bug")
        execution.backends = backends
        return hypers

    def _counts_must_move(self, backends: list[Backend]) -> bool:
        """Whether there are step counts that the host keeps and a device can: it alone may know whether a scaled step was
        skipped."""
        return not self._execution.counts_on_device and any(
            [
                backend.capturable and not self.param_groups[i]["capturable"]
                for backend in backends
                for i in backend.indices
            ]
        )

    # ------------------------------------------------------------------ exact weights

    @torch.no_grad()
    def master(self, p: Tensor) -> Tensor:
        """A copy of the weight of a parameter: of a bfloat16 one in a group with master_weights the exact float32 weight.

        Raises ValueError if `p` is not a parameter of this optimizer, or its remainder was replaced by something else.
        """
        if not precision_of(self.param_groups[self._group_of(p)]).has_master(p.dtype):
            return p.detach().clone()
        remainder = self._remainder(p)
        if remainder is None:
            return p.detach().float()
        return like_local(joined(local_of(p.detach()), local_of(remainder)), p)

    @torch.no_grad()
    def set_master(self, p: Tensor, x: Tensor) -> None:
        """Sets the weight of a parameter to `x`, of the same shape: exactly to x in float32, where p is a bfloat16 parameter in a
        group with master_weights; any other is written as by `p.copy_(x)`.

        Raises ValueError if `p` is not a parameter of this optimizer, its remainder was replaced by something else, or `x` has
        another shape; TypeError if `x` is no tensor of real numbers.
        """
        index = self._group_of(p)
        group, execution = self.param_groups[index], self._execution
        if not isinstance(x, Tensor) or x.is_complex():
            raise TypeError(f"x must be a tensor of real numbers, got {x.dtype if isinstance(x, Tensor) else repr(x)}")
        if x.shape != p.shape:
            raise ValueError(f"x must have the parameter's shape {tuple(p.shape)}, got {tuple(x.shape)}")
        if not precision_of(group).has_master(p.dtype):
            p.copy_(x if is_dtensor(x) else like_local(part_of(x, p), p))
            return
        h = self._hyper(group, index)
        # Or no later step could write to the state; leaving inference mode turns gradients on.
        with torch.inference_mode(False), torch.no_grad():
            if self._remainder(p) is None:
                # All of the state, since tools take a state that is there for a complete one.
                buffer = make_state_of(self.spec, p, group, h, self.state, execution.counts_on_device)
                first = execution.unstepped(self.state)
                execution.forget()
                execution.first = first if buffer is None else {**first, p: buffer}
            nearest, remainder = split(part_of(x.detach(), p).to(p.device, torch.float32))
            for to, part in ((self.state[p][MASTER], remainder), (p, nearest)):
                local_of(to).copy_(part)
            increment_version(p)

    def _remainder(self, p: Tensor) -> Tensor | None:
        own = self.state.get(p, {})  # get(), so that no entry is made of a parameter that has none
        remainder: Tensor | None = own.get(MASTER)
        fits = isinstance(remainder, Tensor) and remainder.dtype == torch.int16 and remainder.shape == p.shape
        fits = fits and remainder is not None and is_placed_as(remainder, p)
        if remainder is not None and not fits:
            check_state_tensor(name_of(p, self.param_groups), p, MASTER, remainder, torch.int16)
        return remainder

    def _group_of(self, p: Tensor) -> int:
        """The number of the group of a parameter."""
        for index, group in enumerate(self.param_groups):
            if any(map(is_, group["params"], repeat(p))):
                return index
        given = f"a tensor of shape {tuple(p.shape)} that is not" if isinstance(p, Tensor) else repr(p)
        raise ValueError(f"p must be a parameter of this optimizer, got {given}")

    def last_step(self) -> LastStep:
        """Gate statistics of the last step: a snapshot, as a mapping from each projected parameter that was stepped to its
        `Verdict`, and as tensors on the device.

        The numbers are by-products of the step: taking them costs no pass over memory and does not wait for the device;
        the first `Verdict` that is read does. As with any tensor, take them on the stream that stepped. Empty before the
        first step, and for optimizers without projection. A step that a gradient scaler has skipped does not count.
        """
        return LastStep([part for backend in self._execution.stepped for part in backend.verdicts()], self.param_groups)


def _is_plain(value: Any) -> bool:
    """Whether a value cannot change in place."""
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))
