"""The decision of AdamP's gate on one parameter at one step."""

from __future__ import annotations

from dataclasses import dataclass

GATES = ("none", "channel", "layer")


@dataclass(frozen=True)
class Verdict:
    """The decision of the gate on one projected parameter at the last step.

    gate: "channel", "layer" or "none".
    cosine: max over rows of |cos(g, p)| * sqrt(row length), to be compared with delta (per-channel view).
    p_norm, g_norm: norms of the whole tensor before the step.
    corrected: whether the predicted gate was wrong, and the parameter was corrected within the same step.
    """

    gate: str
    cosine: float
    p_norm: float
    g_norm: float
    corrected: bool = False

    @property
    def settled(self) -> bool:
        """The former name of `corrected`."""
        return self.corrected
