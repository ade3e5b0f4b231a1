"""Gate statistics of the last step: tensors on the device, and numbers once they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .verdict import GATES, Verdict

NUMBERS = ("gate", "cosine", "p_norm", "g_norm", "corrected")


class GateStatistics(NamedTuple):
    """Gate statistics of some parameters: one element of every tensor for each, on the parameters' device."""

    params: list[Tensor]
    gate: Tensor
    cosine: Tensor
    p_norm: Tensor
    g_norm: Tensor
    corrected: Tensor


def gate_statistics_on_host(verdicts: Mapping[Tensor, Verdict]) -> list[GateStatistics]:
    """Gate statistics from verdicts that are numbers; empty if there are none."""
    if not verdicts:
        return []
    params, each = list(verdicts), verdicts.values()

    def numbers(name: str) -> Tensor:
        return torch.tensor([getattr(v, name) for v in each], dtype=torch.float64, device=params[0].device)

    gate = torch.tensor([GATES.index(v.gate) for v in each], dtype=torch.int32, device=params[0].device)
    return [
        GateStatistics(
            params, gate, numbers("cosine"), numbers("p_norm"), numbers("g_norm"), numbers("corrected").bool()
        )
    ]


class LastStep(Mapping[Tensor, Verdict]):
    """Gate statistics of AdamP and SGDP at one step: a snapshot, which later steps do not change.

    As a mapping it has a `Verdict` for each projected parameter that was stepped. The first one that is read waits for
    the device, and fetches all of them at once. The tensors wait for nothing; they have one element for each of
    `params`, in that order, on the device of the first of them:

    gate: int32, the position of the gate in `onepass.GATES`, ("none", "channel", "layer").
    cosine: float64, max over rows of |cos(g, p)| * sqrt(row length), to be compared with delta (per-channel view).
    p_norm, g_norm: float64, norms of the whole parameter, before the step, and of its gradient.
    corrected: bool, whether the predicted gate was wrong, and the parameter was corrected within the same step.

    Where an optimizer steps several devices, the tensors are brought together on one, which waits if one is the CPU.
    """

    def __init__(self, parts: Iterable[GateStatistics], groups: Iterable[Mapping[str, Any]] = ()):
        self._parts, self._groups = list(parts), list(groups)
        self.params = [p for part in self._parts for p in part.params]
        self._places = {p: place for place, p in enumerate(self.params)}

    # ------------------------------------------------------------------ tensors

    @property
    def gate(self) -> Tensor:
        return self._together("gate", torch.int32)

    @property
    def cosine(self) -> Tensor:
        return self._together("cosine", torch.float64)

    @property
    def p_norm(self) -> Tensor:
        return self._together("p_norm", torch.float64)

    @property
    def g_norm(self) -> Tensor:
        return self._together("g_norm", torch.float64)

    @property
    def corrected(self) -> Tensor:
        return self._together("corrected", torch.bool)

    @property
    def settled(self) -> Tensor:
        """The former name of `corrected`."""
        return self.corrected

    def _together(self, name: str, dtype: torch.dtype) -> Tensor:
        parts: list[Tensor] = [getattr(part, name) for part in self._parts]
        if not parts:
            return torch.empty(0, dtype=dtype, device="cpu")
        if len(parts) == 1:
            return parts[0]
        return torch.cat([part.to(self.params[0].device) for part in parts])

    # ------------------------------------------------------------------ numbers

    @cached_property
    def _verdicts(self) -> list[Verdict]:
        if not self.params:
            return []
        rows = torch.stack([getattr(self, name).double() for name in NUMBERS], dim=1).tolist()
        return [Verdict(GATES[int(gate)], cosine, p, g, bool(corrected)) for gate, cosine, p, g, corrected in rows]

    def __getitem__(self, p: Tensor) -> Verdict:
        if p not in self._places:
            raise KeyError(
                "no gate was decided for this parameter at the last step, or it was not stepped: see `params`"
            )
        return self._verdicts[self._places[p]]

    def __contains__(self, p: object) -> bool:
        return p in self._places

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(p.shape)) for p in self.params)
        return f"LastStep: gates of {len(self)} parameters, of shapes [{shapes}]"

    def flat(self, named_parameters: Iterable[tuple[str, Tensor]] | None = None) -> dict[str, float]:
        """Every number under a name, as loggers of scalars take them: {"conv1.weight/cosine": 0.02, ...}.

        Each parameter has "/gate" (its position in GATES), "/cosine", "/p_norm", "/g_norm" and "/corrected" (0.0 or 1.0).
        named_parameters: `model.named_parameters()`. A parameter that is not in it goes by the name under which it was
        given to the optimizer, with "group1." before it if another has that name too, or else by its place, as
        "group0.param3". One that is in no group any more is "removed2", by its place in `params`.
        """
        names = self._names()
        names.update((p, name) for name, p in named_parameters or ())
        out = {}
        for place, (p, verdict) in enumerate(self.items()):
            name = names.get(p, f"removed{place}")
            out[f"{name}/gate"] = float(GATES.index(verdict.gate))
            for number in NUMBERS[1:]:
                out[f"{name}/{number}"] = float(getattr(verdict, number))
            out[f"{name}/settled"] = float(verdict.corrected)
        return out

    def _names(self) -> dict[Tensor, str]:
        count = Counter(name for group in self._groups for name in group.get("param_names", ()))
        names = {}
        for number, group in enumerate(self._groups):
            given = group.get("param_names") or ()
            if len(given) != len(group["params"]):
                given = [f"param{place}" for place in range(len(group["params"]))]
            for p, name in zip(group["params"], given, strict=True):
                names[p] = name if count[name] == 1 else f"group{number}.{name}"
        return names
