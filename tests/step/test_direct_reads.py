"""Tensors that were moved or changed in place, read directly and through DLPack's exchange table; the proof of direct reads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import assert_same_bits, assert_same_state
from drive import SHAPES, feed, gradient_at, parameters, parameters_of, train
from onepass import torch_compat
from onepass.backend import direct_reads
from records import RECORDS, Record, each_compiled
from tensors import values

HOSTS = ["cpu", "emulated"]
each_host = pytest.mark.parametrize("backend", HOSTS)


@pytest.fixture(params=["directly", "through the table"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a step reads tensors. The second is that of a torch which fails the proof."""
    if request.param != "directly":
        monkeypatch.setattr(direct_reads, "FOUND", {})


def test_this_torch_is_read_directly() -> None:
    assert direct_reads.find().keys() == direct_reads.FOUND.keys() >= {"offset", *torch_compat.TENSOR_READS}


# ------------------------------------------------------------------ changes between steps


def _other(t: Tensor) -> Tensor:
    """A tensor of the same values elsewhere, in another layout where there can be one."""
    return t.detach().clone().movedim(0, -1).contiguous().movedim(-1, 0) if t.dim() > 1 else t.detach().clone()


def by_data(t: Tensor) -> Tensor:
    old = t.data
    t.data = _other(t)
    return old


def by_set(t: Tensor) -> Tensor:
    old = t.data
    with torch.no_grad():
        t.set_(_other(t))  # type: ignore[call-overload]
    return old


def by_swap(t: Tensor) -> Tensor:
    other = _other(t).requires_grad_(t.requires_grad)
    torch.utils.swap_tensors(t, other)
    return other


each_change = pytest.mark.parametrize("change", [by_data, by_set, by_swap])
Change = Callable[[Tensor], Tensor]  # moves a tensor, and returns one with its old memory


def _step_beside(opt: Any, move: Callable[[], list[Tensor]], other: Any, time: int) -> None:
    """Steps both at one time, after the gradients are there and `move` was called on those of `opt`. What is in the old memory
    is not read, and not written."""
    feed(other, time)
    for p, q in zip(parameters_of(opt), parameters_of(other), strict=True):
        if p.grad is None:
            p.grad = q.grad.clone()
        else:
            p.grad.copy_(q.grad)
    old = move()
    for t in old:
        t.detach().fill_(77)
    opt.step()
    other.step()
    for t in old:
        assert torch.equal(t, torch.full_like(t, 77)), "the old memory"
    assert_same_state(opt, other)


def _pair(name: str, backend: str) -> tuple[Any, Any]:
    """Two optimizers after the same two steps. The other is the reference where it has the same bits: it takes sums in another
    order."""
    record = RECORDS[name]
    others = backend if record.projected else "reference"
    return tuple(
        train(record.make(parameters(), backend=each, **record.typical), range(2)) for each in (backend, others)
    )


@each_host
@each_change
@pytest.mark.parametrize("name", ["AdamW", "AdamP"])
def test_moved_parameters(backend: str, change: Change, name: str, way: None) -> None:
    opt, other = _pair(name, backend)

    def move() -> list[Tensor]:
        old = []
        for p in parameters_of(opt):
            gradient, p.grad = p.grad, None
            old.append(change(p))
            p.grad = gradient
        return old

    for time in range(2, 5):
        _step_beside(opt, move, other, time)


@each_host
@each_change
@pytest.mark.parametrize("name", ["AdamW", "AdamP"])
def test_moved_gradients(backend: str, change: Change, name: str, way: None) -> None:
    """The same object every time."""
    opt, other = _pair(name, backend)
    gradients = [p.grad for p in parameters_of(opt)]

    def move() -> list[Tensor]:
        old = []
        for p, gradient in zip(parameters_of(opt), gradients, strict=True):
            p.grad = None
            old.append(change(gradient))
            p.grad = gradient
        return old

    for time in range(2, 5):
        _step_beside(opt, move, other, time)
    assert all(p.grad is gradient for p, gradient in zip(parameters_of(opt), gradients, strict=True))


