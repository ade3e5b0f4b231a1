"""What torch hangs around every `step`, at no cost where nobody listens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch
from torch.autograd import profiler
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

P = ParamSpec("P")
R = TypeVar("R")


def hooked(func: Callable[P, R]) -> Callable[P, R]:
    """A step with its hooks and its name in profiles, and never traced by torch.compile.

    torch's own wrapper takes as long as the rest of a small step, so it is gone through only where it has something to
    do. Traced, a step would be dozens of graphs, guarded by the values of hyper-parameters.
    """
    told = torch.optim.Optimizer.profile_hook_step(func)

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return (told if has_listeners(cast(torch.optim.Optimizer, args[0])) else func)(*args, **kwargs)

    reason = "onepass steps in compiled code of its own; call step outside of a region compiled with fullgraph=True"
    untraced: Callable[P, R] = torch.compiler.disable(wrapper, reason=reason)  # type: ignore[no-untyped-call]
    return untraced


def has_listeners(opt: torch.optim.Optimizer) -> bool:
    return bool(
        opt._optimizer_step_pre_hooks
        or opt._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or profiler._is_profiler_enabled
    )
