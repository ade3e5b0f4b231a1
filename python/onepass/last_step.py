"""What the gates saw at the last step, as tensors that nobody has waited for and as numbers once somebody reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reference import Verdict

GATES = ("none", "channel", "layer")
NUMBERS = ("gate", "cosine", "p_norm", "g_norm", "settled")


class Seen(NamedTuple):
    """What one backend tells of its parameters: of each an element of every tensor, on the parameters' device."""

    params: list[Tensor]
    gate: Tensor
    cosine: Tensor
    p_norm: Tensor
    g_norm: Tensor
    settled: Tensor


def seen_on_host(verdicts: Mapping[Tensor, Verdict]) -> list[Seen]:
    """Of a backend that has its verdicts as numbers; empty if there are none."""
    if not verdicts:
        return []
    params, each = list(verdicts), verdicts.values()

    def numbers(name: str) -> Tensor:
        return torch.tensor([getattr(v, name) for v in each], dtype=torch.float64, device=params[0].device)

    gate = torch.tensor([GATES.index(v.gate) for v in each], dtype=torch.int32, device=params[0].device)
    return [Seen(params, gate, numbers("cosine"), numbers("p_norm"), numbers("g_norm"), numbers("settled").bool())]


def rows_of(table: Tensor, rows: Iterable[int]) -> Tensor:
    """A copy of some rows. No index is sent to the device, which would wait for it."""
    each = table.unbind()
    return torch.stack([each[row] for row in rows])


Judged = list[tuple[int, Tensor]]  # the tensors that a step has judged, by number in their plan, and their parameters


class Taken:
    """The tensors that the last step which was taken has judged.

    Whether a scaled step was taken only its device knows. So the newest steps are kept, oldest first, each with the tensor
    that tells (None if it was taken), and nobody asks as long as all of them have judged the same tensors.
    """

    LONGEST = 8

    def __init__(self, judged: Judged):
        self.steps: list[tuple[Tensor | None, Judged]] = [(None, judged)]

    def add(self, judged: Judged, found_inf: Tensor) -> None:
        self.steps = [*self.steps, (found_inf, judged)][-self.LONGEST :]
        numbers = [[number for number, _ in each] for _, each in self.steps]
        if numbers.count(numbers[0]) == len(numbers):
            self.steps = [(None, judged)]

    def last(self) -> Judged:
        """Waits for the device if the steps differ."""
        while self.steps and self.steps[-1][0] is not None and float(self.steps[-1][0]) != 0:
            self.steps.pop()
        self.steps = [(None, self.steps[-1][1] if self.steps else [])]
        return self.steps[0][1]


class LastStep(Mapping[Tensor, Verdict]):
    """What the gates of AdamP and SGDP saw at a step: a snapshot, which later steps do not change.

    As a mapping it has a `Verdict` for each projected parameter that was stepped. The first one that is read waits for
    the device, and fetches all of them at once. The tensors wait for nothing; they have one element for each of
    `params`, in that order, and lie on the device of the first of them:

    gate: int32, the position of the gate in `onepass.GATES`, ("none", "channel", "layer").
    cosine: float64, max over rows of |cos(g, p)| * sqrt(row length), to be read against delta (per-channel view).
    p_norm, g_norm: float64, norms of the whole parameter, before the step, and of its gradient.
    settled: bool, whether the prediction was wrong and the parameter was corrected afterwards.

    Where an optimizer steps several devices, the tensors are brought together on one, which waits if one is the CPU.
    """

    def __init__(self, seen: Iterable[Seen], groups: Iterable[Mapping[str, Any]] = ()):
        self._seen, self._groups = list(seen), list(groups)
        self.params = [p for part in self._seen for p in part.params]
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
    def settled(self) -> Tensor:
        return self._together("settled", torch.bool)

    def _together(self, name: str, dtype: torch.dtype) -> Tensor:
        parts: list[Tensor] = [getattr(part, name) for part in self._seen]
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
        return [Verdict(GATES[int(gate)], cosine, p, g, bool(settled)) for gate, cosine, p, g, settled in rows]

    def __getitem__(self, p: Tensor) -> Verdict:
        if p not in self._places:
            raise KeyError("the parameter was not projected at the last step, or not stepped: see `params`")
        return self._verdicts[self._places[p]]

    def __contains__(self, p: object) -> bool:
        return p in self._places

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(p.shape)) for p in self.params)
        return f"LastStep of {len(self)} projected parameters of shapes [{shapes}]"

    def flat(self, named_parameters: Iterable[tuple[str, Tensor]] | None = None) -> dict[str, float]:
        """Every number under a name, as loggers of scalars take them: {"conv1.weight/cosine": 0.02, ...}.

        Each parameter has "/gate" (its position in GATES), "/cosine", "/p_norm", "/g_norm" and "/settled" (0.0 or 1.0).
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