@each_host
@each_change
@pytest.mark.parametrize("name", ["AdamW", "AdamP", "SGDP"])
def test_moved_state(backend: str, change: Change, name: str, way: None) -> None:
    """Moments, step counts and gate counters."""
    opt, other = _pair(name, backend)
    for time in range(2, 5):
        _step_beside(opt, lambda: [change(t) for own in opt.state.values() for t in own.values()], other, time)


@each_host
@pytest.mark.parametrize("name", ["AdamW", "AdamP"])
def test_replaced_state(backend: str, name: str, way: None) -> None:
    opt, other = _pair(name, backend)

    def move() -> list[Tensor]:
        old = []
        for own in opt.state.values():
            for key, t in list(own.items()):
                old.append(t)
                own[key] = _other(t)
        return old

    for time in range(2, 5):
        _step_beside(opt, move, other, time)


@each_host
@pytest.mark.parametrize("name", ["AdamW", "AdamP"])
def test_loaded_state(backend: str, name: str, way: None) -> None:
    opt, other = _pair(name, backend)

    def move() -> list[Tensor]:
        old = [t for own in opt.state.values() for t in own.values()]
        opt.load_state_dict(opt.state_dict())
        now = [t for own in opt.state.values() for t in own.values()]
        return [t for t, u in zip(old, now, strict=True) if t.data_ptr() != u.data_ptr()]

    for time in range(2, 5):
        _step_beside(opt, move, other, time)


@each_host
def test_other_strides_at_the_same_address(backend: str, way: None) -> None:
    """A square tensor that is transposed in place has its address, its shape and its dtype."""
    record = RECORDS["AdamW"]
    p, q = (values((6, 6), torch.float32, 1) for _ in range(2))
    opt, other = (record.make([t], backend=each, **record.typical) for t, each in ((p, backend), (q, "reference")))
    for time in range(4):
        p.grad = gradient_at(p, time)
        q.grad = p.grad.clone()
        for t in (p, p.grad, *opt.state[p].values()):
            if t.dim() == 2:
                t.t_()
        for t in (q, *other.state[q].values()):
            if t.dim() == 2:
                t.copy_(t.t().clone())
        q.grad.copy_(q.grad.t().clone())
        opt.step()
        other.step()
        assert_same_state(opt, other)


@each_host
@pytest.mark.parametrize("key", ["exp_avg", "step"])
def test_another_dtype_at_the_same_address(backend: str, key: str, way: None) -> None:
    """Of the same width, and so of the same shape."""
    opt, _ = _pair("AdamW", backend)
    p = parameters_of(opt)[0]
    before = p.detach().clone()
    moment = opt.state[p][key]
    address = moment.data_ptr()
    moment.data = moment.data.view(torch.int32)
    assert moment.data_ptr() == address
    feed(opt, 2)
    with pytest.raises(ValueError, match=f"its state '{key}' must be"):
        opt.step()
    assert_same_bits(p, before, "the parameter")


# ------------------------------------------------------------------ the sign of a gradient


def as_new(gradient: Tensor, negated: Tensor) -> Tensor:
    return negated


def as_data(gradient: Tensor, negated: Tensor) -> Tensor:
    gradient.data = negated
    return gradient


def as_swapped(gradient: Tensor, negated: Tensor) -> Tensor:
    torch.utils.swap_tensors(gradient, negated)
    return gradient


