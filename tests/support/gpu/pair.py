"""The backend on the device and the reference on the CPU, stepped side by side and compared after every step.

Like tests/support/side_by_side.py for backends on the CPU, with the same bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import truth
from compare import assert_same_bits, assert_within
from gpu.target import BACKEND, DEVICE, to_host
from oracles import Arguments
from records import Record
from side_by_side import UNITS
from tensors import FORBIDDEN, GUARD, LAYOUTS, Layout


class Held:
    """A tensor of given values on the device, in a larger buffer whose other elements must never be written.

    before: elements between the start of the buffer, which torch aligns to 512 bytes, and the tensor's first.
    """

    def __init__(self, values: Tensor, layout: Layout, before: int):
        strides = layout.strides(values.shape)
        reach = sum(st * (si - 1) for st, si in zip(strides, values.shape, strict=True))
        length = before + (reach + 1 if values.numel() else 0) + GUARD
        self.where = (tuple(values.shape), strides, before)
        buffer = torch.full((length,), FORBIDDEN, dtype=values.dtype)
        buffer.as_strided(*self.where).copy_(values)
        self.free = torch.ones(length, dtype=torch.bool)
        self.free.as_strided(*self.where).fill_(False)
        self.buffer = buffer.to(DEVICE)
        self.tensor = self.buffer.as_strided(*self.where)

    def fetch(self) -> Tensor:
        """A copy of the tensor on the host. AssertionError if anything outside of it was written."""
        buffer = to_host(self.buffer)
        touched = (buffer != FORBIDDEN) & self.free
        assert not touched.any(), f"{self.where}: written outside of the tensor, at {touched.nonzero().flatten()[:5]}"
        return buffer.as_strided(*self.where)


@dataclass(frozen=True)
class Place:
    """Layout and first element of parameters, gradients and moments."""

    p: tuple[str, int]
    g: tuple[str, int]
    m: tuple[str, int]

    @classmethod
    def alike(cls, layout: str, before: int) -> Place:
        return cls(*[(layout, before)] * 3)

    def hold(self, values: Tensor, operand: str) -> Held:
        layout, before = getattr(self, operand)
        return Held(values, LAYOUTS[layout], before)


PLACES = {
    "aligned": Place.alike("contiguous", 16),
    "unaligned alike": Place.alike("contiguous", 5),
    "unaligned unlike": Place(("contiguous", 5), ("contiguous", 2), ("contiguous", 3)),
    "gradient unaligned": Place(("contiguous", 16), ("contiguous", 1), ("contiguous", 16)),
    **{name: Place.alike(name, 7) for name in LAYOUTS if name != "contiguous"},
    "layouts mixed": Place(("transposed", 5), ("gapped", 2), ("padded", 3)),
}


class Pair:
    def __init__(self, record: Record, arguments: Arguments, starts: Sequence[Tensor], place: Place):
        self.record, self.place = record, place
        self.held = [place.hold(start, "p") for start in starts]
        self.params = [held.tensor for held in self.held]
        self.models = [start.clone() for start in starts]
        self.opt = record.make(self.params, backend=BACKEND, **arguments)
        self.reference = record.make(self.models, backend="reference", **arguments)
        self.moments: list[dict[str, Held]] = [{} for _ in starts]
        if record.name != "SGD":  # whose existing buffer is not a first one
            self._hold_moments()

    def _hold_moments(self) -> None:
        for p, own in zip(self.params, self.moments, strict=True):
            work = torch.float64 if p.dtype == torch.float64 else torch.float32
            for key in self.record.moments:
                own[key] = self.place.hold(torch.zeros(p.shape, dtype=work), "m")
                self.opt.state[p][key] = own[key].tensor

    def predict(self, counter: int) -> None:
        """Sets every gate counter; the reference's only make the keys equal."""
        for p, q in zip(self.params, self.models, strict=True):
            self.opt.state[p]["gate_counter"] = torch.tensor(counter, dtype=torch.uint8, device=DEVICE)
            self.reference.state[q]["gate_counter"] = torch.tensor(1, dtype=torch.uint8)

    def step(self, gradient_of: Callable[[Tensor], Tensor]) -> None:
        """Steps both on the gradients that `gradient_of` makes of the reference's parameters."""
        gradients = []
        for p, q in zip(self.params, self.models, strict=True):
            q.grad = gradient_of(q)
            gradients.append(self.place.hold(q.grad, "g"))
            p.grad = gradients[-1].tensor
        before = [(truth.wide(q, float), truth.wide(q.grad, float), self._wide_state(q)) for q in self.models]
        self.opt.step()
        self.reference.step()
        self.verdicts, self.wanted = self.opt.last_step(), self.reference.last_step()
        for i, (gradient, q) in enumerate(zip(gradients, self.models, strict=True)):
            assert_same_bits(gradient.fetch(), q.grad, f"gradient {i}, which is read only")
            self._compare(i, *before[i])

    def _wide_state(self, q: Tensor) -> dict[str, Any]:
        state = {key: truth.wide(value, float) for key, value in self.reference.state[q].items()}
        if self.record.name.startswith("Adam"):
            zero = truth.wide(torch.zeros_like(q), float)
            state = {"step": 0.0, "exp_avg": zero, "exp_avg_sq": zero} | state
        return state

    def _compare(self, i: int, x: Any, g: Any, state: dict[str, Any]) -> None:
        p, q = self.params[i], self.models[i]
        verdict = self.verdicts.get(p)
        projects_buffer = verdict is not None and self.opt.param_groups[0].get("project_momentum")
        found = self.held[i].fetch()
        if verdict is not None:
            self._compare_verdicts(i, verdict)
            u_size = self._compare_rounded(i, found, UNITS, x, g, state)
            if projects_buffer:
                self._compare_buffer(i, u_size)
        else:
            assert_same_bits(found, q, f"parameter {i}")
        own, other = self.opt.state.get(p, {}), self.reference.state.get(q, {})
        assert own.keys() == other.keys()
        for key in own:
            if key != "gate_counter" and not projects_buffer:
                assert_same_bits(self._fetch_state(i, key), other[key], f"parameter {i} {key}")

    def _fetch_state(self, i: int, key: str) -> Tensor:
        held = self.moments[i].get(key)
        return held.fetch() if held else to_host(self.opt.state[self.params[i]][key])

    def _compare_verdicts(self, i: int, verdict: Any) -> None:
        want = self.wanted[self.models[i]]
        assert verdict.gate == want.gate, (i, self.params[i].shape, verdict, want)
        assert verdict.cosine == pytest.approx(want.cosine, rel=1e-4, abs=1e-3, nan_ok=True)
        norms = (want.p_norm, want.g_norm)
        assert (verdict.p_norm, verdict.g_norm) == pytest.approx(norms, rel=1e-5, nan_ok=True)

    def _compare_buffer(self, i: int, u_size: Any) -> None:
        other = self.reference.state[self.models[i]]["momentum"]
        assert_within(self._fetch_state(i, "momentum"), other, u_size, UNITS, f"parameter {i} momentum")
        self.opt.state[self.params[i]]["momentum"].copy_(other)

    def _compare_rounded(self, i: int, found: Tensor, units: float, x: Any, g: Any, state: dict[str, Any]) -> Any:
        """Compares within rounding, then copies the reference's numbers, so that errors do not add up."""
        q = self.models[i]
        want = truth.step(self.record.name, self.reference.param_groups[0], x, g, state)
        # A 16-bit number is rounded once more, so it is compared with the unrounded one.
        near = want.p if q.element_size() == 2 else q
        assert_within(found, near, want.size, units, f"parameter {i}, {self.verdicts.get(self.params[i])}")
        self.params[i].data.copy_(q)
        return want.u_size
