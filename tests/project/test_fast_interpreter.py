"""fast_interpreter.py gives the bits of Triton's own interpreter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from compare import digest
from drive import parameters, train
from fresh_python import in_new_python
from records import RECORDS

CASES = [
    (name, variant, dtype)
    for name, variant in (("AdamP", "quick_maximize"), ("SGDP", "project_momentum"), ("AdamProx", "decay"))
    for dtype in (torch.float32, torch.bfloat16)
]


def digests() -> list[str]:
    """Digests of the parameters and states of some optimizers."""
    return [
        digest(
            train(RECORDS[name].make(parameters(dtype), backend="triton", **RECORDS[name].variants[variant]), range(3))
        )
        for name, variant, dtype in CASES
    ]


def test_same_bits_as_without_tapes() -> None:
    plain = in_new_python("from test_fast_interpreter import digests; print(*digests())", TRITON_INTERPRET="1")
    assert plain.split() == digests()


@triton.jit
def arithmetic(x, y, to):
    a = tl.load(x + tl.program_id(0))
    b = tl.load(y + tl.program_id(0))
    at = to + 6 * tl.program_id(0)
    tl.store(at, a * a)
    tl.store(at + 1, a * b)
    tl.store(at + 2, b * b)
    tl.store(at + 3, a * 2.0)
    tl.store(at + 4, a * 3.0)
    tl.store(at + 5, tl.where(a > b, a, b))


def test_tape_is_specific_to_its_arguments() -> None:
    """A tape is specific to operands, constants and program ids."""
    x, y, to = torch.tensor([2.0, 5.0]), torch.tensor([3.0, 4.0]), torch.zeros(2, 6)
    for _ in range(2):
        arithmetic[(2,)](x, y, to)
        assert to.tolist() == [[4, 6, 9, 4, 6, 3], [25, 20, 16, 10, 15, 5]]
        to.zero_()
