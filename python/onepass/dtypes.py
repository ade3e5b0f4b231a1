"""The dtypes of parameters and of arithmetic. Those of moments are a third thing: precision.py."""

from __future__ import annotations

import torch

PARAM_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def compute_dtype(param: torch.dtype) -> torch.dtype:
    """The dtype in which a parameter is updated: float64 for float64, float32 for all narrower ones."""
    return torch.float64 if param == torch.float64 else torch.float32
