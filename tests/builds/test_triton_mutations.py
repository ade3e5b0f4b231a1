"""Mutation tests of the Triton rule: the checks must detect each mutant."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from onepass.triton_kernels import gate, kernels, rules

import checks
from edits import edited

# name: an expression that is once in rules.py, and its replacement.
MUTANTS: dict[str, tuple[str, str]] = {
    "maximize is ignored": ("g = number(scalars, GRAD_SCALE, p) * g", "g = tl.abs(number(scalars, GRAD_SCALE, p)) * g"),
    "the l2 decay is dropped": ("if l2 != 0:", "if l2 != l2:"),
    "v of g": ("(g * g)", "g"),
    "dampening is ignored": ("number(scalars, ONE_MINUS_DAMPENING, g) * g", "g"),
    "no eps": ("number(scalars, INV_SQRT_BC2, p) + number(scalars, EPS, p)", "number(scalars, INV_SQRT_BC2, p)"),
    "0/0 is NaN": ("D = tl.where(D == 0, INFINITY, D)", "D = D"),
    "no bias correction of v": ("D = root(v) * number(scalars, INV_SQRT_BC2, p)", "D = root(v)"),
    "nesterov is ignored": ("m = number(scalars, BETA1, p) * m + number(scalars, ONE_MINUS_BETA1, p) * g", "m = m"),
    "nesterov of SGD is ignored": ("u = g + number(scalars, MOMENTUM, p) * m", "u = m"),
    "the prox metric is dropped": ("D = D + number(scalars, METRIC_DECAY, p)", "D = D"),
    "decay is 1 - d, rounded": ("p - (d * p + ku)", "(1 - d) * p - ku"),
    "wd_ratio is ignored": ("decay * tl.load(scalars + WD_RATIO)", "decay"),
    "proximal decay is decoupled": ("tl.load(scalars + PROXIMAL) != 0, 1 + q, 1.0", "tl.load(scalars + PROXIMAL) > 9, 1 + q, 1.0"),
    "the projection is dropped": ("tl.where(gate == NONE, 0.0, s * c)", "tl.where(gate == NONE, 0.0, 0.0)"),
    "no eps in the projection": ("norm = tl.sqrt(pp) + tl.load(scalars + EPS)", "norm = tl.sqrt(pp)"),
    "0/0 is NaN in the projection": ("return pu / or_infinity(norm * norm)", "return pu / (norm * norm)"),
    "no least norm in the cosine": ("clamp_below(gg, eps * eps)", "gg"),
    "the threshold is not strict": ("return max_cosine < tl.load", "return max_cosine <= tl.load"),
    "threshold without sqrt(D)": ("tl.load(scalars + DELTA) / tl.sqrt(row_length)", "tl.load(scalars + DELTA)"),
    "the gate drops NaN": ("tl.where((a > b) | (a != a), a, b)", "tl.where(a > b, a, tl.where(b == b, b, a))"),
    "the largest drops NaN": ("tl.where(x == x, x, NAN)", "tl.where(x == x, x, 0.0)"),
    "all is recoverable": ("return (tl.abs(1 - d) >= 0.5) & (tl.abs(sc) <= 1)", "return (d == d) | (sc == sc)"),
    "corrected with the wrong k": ("k1 - r * k0", "k1 - k0"),
    "never predicted": ("tl.where(counter >= 2, CHANNEL, NONE)", "tl.where(counter >= 9, CHANNEL, NONE)"),
    "the predictor does not learn": ("return tl.where(gate == CHANNEL, up, down)", "return down"),
}  # fmt: skip

# What notices them runs first, where it would be late, which saves a minute.
NOTICED_BY = {
    "maximize is ignored": "test_matches_the_oracle",
    "the l2 decay is dropped": "test_matches_the_oracle",
    "dampening is ignored": "test_matches_the_oracle",
    "0/0 is NaN": "test_zero_parameter",
    "nesterov is ignored": "test_one_step",
    "nesterov of SGD is ignored": "test_matches_the_oracle",
    "the prox metric is dropped": "test_one_step",
    "decay is 1 - d, rounded": "test_tiny_decay_has_no_bias",
    "wd_ratio is ignored": "test_zero_parameter",
    "proximal decay is decoupled": "test_proximal_decay_keeps_the_sign",
    "no eps in the projection": "test_eps_bounds_norms_from_below",
    "0/0 is NaN in the projection": "test_zero_parameter",
    "no least norm in the cosine": "test_eps_bounds_norms_from_below",
    "the threshold is not strict": "test_threshold_is_strict",
    "threshold without sqrt(D)": "test_near_the_threshold",
    "the gate drops NaN": "test_nonfinite_numbers_close_the_gate",
    "the largest drops NaN": "test_nonfinite_numbers_close_the_gate",
    "corrected with the wrong k": "test_zero_parameter",
}


def _break(patch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Patches the functions of rules.py with this edit into the modules that import them."""
    source = edited(Path(rules.__file__).read_text(), old, new)
    module = types.ModuleType(rules.__name__)
    module.__package__ = rules.__package__
    exec(compile(source, "a mutant of rules.py", "exec"), module.__dict__)
    for name, value in vars(module).items():
        for user in (kernels, gate):
            if isinstance(value, types.FunctionType) and name in vars(user) and name != "device":
                patch.setattr(user, name, value)


def _checks() -> Iterator[partial[None]]:
    """The checks of the gate come first because they are fast."""
    yield from checks.of_the_triton_rule("triton")
    yield from reversed(list(checks.of_the_rule("triton")))


def test_checks_pass_without_a_mutation() -> None:
    assert checks.first_failure(_checks()) is None


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_of_the_triton_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _break(monkeypatch, *MUTANTS[name])
    assert checks.first_failure(_checks(), NOTICED_BY.get(name, 0)), f"undetected: {name}"


def test_what_notices_them_exists() -> None:
    assert NOTICED_BY.keys() <= MUTANTS.keys()
    assert set(NOTICED_BY.values()) <= {check.func.__name__ for check in _checks()}
