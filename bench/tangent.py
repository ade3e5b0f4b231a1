"""Gradients as weights under normalization have them."""

from __future__ import annotations

from torch import Tensor


def off_rows(g: Tensor, p: Tensor) -> Tensor:
    """g without its part along each row of p, for tensors of more than one dimension."""
    if p.dim() < 2:
        return g
    p_rows, g_rows = p.flatten(1), g.flatten(1)
    for _ in range(2):  # the second time removes what the first one's rounding has left
        g_rows = g_rows - p_rows * ((p_rows * g_rows).sum(1) / p_rows.square().sum(1))[:, None]
    return g_rows.view_as(g)
