"""Roots and quotients of the CUDA kernels (csrc/cuda/pack.cuh) against IEEE 754's.

On a GPU they begin with approximations, whose error the PTX manual bounds: 1 unit in the last place of a reciprocal,
2^-22.9 of an inverse root. Here every result is computed from the nearest float, and from the one above and below where
it is within the bound. Scaling by powers of 2 (of 4, for roots) changes no digit while nothing overflows or underflows, so
that two binades stand for all."""

from __future__ import annotations

import pytest

from emulated_backend import emulated

ONE = 0x3F800000  # the bits of 1.0
BINADE = 1 << 23
NEAREST, ABOVE, BELOW = 0, 1, 2
CHOICES = [NEAREST, ABOVE, BELOW]
# With these the approximation would have to be the nearest float: nvcc's own sequence is the same, and is right.
KNOWN_ROOTS = {float.fromhex("0x1.f82294p+0"), float.fromhex("0x1.dd26e4p+1")}
KNOWN_QUOTIENT = (1.0, float.fromhex("0x1.fffffep+0"))


@pytest.mark.parametrize("choice", CHOICES)
def test_root_of_every_float_of_two_binades(choice: int) -> None:
    wrong = set(emulated.wrong_roots(ONE, 1, 2 * BINADE, 1.0, choice))
    assert wrong == set() if choice == NEAREST else wrong <= KNOWN_ROOTS


@pytest.mark.parametrize("others", [1.0, 0.0])
def test_root_of_floats_of_every_size(others: float) -> None:
    """All bits, those of negative numbers, infinities and NaN too; a prime apart. With a zero, the pack is not in the window."""
    assert emulated.wrong_roots(0, 4_093, (1 << 32) // 4_093, others, NEAREST) == []
    assert emulated.wrong_roots(0, 1, 100_000, others, NEAREST) == []  # subnormal


@pytest.mark.parametrize("choice", CHOICES)
def test_quotients_of_two_binades(choice: int) -> None:
    """Dense divisors next to powers of 2, whose reciprocals are the hardest, and steps that share no factor with 2^32."""
    for divisor in (ONE, ONE + 1, ONE + BINADE - 1, ONE + BINADE - 2):
        wrong = emulated.wrong_quotients(ONE, 1, divisor, 0, BINADE, choice)
        assert wrong == [] if choice == NEAREST else set(wrong) <= {KNOWN_QUOTIENT}
    for step in (1, 3, 10_007):
        assert set(emulated.wrong_quotients(ONE, 1, ONE, step % BINADE, BINADE, choice)) <= {KNOWN_QUOTIENT}


def test_quotients_of_every_size() -> None:
    """Pairs of all bits: zeros, subnormal numbers, infinities, NaN, and quotients that overflow or underflow."""
    for step_a, step_b in ((2_654_435_761, 40_503), (97, 4_294_967_291), (1_000_003, 611_953)):
        assert emulated.wrong_quotients(0, step_a, 1, step_b, 4_000_000, NEAREST) == []
    # Around the edges of the windows.
    for a in (31, 32, 158, 159):
        for b in (82, 83, 146, 147):
            assert emulated.wrong_quotients(a << 23, 977, b << 23, 1_009, 40_000, NEAREST) == []
    # A first moment of zero, of either sign, by anything.
    for zero in (0, 1 << 31):
        assert emulated.wrong_quotients(zero, 0, 0, 4_093, (1 << 32) // 4_093, NEAREST) == []
