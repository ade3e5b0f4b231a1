"""Mutation tests of the reference: the checks must detect each mutant."""

from __future__ import annotations

import types
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import checks
from edits import edited
from onepass import reference

# name: pairs of an expression that is once in reference.py, and its replacement.
MUTANTS: dict[str, list[tuple[str, str]]] = {
    "the decay is dropped": [("q = h.decay * h.wd_ratio if projected else h.decay", "q = 0.0")],
    "wd_ratio is ignored": [("h.decay * h.wd_ratio if projected else h.decay", "h.decay")],
    "wd_ratio applies always": [("h.decay * h.wd_ratio if projected else h.decay", "h.decay * h.wd_ratio")],
    "the l2 decay is dropped": [("g = g + h.l2 * x", "pass")],
    "the l2 decay comes without maximize": [("g = g + h.l2 * x", "g = g + h.grad_scale * h.l2 * x")],
    "maximize is ignored": [("h.grad_scale * grad.to", "grad.to")],
    "proximal decay before the update": [("return (q - s * c) / scale, s / scale", "return (q - s * c) / scale, s")],
    "proximal decay is decoupled": [("scale = 1 + q if h.proximal else 1.0", "scale = 1.0")],
    "decay is 1 - d, rounded": [("return p.sub(d * p + k * u)", "return (1 - d) * p - k * u")],
    "the prox metric is dropped": [("(D + h.metric_decay), s", "D, s")],
    "u of the last step's m": [
        ("m = stored(state", "old = m.clone()\n    m = stored(state"),
        ("return m / D, s", "return old / D, s"),
    ],
    "v of the last step": [
        ("v = stored(state", "old = v.clone()\n    v = stored(state"),
        ("square_root(v)", "square_root(old)"),
    ],
    "m without bias correction": [("s = h.lr / (1 - h.beta1**t)", "s = h.lr")],
    "v without bias correction": [(" * (1 / math.sqrt(1 - h.beta2**t))", "")],
    "v corrected without the root": [("(1 / math.sqrt(1 - h.beta2**t))", "(1 / (1 - h.beta2**t))")],
    "no step count": [('t = int(state["step"].add_(1))', 't = int(state["step"]) or 1')],
    "u of moments that are not rounded": [("return moment(state, key, x.dtype)", "return x")],
    "v is rounded to nearest": [("x if drawn is None or own.dtype == x.dtype else rounded(x, drawn >> 16)", "x")],
    "v of 8 bits is rounded by lower bits": [("drawn >> 12", "drawn & 0xFFFFF")],
    "v of 8 bits is rounded to nearest": [("None if drawn is None else drawn >> 12", "None if drawn is None else drawn * 0 + (1 << 19)")],
    "p is rounded to nearest": [("p.copy_(rounded(x, drawn & 0xFFFF))", "p.copy_(x)")],
    "p and v are rounded by the same bits": [("drawn & 0xFFFF", "drawn >> 16")],
    "eps inside the bias correction": [
        ("1 - h.beta2**t)) + h.eps", "1 - h.beta2**t)) + h.eps / math.sqrt(1 - h.beta2**t)")
    ],
    "no eps": [("1 - h.beta2**t)) + h.eps", "1 - h.beta2**t))")],
    "0/0 is NaN": [("D = torch.where(D == 0, math.inf, D)", "pass")],
    "nesterov is ignored": [("if h.nesterov:\n        m = ", "if False:\n        m = ")],
    "nesterov of SGD is ignored": [("g + h.momentum * b if h.nesterov else b", "b")],
    "dampening is ignored": [("else h.dampening", "else 0.0")],
    "the first buffer is dampened": [("0.0 if first and spec.lazy_buffer else", "")],
    "the gate is a mean": [("self.cosine.max()", "self.cosine.mean()")],
    "the gate drops NaN": [("self.cosine.max()", "self.cosine.nan_to_num(0.0).max()")],
    "the gate is always open": [('"channel" if channel < h.delta else', '"channel" if True else')],
    "the threshold is not strict": [("if channel < h.delta", "if channel <= h.delta")],
    "no layer view": [('"layer" if layer < h.delta else "none"', '"none"')],
    "the layer first": [
        ('"channel" if channel < h.delta else "layer" if layer < h.delta else',
         '"layer" if layer < h.delta else "channel" if channel < h.delta else'),
    ],
    "threshold without sqrt(D)": [("math.sqrt(max_cosine_squared) * math.sqrt(length)", "math.sqrt(max_cosine_squared)")],
    "the rows of the layer view are not counted": [("math.sqrt(rows * length)", "math.sqrt(length)")],
    "cosine without abs": [("return pg.abs() / torch", "return pg / torch")],
    "no least norm in the cosine": [("norms = pp.sqrt().clamp(min=eps) *", "norms = pp.sqrt() *")],
    "no eps in the projection": [("(pp.sqrt() + eps) ** 2", "pp.sqrt() ** 2")],
    "0/0 is NaN in the projection": [("pu / torch.where(squares == 0, math.inf, squares)", "pu / squares")],
    "0/0 is NaN in the cosine": [("pg.abs() / torch.where(norms == 0, math.inf, norms)", "pg.abs() / norms")],
    "the layer view projects row by row": [('if pending.verdict.gate == "layer":', "if False:")],
    "the projection is dropped": [("return (q - s * c) / scale, s / scale", "return q / scale, s / scale")],
    "the projection is of m": [("row_sums(x, g, u, h)", "row_sums(x, g, g, h)")],
    "one dimension is projected": [("spec.projected and p.dim() > 1", "spec.projected and p.dim() > 0")],
    "the buffer is always projected": [("if h.project_momentum and not h.nesterov", "if spec.rule == 'momentum'")],
    "the buffer is never projected": [("if h.project_momentum and not h.nesterov", "if False")],
    "16-bit arithmetic": [("return p.to(compute_dtype(p.dtype))", "return p")],
}  # fmt: skip


def _mutated(edits: list[tuple[str, str]]) -> Any:
    """reference.py with these edits."""
    source = Path(reference.__file__).read_text()
    for old, new in edits:
        source = edited(source, old, new)
    module = types.ModuleType(reference.__name__)
    module.__package__ = reference.__package__
    exec(compile(source, "a mutant of reference.py", "exec"), module.__dict__)
    return module


def test_checks_pass_without_a_mutation() -> None:
    for check in chain(checks.of_the_rule("reference"), checks.of_the_draws("reference")):
        check()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_of_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = _mutated(MUTANTS[name])
    for function in ("update", "decide", "correct"):
        monkeypatch.setattr(reference, function, getattr(mutant, function))
    found = checks.first_failure(chain(checks.of_the_rule("reference"), checks.of_the_draws("reference")))
    assert found, f"undetected: {name}"
