"""What `clip_grad_norm_` leaves for the next step: a coefficient, and the gradients that it is for."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from .checks import Group, name_of
from .torch_compat import is_dtensor, version_of


class Clip:
    """The coefficient that `clip_grad_norm_` has left for the next step, and the gradients that it belongs to."""

    def __init__(self, coefficient: Tensor, groups: Sequence[Group]):
        self.coefficient = coefficient
        # By identity: hashing a tensor takes as long as all the rest.
        self.marks = {id(p): (p, weakref.ref(p.grad), version_of(p.grad)) for p in _with_gradients(groups)}

    def coefficient_for(self, groups: Sequence[Group], writes: int = 0, may_be_new: bool = False) -> Tensor | None:
        """The coefficient if all gradients are those that were clipped.

        writes: how often a gradient scaler may have written to each without changing it.
        may_be_new: return None if all of them are others.

        Raises RuntimeError for any other change: the result of torch's clipping cannot be computed from the gradients as
        they are then.
        """
        params = list(_with_gradients(groups))
        marks = [self.marks.get(id(p), _NO_MARK) for p in params]
        same = [gradient() is p.grad for p, (_, gradient, _) in zip(params, marks, strict=True)]
        if may_be_new and not any(same):
            return None
        if not all(same):
            raise RuntimeError(self._complaint(groups, params[same.index(False)], "was replaced"))
        for p, (_, _, version) in zip(params, marks, strict=True):
            # A write to a DTensor is one to its local tensor too.
            if not version <= version_of(p.grad) <= version + writes * (2 if is_dtensor(p.grad) else 1):
                raise RuntimeError(self._complaint(groups, p, "was written to"))
        return self.coefficient

    def _complaint(self, groups: Sequence[Group], p: Tensor, happened: str) -> str:
        return (
            f"{name_of(p, groups)}: its gradient {happened} after clip_grad_norm_, whose coefficient is multiplied in by the coming step; "
            "unscale, accumulate and change gradients before clipping, or forget the clipping with this optimizer's "
            "zero_grad()"
        )


_NO_MARK = (None, lambda: None, 0)


def _with_gradients(groups: Sequence[Group]) -> Iterator[Any]:
    return (p for group in groups for p in group["params"] if p.grad is not None)
