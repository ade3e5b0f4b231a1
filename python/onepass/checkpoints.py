"""What a state dict holds, checked before it is loaded, and put in with the dtypes it was saved with."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import step_device
from .hyper import Rule
from .reference import working_dtype

if TYPE_CHECKING:
    from .optimizer import Optimizer


def check_loaded(rule: Rule, loaded: dict[Any, dict[str, Any]]) -> None:
    """Raises if the state that a state dict holds of some parameter is not that of an optimizer with this rule."""
    required = [*rule.moments, *(["step"] if rule.counted else [])]
    for number, own in loaded.items():
        held = [key for key in required if own.get(key) is not None]
        if len(held) != len(required) and (held or (not rule.lazy_buffer and own)):
            missing = [key for key in required if key not in held]
            raise ValueError(
                f"the state dict's state of parameter {number} must have {', '.join(map(repr, required))}, got "
                f"{', '.join(map(repr, own))}, without {', '.join(map(repr, missing))}; load one of this optimizer, of "
                "torch.optim's or of adamp's, or put there what is missing"
            )
        for key in rule.moments:
            moment = own.get(key)
            if isinstance(moment, Tensor) and not moment.is_floating_point():
                raise ValueError(
                    f"the state dict's {key!r} of parameter {number} must be of a floating-point dtype, got {moment.dtype}"
                )
        count = own.get("step")
        if rule.counted and count is not None and not _is_count(count):
            raise ValueError(f"the state dict's 'step' of parameter {number} must be one number, got {count!r}")


def _is_count(x: Any) -> bool:
    return isinstance(x, int | float) or (isinstance(x, Tensor) and x.numel() == 1 and not x.is_complex())


@torch.no_grad()
def restore(opt: Optimizer, loaded: dict[str, Any], counts_on_device: bool) -> None:
    """Puts the loaded state in again, from the tensors as they were saved: torch's base class has cast them."""
    ids = chain.from_iterable(group["params"] for group in loaded["param_groups"])
    params = [(p, group) for group in opt.param_groups for p in group["params"]]
    for saved_id, (p, group) in zip(ids, params, strict=True):
        for key, value in loaded["state"].get(saved_id, {}).items():
            if key == "step":
                device = step_device(p, group, counts_on_device)
                value = torch.tensor(float(value), dtype=torch.float32, device=device)
            elif key == "gate_counter":
                value = torch.as_tensor(value).to(device=p.device, dtype=torch.uint8, copy=True)
            elif key in opt.rule.moments and isinstance(value, Tensor):
                moment = torch.empty_like(p, dtype=working_dtype(p.dtype), requires_grad=False)
                value = moment.copy_(value) if value.shape == p.shape else value
            else:
                continue
            opt.state[p][key] = value
