"""How the parameters of a group and their moments are stored: the arguments master_weights, state_dtype and
stochastic_rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from .dtypes import compute_dtype
from .spec import OptimizerSpec

# Of torch's dtypes, those that the moments of float32 and bfloat16 parameters can have.
STATE_DTYPES = (torch.float32, torch.bfloat16)


class Precision(NamedTuple):
    """Of a group: whether its bfloat16 parameters have remainders, whether moments are bfloat16, and whether bfloat16 parameters
    are rounded stochastically."""

    master_weights: bool = False
    short_moments: bool = False
    stochastic_rounding: bool = False

    def has_master(self, param: torch.dtype) -> bool:
        """Whether a parameter is stepped as a float32 weight in two parts. Those of float32 and float64 need none."""
        return self.master_weights and param == torch.bfloat16

    def rounds_stochastically(self, param: torch.dtype) -> bool:
        return self.stochastic_rounding and param == torch.bfloat16

    def is_exact(self, param: torch.dtype) -> bool:
        """Whether the weight has more than 16 bits."""
        return param.itemsize >= 4 or self.has_master(param)

    def moment_dtype(self, param: torch.dtype) -> torch.dtype:
        """The dtype in which the moments of a parameter are stored."""
        short = self.short_moments and param in STATE_DTYPES
        return torch.bfloat16 if short else compute_dtype(param)

    def draws(self, spec: OptimizerSpec, param: torch.dtype) -> bool:
        """Whether a step takes random bits: those of the parameter, or of its second moment."""
        short = self.moment_dtype(param) == torch.bfloat16 and len(spec.moments) > 1
        return short or self.rounds_stochastically(param)

    def is_counted(self, spec: OptimizerSpec, param: torch.dtype) -> bool:
        """Whether the state has a step count."""
        return spec.counted or self.rounds_stochastically(param)


PLAIN = Precision()


def precision_of(group: Mapping[str, Any]) -> Precision:
    """Of a param group, whose values have been checked or are to be. Old pickles lack the keys."""
    return Precision(
        bool(group.get("master_weights", False)),
        group.get("state_dtype") == torch.bfloat16,
        bool(group.get("stochastic_rounding", False)),
    )


def numbers_of(groups: list[dict[str, Any]]) -> list[int]:
    """Of every group, the number of its first parameter among those of all, as `state_dict` counts them."""
    numbers, count = [], 0
    for group in groups:
        numbers.append(count)
        count += len(group["params"])
    return numbers
