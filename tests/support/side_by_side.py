"""A compiled backend and the reference, stepped side by side on the same numbers and compared after every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import truth
from compare import assert_same_bits, assert_within
from oracles import Arguments
from records import Record
from tensors import LAYOUTS, Guarded, Layout

# Of the magnitude of the terms, where row sums differ: the reference's are float64. Measured: at most 5.6 for a
# corrected step, 3.6 for others.
UNITS = 6


class SideBySide:
    """The same parameters on the reference and on `backend`.

    All tensors of the compiled side, moments included, are surrounded by guards.
    """

    def __init__(
        self,
        record: Record,
        arguments: Arguments,
        starts: Sequence[Tensor],
        backend: str,
        layout: Layout = LAYOUTS["contiguous"],
        gradient_layout: Layout | None = None,
        moment_layout: Layout | None = None,
        threads: int | None = None,
    ):
        self.threads = threads
        self.record, self.layout = record, layout
        self.gradient_layout = gradient_layout or layout
        self.guarded = [Guarded(start, layout) for start in starts]
        self.params = [guarded.tensor for guarded in self.guarded]
        self.models = [start.clone() for start in starts]
        self.opt = record.make(self.params, backend=backend, **arguments)
        self.reference = record.make(self.models, backend="reference", **arguments)
        if moment_layout is not None:
            self._guard_moments(moment_layout)

    def _guard_moments(self, layout: Layout) -> None:
        """Gives the optimizer guarded moments of zeros before its first step."""
        lazy = self.record.name == "SGD"  # whose existing buffer is not a first one
        for p in self.params if not lazy else ():
            work = torch.float64 if p.dtype == torch.float64 else torch.float32
            for key in self.record.moments:
                self.guarded.append(Guarded(torch.zeros(p.shape, dtype=work), layout))
                self.opt.state[p][key] = self.guarded[-1].tensor

    def step(self, gradient_of: Callable[[Tensor], Tensor]) -> None:
        """Steps both on the gradients that `gradient_of` makes of the reference's parameters."""
        for p, q in zip(self.params, self.models, strict=True):
            q.grad = gradient_of(q)
            guarded_gradient = Guarded(q.grad, self.gradient_layout)
            p.grad = guarded_gradient.tensor
        before = [(truth.wide(q, float), truth.wide(q.grad, float)) for q in self.models]
        states = [self._wide_state(q) for q in self.models]
        before_step = torch.get_num_threads()
        torch.set_num_threads(self.threads or before_step)
        self.opt.step()
        torch.set_num_threads(before_step)
        self.reference.step()
        self.seen, self.reference_seen = self.opt.last_step(), self.reference.last_step()
        for i, (p, q) in enumerate(zip(self.params, self.models, strict=True)):
            assert_same_bits(p.grad, q.grad, f"gradient {i}, which is read only")
            self._compare(i, *before[i], states[i])
        for guarded in self.guarded:
            guarded.assert_guards_intact(f"shape {tuple(guarded.tensor.shape)}")

    def _wide_state(self, q: Tensor) -> dict:
        state = {key: truth.wide(value, float) for key, value in self.reference.state[q].items()}
        if self.record.name.startswith("Adam"):
            zero = truth.wide(torch.zeros_like(q), float)
            state = {"step": 0.0, "exp_avg": zero, "exp_avg_sq": zero} | state
        return state

    def _compare(self, i: int, x, g, state) -> None:
        p, q = self.params[i], self.models[i]
        verdict = self.seen.get(p)
        if verdict is not None:
            self._compare_projected(i, verdict, x, g, state)
        else:
            assert_same_bits(p, q, f"parameter {i}")
        exact = verdict is None or not self.opt.param_groups[0].get("project_momentum")
        own, other = self.opt.state.get(p, {}), self.reference.state.get(q, {})
        assert own.keys() == other.keys()
        for key in own:
            if exact and key != "gate_counter":
                assert_same_bits(own[key], other[key], f"parameter {i} {key}")

    def _compare_projected(self, i: int, verdict, x, g, state) -> None:
        p, q = self.params[i], self.models[i]
        want = self.reference_seen[q]
        assert verdict.gate == want.gate, (i, p.shape, verdict, want)
        u_size = self._compare_rounded(i, UNITS, x, g, state)
        if self.opt.param_groups[0].get("project_momentum"):
            own, other = self.opt.state[p]["momentum"], self.reference.state[q]["momentum"]
            assert_within(own, other, u_size, UNITS, f"parameter {i} momentum")
            own.copy_(other)

    def _compare_rounded(self, i: int, units: float, x, g, state):
        """Compares within rounding, then copies the reference's numbers, so that errors do not add up."""
        p, q = self.params[i], self.models[i]
        want = truth.step(self.record.name, self.reference.param_groups[0], x, g, state)
        # A 16-bit number is rounded once more, so it is compared with the unrounded one.
        near = want.p if p.element_size() == 2 else q
        assert_within(p, near, want.size, units, f"parameter {i}, {self.seen.get(p)}")
        p.data.copy_(q)
        return want.u_size
