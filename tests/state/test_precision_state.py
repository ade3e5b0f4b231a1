"""The arguments state_dtype, stochastic_rounding and seed, and the state that they make: what is refused, kept and converted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from compare import assert_same_bits, assert_same_state
from onepass.blocks import decoded, scale_shape
from onepass.masters import MASTER
from precisions import BF16, BLOCKS, F32, PRECISIONS, SHAPES, SHORT, train, trained
from records import RECORDS, Record, each_backend, each_compiled, each_optimizer
from tensors import Guarded, values

# Large enough for blocks, and beside them a tensor that is not.
LARGE = ((16, 300), (16, 300), (5, 1000), (70,))
# Optimizers with each precision that they take.
each_precision_of_each = pytest.mark.parametrize(
    ("precision", "name"),
    [
        (precision, name)
        for precision in SHORT | BLOCKS
        for name, r in RECORDS.items()
        if precision in SHORT or len(r.moments) > 1
    ],
)


def shapes_of(precision: str | None) -> Any:
    return LARGE if precision in BLOCKS else SHAPES


def moments_of(opt: Any, p: Tensor) -> list[Tensor]:
    """In float32."""
    own = opt.state[p]
    return [
        decoded(own[key], own[key + "_scale"], key == "exp_avg") if own[key].dtype == torch.uint8 else own[key].float()
        for key in ("exp_avg", "exp_avg_sq")
    ]


@each_optimizer
def test_what_is_refused(record: Record) -> None:
    def make(dtype: torch.dtype, **more: Any) -> None:
        record.make([torch.zeros(3, dtype=dtype)], **{"lr": 1e-3, **more})

    for bad in ("bf16", torch.float16, torch.float64, 8, ["8bit"]):
        with pytest.raises(
            ValueError, match=r"param group 0: state_dtype must be None, torch.float32, torch.bfloat16 or '8bit', got"
        ):
            make(F32, state_dtype=bad)
    with_blocks = [dict(state_dtype="8bit")] * (len(record.moments) > 1)
    for options in (dict(state_dtype=F32), dict(state_dtype=BF16), *with_blocks):
        with pytest.raises(ValueError, match=r"parameter 0 of group 0.*state_dtype=.* is not for torch.float64"):
            make(torch.float64, **options)
    if not with_blocks:
        with pytest.raises(
            ValueError, match=r"state_dtype='8bit' is for the moments of Adam and its kin; the momentum buffer"
        ):
            make(F32, state_dtype="8bit")
    for options in (dict(state_dtype=BF16), dict(stochastic_rounding=True), *with_blocks):
        with pytest.raises(
            TypeError, match=rf"{next(iter(options))}=.*for torch.float16; convert the parameter to torch.bfloat16"
        ):
            make(torch.float16, **options)
    with pytest.raises(ValueError, match=r"stochastic_rounding=True has nothing to round beside master_weights=True"):
        make(BF16, stochastic_rounding=True, master_weights=True)
    for seed in (1.5, "1", None, True, torch.tensor(1)):
        with pytest.raises(TypeError, match=r"param group 0: seed must be an int, got"):
            make(BF16, seed=seed)
    for seed in (-1, 1 << 64):
        with pytest.raises(ValueError, match=r"param group 0: seed must be at least 0 and below 2\*\*64, got"):
            make(BF16, seed=seed)
    make(torch.float16, state_dtype=F32)
    make(torch.float64, stochastic_rounding=True)
    make(F32, stochastic_rounding=True, seed=(1 << 64) - 1)


@each_backend
@each_precision_of_each
def test_resumed_is_unbroken(backend: str, precision: str, name: str) -> None:
    record = RECORDS[name]
    opt, params = trained(precision, backend, 2, name, shapes_of(precision))
    again = [p.clone() for p in params]
    _, options = PRECISIONS[precision]
    other = record.make(again, backend=backend, **{**record.typical, **options, "seed": 5})
    other.load_state_dict(copy.deepcopy(opt.state_dict()))  # the seed is part of it
    train(opt, params, 2, 2)
    train(other, again, 2, 2)
    assert_same_state(opt, other)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_checkpoint_of_another_precision_is_converted(backend: str) -> None:
    for saved in (*SHORT, *BLOCKS, None):
        for mine in (*SHORT, *BLOCKS, None):
            plain = (F32, {})
            (dtype, options), (own_dtype, own) = PRECISIONS.get(saved, plain), PRECISIONS.get(mine, plain)
            p = values((16, 300), dtype, 1)
            opt = onepass.AdamW([p], backend=backend, **options)
            p.grad = values((16, 300), dtype, 2)
            opt.step()
            q = opt.master(p).to(own_dtype)
            other = onepass.AdamW([q], backend=backend, **own)
            other.load_state_dict(opt.state_dict())
            group = other.param_groups[0]
            assert group["state_dtype"] == own.get("state_dtype")
            assert group["stochastic_rounding"] is own.get("stochastic_rounding", False)
            assert group["seed"] == options.get("seed", 0)
            state = other.state[q]
            asked = own.get("state_dtype") or F32
            assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == (torch.uint8 if asked == "8bit" else asked)
            assert ("exp_avg_scale" in state) == ("exp_avg_sq_scale" in state) == (asked == "8bit")
            for x, y in zip(moments_of(other, q), moments_of(opt, p), strict=True):
                if asked != "8bit" or options.get("state_dtype") == "8bit":
                    assert_same_bits(x, y.to(F32 if asked == "8bit" else asked).float(), "moment")
                else:  # 3 bits of fraction, and nothing below 2^-15 of the largest
                    assert bool(((x - y).abs() <= y.abs() / 16 + y.abs().max() * 2.0**-14).all())
                    assert bool(((x == 0) <= (y.abs() <= y.abs().max() * 2.0**-14)).all())
            assert (MASTER in state) == (MASTER in opt.state[p] and own.get("master_weights", False))
            q.grad = torch.ones_like(q)
            other.step()


def test_moments_of_another_dtype_are_refused_at_a_step() -> None:
    opt, params = trained("short_moments")
    before = [p.clone() for p in params]
    opt.state[params[0]]["exp_avg"] = opt.state[params[0]]["exp_avg"].float()
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"'exp_avg' must be a dense torch.bfloat16 tensor .*load_state_dict"):
        opt.step()
    for p, q in zip(params, before, strict=True):
        assert_same_bits(p, q, "parameter")


def test_state_dtype_is_changed_by_loading_what_there_is() -> None:
    opt, params = trained("short_moments")
    opt.param_groups[0]["state_dtype"] = None
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"or state_dtype was changed, opt.load_state_dict\(opt.state_dict\(\)\)"):
        opt.step()
    opt.load_state_dict(opt.state_dict())
    opt.step()
    assert opt.state[params[0]]["exp_avg"].dtype == F32


@each_backend
def test_stochastic_rounding_changes_between_steps(backend: str) -> None:
    """SGD has a step count from then on; without it, none is needed."""
    p = values((9, 33), BF16, 1)
    opt = onepass.SGD([p], lr=0.1, momentum=0.9, backend=backend)
    for on in (False, True, False, True):
        opt.param_groups[0]["stochastic_rounding"] = on
        p.grad = torch.ones_like(p)
        opt.step()
    assert float(opt.state[p]["step"]) == 2


def test_the_state_dict_for_torch() -> None:
    for name, theirs in (("AdamW", torch.optim.AdamW), ("SGD", torch.optim.SGD)):
        for precision in SHORT | BLOCKS if name == "AdamW" else SHORT:
            opt, params = trained(precision, record=name, shapes=shapes_of(precision))
            saved = opt.state_dict_for("torch")
            if name == "AdamW":
                for want, given in zip(moments_of(opt, params[0]), ("exp_avg", "exp_avg_sq"), strict=True):
                    assert_same_bits(saved["state"][0][given].float(), want, given)
            other = theirs([p.clone() for p in params], lr=0.1)
            other.load_state_dict(saved)
            for p in other.param_groups[0]["params"]:
                p.grad = torch.ones_like(p)
            other.step()
            assert set(other.state_dict()["state"][0]) <= {"step", "exp_avg", "exp_avg_sq", "momentum_buffer"}


@each_compiled
def test_moments_that_are_not_aligned_as_their_parameter(backend: str) -> None:
    for precision, (dtype, options) in (SHORT | BLOCKS).items():
        p = values((40, 128), dtype, 1)
        q, made = p.clone(), []
        for x, moved in ((p, False), (q, True)):
            opt = onepass.AdamW([x], backend=backend, **options)
            for seed in range(2):
                x.grad = values(x.shape, dtype, seed)
                opt.step()
                if moved:
                    own = opt.state[x]
                    own["exp_avg"] = Guarded(own["exp_avg"]).tensor
            made.append(opt)
        assert_same_bits(p, q, precision)
        assert_same_bits(made[0].state[p]["exp_avg_sq"], made[1].state[q]["exp_avg_sq"], precision)


def test_codes_without_their_scales_are_refused() -> None:
    opt, params = trained("blocks", shapes=LARGE)
    before, saved = [p.clone() for p in params], opt.state_dict()
    for p in params:
        p.grad = torch.ones_like(p)
    own = opt.state[params[0]]
    scales = own["exp_avg_sq_scale"]
    for bad in (None, scales.float(), scales[:, :1], scales.t().contiguous().t(), scales.flatten()):
        own["exp_avg_sq_scale"] = bad
        with pytest.raises(
            ValueError, match=r"its state 'exp_avg_sq_scale' must be a contiguous torch.uint8 tensor of shape \(16, 2\)"
        ):
            opt.step()
        entry = saved["state"][0] | {"exp_avg_sq_scale": bad}
        if bad is not None and bad.shape == scales.shape and bad.dtype == torch.uint8:
            continue  # a copy is made, which is contiguous
        with pytest.raises(
            ValueError, match=r"'exp_avg_sq' of parameter 0 is torch.uint8, codes of 8 bits, so 'exp_avg_sq_scale'"
        ):
            opt.load_state_dict({**saved, "state": saved["state"] | {0: entry}})
    for p, q in zip(params, before, strict=True):
        assert_same_bits(p, q, "parameter")


@each_backend
def test_moments_are_of_8_bits_where_tensors_are_large(backend: str) -> None:
    """As the whole tensor is: 4,096 elements, rows of 64, and 65,536 in a single row."""
    sizes = {
        (65535,): F32, (65536,): torch.uint8, (4096, 1): BF16, (66, 63): BF16, (64, 63): F32, (64, 64): torch.uint8,
        (1, 65535): F32, (1, 65536): torch.uint8, (2, 2048): torch.uint8, (100, 3, 3, 7): BF16, (64, 8, 8): torch.uint8,
    }  # fmt: skip
    params = [values(shape, F32, 1) for shape in sizes]
    for name in ("AdamW", "AdamP"):
        opt = RECORDS[name].make(params, lr=0.1, state_dtype="8bit", backend=backend)
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
        for p, dtype in zip(params, sizes.values(), strict=True):
            own = opt.state[p]
            assert own["exp_avg"].dtype == own["exp_avg_sq"].dtype == dtype
            scales = [own[key].shape for key in own if key.endswith("_scale")]
            assert scales == ([scale_shape(p.shape)] * 2 if dtype == torch.uint8 else [])
