"""How the parameters of a group and their moments are stored: the arguments master_weights, state_dtype and
stochastic_rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .blocks import SHORTEST_ROW, SMALLEST_TENSOR, SMALLEST_VECTOR, rows_of
from .dtypes import compute_dtype
from .spec import OptimizerSpec

# Bits of the moments of float32 and bfloat16 parameters, by state_dtype. State dicts have dtypes by their names.
StateDtype = torch.dtype | Literal["float32", "bfloat16", "8bit"] | None
BITS: dict[Any, int] = {None: 32, torch.float32: 32, "float32": 32, torch.bfloat16: 16, "bfloat16": 16, "8bit": 8}


class Precision(NamedTuple):
    """Of a group: whether its bfloat16 parameters have remainders, the bits of a moment (32, 16 or 8), and whether bfloat16
    parameters are rounded stochastically."""

    master_weights: bool = False
    moment_bits: int = 32
    stochastic_rounding: bool = False

    def has_master(self, param: torch.dtype) -> bool:
        """Whether a parameter is stepped as a float32 weight in two parts. Those of float32 and float64 need none."""
        return self.master_weights and param == torch.bfloat16

    def rounds_stochastically(self, param: torch.dtype) -> bool:
        return self.stochastic_rounding and param == torch.bfloat16

    def is_exact(self, param: torch.dtype) -> bool:
        """Whether the weight has more than 16 bits."""
        return param.itemsize >= 4 or self.has_master(param)

    def moment_dtype(self, p: Tensor) -> torch.dtype:
        """The dtype in which the moments of a parameter are stored: uint8 for codes of 8 bits, if `p` is large enough."""
        wide = compute_dtype(p.dtype)
        if self.moment_bits == 32 or p.dtype not in (torch.float32, torch.bfloat16):
            return wide
        if self.moment_bits == 16:
            return torch.bfloat16
        rows, length = rows_of(p.shape)
        if rows * length < (SMALLEST_VECTOR if rows == 1 else SMALLEST_TENSOR):
            return wide
        return torch.bfloat16 if length < SHORTEST_ROW else torch.uint8

    def draws(self, spec: OptimizerSpec, p: Tensor) -> bool:
        """Whether a step takes random bits: those of the parameter, or of its second moment."""
        short = self.moment_dtype(p) != compute_dtype(p.dtype) and len(spec.moments) > 1
        return short or self.rounds_stochastically(p.dtype)

    def is_counted(self, spec: OptimizerSpec, param: torch.dtype) -> bool:
        """Whether the state has a step count."""
        return spec.counted or self.rounds_stochastically(param)


PLAIN = Precision()


def precision_of(group: Mapping[str, Any]) -> Precision:
    """Of a param group, whose values have been checked or are to be. Old pickles lack the keys."""
    return Precision(
        bool(group.get("master_weights", False)),
        BITS.get(group.get("state_dtype"), 32),
        bool(group.get("stochastic_rounding", False)),
    )


def numbers_of(groups: list[dict[str, Any]]) -> list[int]:
    """Of every group, the number of its first parameter among those of all, as `state_dict` counts them."""
    numbers, count = [], 0
    for group in groups:
        numbers.append(count)
        count += len(group["params"])
    return numbers