@each_compiled
@pytest.mark.parametrize("put", [as_new, as_data, as_swapped])
def test_sign_changes_at_the_same_address(backend: str, put: Callable[[Tensor, Tensor], Tensor], way: None) -> None:
    """Neither a new object nor a new address says so."""
    record = RECORDS["AdamW"]
    p, q = (values((6, 8), torch.float32, 1) for _ in range(2))
    opt, other = (record.make([t], backend=each, **record.typical) for t, each in ((p, backend), (q, "reference")))
    buffer = torch.complex(values(p.shape, p.dtype, 3), values(p.shape, p.dtype, 4))
    gradient = buffer.imag
    address = gradient.data_ptr()
    for negated in (False, False, True, True, False):
        p.grad = None
        gradient = put(gradient, buffer.conj().imag if negated else buffer.imag)
        p.grad = gradient
        assert p.grad.is_neg() == negated and p.grad.data_ptr() == address
        q.grad = p.grad.resolve_neg().clone()
        opt.step()
        other.step()
        assert_same_bits(p, q, "parameter")


# ------------------------------------------------------------------ what is not kept


@each_host
def test_nothing_is_held(backend: str, way: None) -> None:
    """A bound tensor has no owner that torch knows of but its Python object, so that it may be swapped, and goes with it."""
    opt, _ = _pair("AdamP", backend)
    tensors = [*parameters_of(opt), *(t for own in opt.state.values() for t in own.values())]
    assert len(tensors) > 3 * len(SHAPES)
    for p in parameters_of(opt):
        p.grad = None
    assert [t._use_count() for t in tensors] == [1] * len(tensors)


def test_the_handle_of_the_proof_is_freed() -> None:
    t = torch.empty(1)
    with torch_compat.handle_of(t) as handle:
        assert handle
        assert t._use_count() == 2
    assert t._use_count() == 1


# ------------------------------------------------------------------ the proof


@pytest.mark.parametrize("name", torch_compat.TENSOR_READS)
def test_torch_without_a_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_compat.TENSOR_READS, name, "aoti_torch_no_such_function")
    assert direct_reads.find() == {}


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("data_ptr", "aoti_torch_get_storage_offset"),
        ("sizes", "aoti_torch_get_strides"),
        ("strides", "aoti_torch_get_sizes"),
        ("dim", "aoti_torch_get_numel"),
        ("device_type", "aoti_torch_get_dtype"),
        ("is_neg", "_ZN2at6native7is_conjERKNS_6TensorE"),
    ],
)
def test_function_that_says_something_else(name: str, symbol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_compat.TENSOR_READS, name, symbol)
    assert direct_reads.find() == {}


def test_tensor_that_is_not_found_in_its_object(monkeypatch: pytest.MonkeyPatch) -> None:
    handle_of, other = torch_compat.handle_of, torch.empty(1)

    @contextmanager
    def of_another(t: Tensor) -> Any:
        with handle_of(other) as handle:
            yield handle

    monkeypatch.setattr(direct_reads, "handle_of", of_another)
    assert direct_reads.find() == {}


@each_host
@pytest.mark.parametrize("wrong", [{"float32": "float16", "float16": "float32"}, {"sizes": "strides"}])
def test_proof_that_does_not_hold_for_what_is_bound(
    backend: str, wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof has no tensors of other devices: every binding compares with the table too."""
    found = {key: direct_reads.FOUND[value] for key, value in wrong.items()}
    monkeypatch.setattr(direct_reads, "FOUND", {**direct_reads.FOUND, **found})
    assert_same_state(*_pair("AdamW", backend))


@each_host
def test_subclasses(backend: str, way: None) -> None:
    """Any class of tensors that is not a wrapper is stepped."""

    class Mine(torch.Tensor):
        pass

    record: Record = RECORDS["AdamP"]
    p, q = parameters(), parameters()
    mine = [torch.nn.Parameter(t.detach().as_subclass(Mine)) for t in p]
    assert all(isinstance(t, Mine) for t in mine)
    opt, other = (record.make(params, backend=backend, **record.typical) for params in (mine, q))
    for time in range(3):
        feed(other, time)
        for t, u in zip(mine, q, strict=True):
            t.grad = u.grad.clone().as_subclass(Mine)
        opt.step()
        other.step()
    for t, u in zip(mine, q, strict=True):
        assert_same_bits(t.as_subclass(torch.Tensor), u, "parameter")
