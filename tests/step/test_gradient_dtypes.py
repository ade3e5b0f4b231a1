"""float32 gradients of 16-bit parameters, which torch allows through `grad_dtype`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import onepass
from compare import assert_same_bits, assert_same_state
from oracles import Arguments
from precisions import BF16, BLOCKS, F32, PRECISIONS, run
from records import RECORDS, Record, each_backend, each_compiled, each_optimizer
from tensors import LARGE_SHAPES, LAYOUTS, SMALL_SHAPES, values

pytestmark = pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch has no grad_dtype before 2.10")

OF_16_BITS = [name for name, (dtype, _) in PRECISIONS.items() if dtype.itemsize == 2]
# Moments of 8 bits are read by code of its own.
SHAPES = [shape for shape in SMALL_SHAPES if len(shape) < 3] + [(4, 1100), (20, 65, 5)]


# A momentum buffer has no blocks.
each_variant_of_each = pytest.mark.parametrize(
    ("precision", "record", "arguments"),
    [
        pytest.param(precision, record, own, id=f"{precision}-{record.name}-{name}")
        for precision in OF_16_BITS
        for record in RECORDS.values()
        for name, own in record.variants.items()
        if len(record.moments) > 1 or precision not in BLOCKS
    ],
)


@each_compiled
@each_variant_of_each
def test_variants(backend: str, precision: str, record: Record, arguments: Arguments) -> None:
    run(precision, record, arguments, SHAPES, backend, 2, wide_gradients=True)


@each_compiled
@pytest.mark.parametrize("precision", ["nearest", "exact", "stochastic_blocks"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["AdamW", "AdamP"])
def test_layouts(backend: str, precision: str, layout: str, name: str) -> None:
    run(
        precision,
        RECORDS[name],
        RECORDS[name].typical,
        SHAPES[-6:],
        backend,
        2,
        wide_gradients=True,
        layout=LAYOUTS[layout],
    )


@each_compiled
@pytest.mark.parametrize("precision", ["nearest", "exact"])
@pytest.mark.parametrize("name", ["AdamW", "AdamP", "SGD"])
def test_large_tensors(backend: str, precision: str, name: str) -> None:
    run(precision, RECORDS[name], RECORDS[name].typical, LARGE_SHAPES[3:], backend, 1, wide_gradients=True)


@each_backend
@each_optimizer
def test_a_float32_run_on_the_exact_weights(backend: str, record: Record) -> None:
    """Exact weights with float32 gradients have the bits of a float32 run, of which nothing is lost."""
    shapes = [(9, 64), (64, 33), (70,)]
    exact, plain = ([values(shape, dtype, 1) for shape in shapes] for dtype in (BF16, BF16))
    plain = [p.float() for p in plain]
    a = record.make(exact, backend=backend, **{**record.typical, "master_weights": True})
    b = record.make(plain, backend=backend, **record.typical)
    for step in range(3):
        for p, q in zip(exact, plain, strict=True):
            p.grad_dtype = F32
            p.grad, q.grad = values(p.shape, F32, step), values(p.shape, F32, step)
        for opt in (a, b):
            opt.clip_grad_norm_(1.0)
            opt.step()
    for p, q in zip(exact, plain, strict=True):
        assert_same_bits(a.master(p), q, "weight")


@each_backend
@pytest.mark.parametrize("precision", ["nearest", "exact_short_moments", "stochastic_blocks"])
def test_the_dtype_of_gradients_changes_between_steps(backend: str, precision: str) -> None:
    """Gradients that both dtypes can hold give the same steps in either."""
    dtype, options = PRECISIONS[precision]
    made = []
    for dtypes in ((BF16, BF16, BF16), (F32, BF16, F32)):
        params = [values(shape, dtype, 1) for shape in [(16, 300), (70,)]]
        opt = onepass.AdamP(params, backend=backend, lr=1e-2, **options)
        for step, own in enumerate(dtypes):
            for p in params:
                p.grad, p.grad_dtype = None, own
                p.grad = values(p.shape, BF16, 9 + step).to(own)
            opt.step()
        for p in params:
            p.grad = None
        made.append(opt)
    assert_same_state(*made)


@pytest.mark.parametrize(
    ("dtype", "given"), [(F32, BF16), (F32, torch.float64), (torch.float64, F32), (BF16, torch.float16)]
)
def test_other_dtypes_are_refused(dtype: Any, given: Any) -> None:
    p = torch.zeros(3, dtype=dtype)
    opt = onepass.AdamW([p])
    p.grad_dtype = given
    p.grad = torch.ones(3, dtype=given)
    with pytest.raises(
        TypeError, match=rf"its gradient must be {dtype} as the parameter is(, or torch.float32)?, got {given}"
    ):
        opt.step()
    assert not p.any() and not opt.state
