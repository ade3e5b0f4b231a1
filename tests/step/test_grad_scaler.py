"""torch.amp.GradScaler: the step unscales gradients, and is skipped if they overflowed."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from compare import Snapshot, assert_same_bits, assert_same_state
from drive import feed, parameters, parameters_of, through_a_file, train
from emulated_backend import emulated, plan_of
from records import BACKENDS, RECORDS, Record, each_backend, each_optimizer

SCALE = 2.0**12
# Backends that count steps on the device.
each_device = pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("reference", "cpu")])


def make(record: Record, backend: str = "cpu", **changed: Any) -> Any:
    return record.make(parameters(), backend=backend, **{**record.typical, **changed})


def scaler_of(scale: float = SCALE) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)


@contextlib.contextmanager
def only_the_device_knows() -> Iterator[None]:
    """Only the device knows which steps are skipped, as on a GPU: here the host could read its own tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onepass.scaling.Scaling, "known_to_skip", False)
        yield


def feed_scaled(opt: Any, time: int, scaler: torch.amp.GradScaler, overflow: bool = False) -> None:
    """Gradients of a scaled loss, as a backward pass leaves them."""
    scaler.scale(torch.zeros(()))  # initializes the scale
    feed(opt, time, scaler.get_scale())
    if overflow:
        parameters_of(opt)[0].grad[1, 2] = math.inf


def train_scaled(opt: Any, times: Iterable[int], scaler: torch.amp.GradScaler | None = None) -> Any:
    scaler = scaler or scaler_of()
    for time in times:
        feed_scaled(opt, time, scaler)
        scaler.step(opt)
        scaler.update()
    return opt


# ------------------------------------------------------------------ unscaling


@each_backend
@each_optimizer
def test_same_bits_as_unscaled(record: Record, backend: str) -> None:
    """The scale is a power of two, as in scalers: the bits are those of a run without."""
    scaled = train_scaled(make(record, backend), range(5))
    plain = train(make(record, backend), range(5))
    for p, q in zip(parameters_of(scaled), parameters_of(plain), strict=True):
        q.grad = p.grad
    if scaled._execution.counts_on_device:
        plain._execution.counts_on_device = True  # only its counts are elsewhere
    assert_same_state(scaled, plain)


@pytest.mark.parametrize("clips", [False, True], ids=["", "clipped"])
@each_backend
@each_optimizer
def test_after_unscaling_by_hand(record: Record, backend: str, clips: bool) -> None:
    by_hand, plain = make(record, backend), make(record, backend)
    scaler = scaler_of()
    for time in range(4):
        feed_scaled(by_hand, time, scaler)
        feed(plain, time)
        scaler.unscale_(by_hand)
        if clips:
            assert float(by_hand.clip_grad_norm_(0.5)) == float(plain.clip_grad_norm_(0.5)) > 1
        scaler.step(by_hand)
        scaler.update()
        plain.step()
    assert_same_state(by_hand, plain)


@each_backend
def test_clipping_without_unscaling(backend: str) -> None:
    """Clips the scaled gradients, as in torch."""
    ours, theirs = make(RECORDS["AdamW"], backend), make(RECORDS["AdamW"], backend)
    scaler = scaler_of()
    feed_scaled(ours, 0, scaler)
    feed(theirs, 0)
    norm = ours.clip_grad_norm_(100.0)
    coefficient = 100.0 / (norm + 1e-6)
    for p in parameters_of(theirs):
        p.grad.mul_(coefficient)
    scaler.step(ours)
    theirs.step()
    for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
        assert_same_bits(p, q, "parameter")


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_matches_torch(name: str) -> None:
    """A model in mixed precision, with losses that sometimes overflow. torch's optimizer gets the gradients of ours: with
    weights that differ in rounding, autocast would give gradients that differ in the third digit."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
    params, copies = list(model.parameters()), list(copy.deepcopy(model).parameters())
    options = dict(lr=1e-2, weight_decay=0.1, **({"momentum": 0.9} if name == "SGD" else {}))
    opts = getattr(onepass, name)(params, **options), getattr(torch.optim, name)(copies, fused=True, **options)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=4) for _ in opts]
    losses = []
    for time in range(30):
        x = torch.randn(16, 20)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = (model(x) - x[:, :5]).square().mean()
        losses.append(loss.item())
        opts[0].zero_grad()
        scaled, _ = (scaler.scale(loss * (1e38 if time % 7 == 3 else 1.0)) for scaler in scalers)
        scaled.backward()
        for p, q in zip(params, copies, strict=True):
            q.grad = p.grad.clone()
        for opt, scaler in zip(opts, scalers, strict=True):
            scaler.step(opt)
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
        for p, q in zip(params, copies, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert losses[-1] < 0.6 * losses[0]


@each_backend
@each_optimizer
def test_gradients_are_left_scaled(record: Record, backend: str) -> None:
    """The step unscales what it reads, and does not write to gradients."""
    opt, scaler = make(record, backend), scaler_of()
    feed_scaled(opt, 0, scaler)
    before = [p.grad.clone() for p in parameters_of(opt)]
    scaler.step(opt)
    for p, g in zip(parameters_of(opt), before, strict=True):
        assert_same_bits(p.grad, g, "gradient")


class OwnScaler(torch.amp.GradScaler):
    """Like FSDP's: its `step` calls torch's."""

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        return super().step(optimizer, *args, **kwargs)


def test_subclass_of_grad_scaler() -> None:
    opt, plain = make(RECORDS["AdamP"]), make(RECORDS["AdamP"])
    scaler = OwnScaler("cpu", init_scale=SCALE)
    train_scaled(opt, range(3), scaler)
    train(plain, range(3))
    assert float(parameters_of(opt)[0].grad.norm()) > 100 * float(parameters_of(plain)[0].grad.norm())
    for p, q in zip(parameters_of(opt), parameters_of(plain), strict=True):
        assert_same_bits(p, q, "parameter")


# ------------------------------------------------------------------ overflow


@each_backend
@each_optimizer
def test_nothing_changes_on_overflow(record: Record, backend: str) -> None:
    opt, scaler = make(record, backend), scaler_of()
    train_scaled(opt, range(3), scaler)
    feed_scaled(opt, 3, scaler, overflow=True)
    before = Snapshot(opt)
    scaler.step(opt)
    before.assert_unchanged()
    with only_the_device_knows():
        opt.grad_scale, opt.found_inf = torch.tensor(SCALE), torch.tensor(1.0)
        opt.step()
    before.assert_unchanged()
    scaler.update()
    assert scaler.get_scale() == SCALE / 2


OVERFLOWS = {"first two": {0, 1}, "later": {2, 4}}


@pytest.mark.parametrize("overflows", OVERFLOWS.values(), ids=OVERFLOWS)
@pytest.mark.parametrize("clips", [False, True], ids=["", "clipped"])
@each_backend
@pytest.mark.parametrize(
    ("record", "changed"),
    [
        *[pytest.param(record, {}, id=record.name) for record in RECORDS.values()],
        # Its buffer starts with the first gradient, undampened.
        pytest.param(RECORDS["SGD"], dict(momentum=0.6, dampening=0.4), id="SGD-dampening"),
        pytest.param(RECORDS["AdamP"], dict(speculate=False), id="AdamP-two_visits"),
    ],
)
def test_run_with_overflows(
    record: Record, changed: dict[str, Any], backend: str, clips: bool, overflows: set[int]
) -> None:
    """The bits of a run without the overflowed gradients."""
    opt, plain, scaler = make(record, backend, **changed), make(record, backend, **changed), scaler_of(2.0**20)
    for time in range(5):
        overflow = time in overflows
        feed_scaled(opt, time, scaler, overflow)
        scaler.unscale_(opt) if clips else None
        opt.clip_grad_norm_(0.7) if clips else None
        with only_the_device_knows():
            scaler.step(opt)
        scaler.update()
        if not overflow:
            feed(plain, time)
            plain.clip_grad_norm_(0.7) if clips else None
            plain.step()
    for i, (p, q) in enumerate(zip(parameters_of(opt), parameters_of(plain), strict=True)):
        assert_same_bits(p, q, f"parameter {i}")
        for key in record.moments:
            assert_same_bits(opt.state[p][key], plain.state[q][key], f"parameter {i} state {key}")
        for key in ("step", "gate_counter"):
            assert float(opt.state[p].get(key, 0)) == float(plain.state[q].get(key, 0))


CHANGES = {
    "memory": lambda opt: [
        setattr(p, "data", p.data.clone(memory_format=torch.contiguous_format)) for p in parameters_of(opt)
    ],
    "groups": lambda opt: opt.add_param_group({"params": [torch.ones(3)]}),
    "copy": copy.deepcopy,
    "state dict": lambda opt: opt.load_state_dict(through_a_file(opt.state_dict())),
}


@pytest.mark.parametrize("knows", ["host", "device"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@each_backend
def test_change_after_an_overflow(backend: str, change: Any, knows: str) -> None:
    """The first steps are skipped, and the next one binds anew: its gradients enter the buffers undampened."""
    arguments = dict(lr=0.05, momentum=0.6, dampening=0.4)
    opt, plain, scaler = (
        make(RECORDS["SGD"], backend, **arguments),
        make(RECORDS["SGD"], backend, **arguments),
        scaler_of(),
    )
    for time in range(2):
        feed_scaled(opt, time, scaler, overflow=True)
        with only_the_device_knows() if knows == "device" else contextlib.nullcontext():
            scaler.step(opt)
        scaler.update()
    old = opt._execution.backends
    changed = change(opt)
    opt = changed if isinstance(changed, onepass.SGD) else opt
    opt._execution.layout = []  # else the backend "cpu" would not be bound anew after `memory`
    train_scaled(opt, range(3), scaler)
    assert opt._execution.backends is not old
    train(plain, range(3))
    for p, q in zip(parameters_of(opt), parameters_of(plain), strict=False):
        assert_same_bits(p, q, "parameter")


@each_backend
def test_buffer_set_after_an_overflow(backend: str) -> None:
    """It counts as stepped: a checkpoint has it, and the next gradient is dampened."""
    arguments = dict(lr=0.05, momentum=0.6, dampening=0.4)
    opt, plain = make(RECORDS["SGD"], backend, **arguments), make(RECORDS["SGD"], backend, **arguments)
    opt.grad_scale, opt.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    with only_the_device_knows():
        train(opt, [0])
    del opt.grad_scale, opt.found_inf
    for each in (opt, plain):
        for p in parameters_of(each):
            each.state[p]["momentum_buffer"] = torch.full_like(p, 0.5, requires_grad=False)
    assert len(opt.state_dict()["state"]) == len(plain.state_dict()["state"]) > 0
    train(opt, range(2))
    train(plain, range(2))
    for p, q in zip(parameters_of(opt), parameters_of(plain), strict=True):
        assert_same_bits(p, q, "parameter")


@pytest.mark.parametrize("knows", ["host", "device"])
@each_backend
def test_buffers_are_dampened_after_their_first_step(backend: str, knows: str) -> None:
    """Also when they are bound anew or saved while only the device knows that the step was taken."""
    arguments = dict(lr=0.05, momentum=0.6, dampening=0.4)
    opt, plain = make(RECORDS["SGD"], backend, **arguments), make(RECORDS["SGD"], backend, **arguments)
    with only_the_device_knows() if knows == "device" else contextlib.nullcontext():
        train_scaled(opt, range(2))
        opt._execution.layout = []
        train_scaled(opt, [2])
        assert len(opt.state_dict()["state"]) == len(parameters_of(opt))
        train_scaled(opt, [3])
    train(plain, range(4))
    for p, q in zip(parameters_of(opt), parameters_of(plain), strict=True):
        assert_same_bits(p, q, "parameter")


@each_backend
def test_first_buffers_when_gradients_come_and_go(backend: str) -> None:
    """First gradients that are only clipped, steps of one parameter each, then of both: each buffer starts undampened."""

    def trained(clips_first: bool) -> list[Tensor]:
        params = [torch.ones(3), torch.ones(3)]
        opt = onepass.SGD(params, lr=0.1, momentum=0.9, dampening=0.5, backend=backend)
        for stepped, which in ((not clips_first, ()), (False, (0,)), (True, (1,)), (True, (0, 1)), (True, (0,))):
            opt.zero_grad()
            for i in which:
                params[i].grad = torch.ones(3)
            if stepped:
                opt.step()
            elif clips_first:
                opt.clip_grad_norm_(1.0)
        return params

    for p, q in zip(trained(True), trained(False), strict=True):
        assert_same_bits(p, q, "parameter")


@pytest.mark.parametrize("happens", ["clipping", "overflow"])
@each_backend
def test_unstepped_state_is_not_saved(backend: str, happens: str) -> None:
    record = RECORDS["SGD"]
    opt, plain = [make(record, backend, lr=0.1, momentum=0.9, dampening=0.5) for _ in range(2)]
    feed_scaled(opt, 0, scaler := scaler_of(), overflow=happens == "overflow")
    opt.clip_grad_norm_(1.0) if happens == "clipping" else scaler.step(opt)
    assert not opt.state
    saved = opt.state_dict()
    assert not saved["state"]
    resumed = make(record, backend, lr=0.1, momentum=0.9, dampening=0.5)
    resumed.load_state_dict(through_a_file(saved))
    copied = copy.deepcopy(opt)
    for each in (resumed, copied, plain):
        each.zero_grad()
        train(each, range(2))
    for p, q, r in zip(parameters_of(resumed), parameters_of(copied), parameters_of(plain), strict=True):
        assert_same_bits(p, r, "a parameter under the checkpoint")
        assert_same_bits(q, r, "a parameter under the copy")


@each_backend
def test_checkpoint_after_an_overflow(backend: str) -> None:
    """The buffers of the checkpoint are no first ones, although the optimizer has only skipped a step."""
    arguments = dict(lr=0.05, momentum=0.6, dampening=0.4)
    trained = train(make(RECORDS["SGD"], backend, **arguments), range(2))
    opt = make(RECORDS["SGD"], backend, **arguments)
    scaler = scaler_of()
    feed_scaled(opt, 0, scaler, overflow=True)
    with only_the_device_knows():  # or the skipped step makes no buffers
        scaler.step(opt)
    with torch.no_grad():
        for p, q in zip(parameters_of(trained), parameters_of(opt), strict=True):
            q.copy_(p)
    opt.load_state_dict(trained.state_dict())
    train(trained, [2])
    train(opt, [2])
    assert_same_state(opt, trained)


# ------------------------------------------------------------------ device-counted groups


@each_device
@each_optimizer
def test_scaler_in_mid_run(record: Record, backend: str) -> None:
    opt = train_scaled(train(make(record, backend), range(3)), range(3, 6))
    plain = train(make(record, backend), range(6))
    for p, q in zip(parameters_of(opt), parameters_of(plain), strict=True):
        assert_same_bits(p, q, "parameter")
    for own in opt.state.values():
        if "step" in own:
            assert float(own["step"]) == 6


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda opt: pickle.loads(pickle.dumps(opt)),
}


@pytest.mark.parametrize("copy_of", COPIES.values(), ids=COPIES)
@each_device
@each_optimizer
def test_copies_continue(record: Record, backend: str, copy_of: Any) -> None:
    opt = train_scaled(make(record, backend), range(3))
    for p in parameters_of(opt):
        p.grad = None
    twin = copy_of(opt)
    train_scaled(opt, [3])
    train_scaled(twin, [3])
    assert_same_state(opt, twin)


@each_backend
@each_optimizer
def test_resume_from_a_checkpoint(record: Record, backend: str) -> None:
    opt = train_scaled(make(record, backend), range(3))
    twin = make(record, backend)
    with torch.no_grad():
        for p, q in zip(parameters_of(opt), parameters_of(twin), strict=True):
            q.copy_(p)
    twin.load_state_dict(through_a_file(opt.state_dict()))
    train_scaled(opt, [3])
    train_scaled(twin, [3])
    assert_same_state(opt, twin)


@each_optimizer
def test_launches_of_a_scaled_step(record: Record) -> None:
    """One launch more than without a scaler: the one that computes scalars and counts."""
    opt = train_scaled(make(record, "emulated"), range(2))
    assert plan_of(opt).launches == ["device_scalars"] + (["update", "correct"] if record.projected else ["step"])


def test_lr_changes_under_a_scaler() -> None:
    """The group is not capturable: the host uploads its hyper-parameters when they have changed."""
    opt, plain = make(RECORDS["AdamP"], "emulated"), make(RECORDS["AdamP"], "emulated")
    for time in range(4):
        for each in (opt, plain):
            each.param_groups[0]["lr"] = 0.01 / (1 + time)
        train_scaled(opt, [time])
        train(plain, [time])
    for p, q in zip(parameters_of(opt), parameters_of(plain), strict=True):
        assert_same_bits(p, q, "parameter")


def test_capture_under_a_scaler_needs_capturable() -> None:
    opt = train_scaled(make(RECORDS["AdamP"], "emulated"), range(2))
    feed(opt, 2)
    emulated.set_capturing(True)
    try:
        with pytest.raises(RuntimeError, match="param group 0 has capturable=False"):
            opt.step()
    finally:
        emulated.set_capturing(False)


def test_replay_reads_found_inf_and_grad_scale() -> None:
    opt, plain = (
        make(RECORDS["AdamP"], "emulated", capturable=True),
        make(RECORDS["AdamP"], "emulated", capturable=True),
    )
    opt.grad_scale, opt.found_inf = torch.tensor(1.0), torch.tensor(0.0)
    train(opt, range(2))
    train(plain, range(2))
    feed(opt, 2)
    feed(plain, 2)
    emulated.set_capturing(True)
    opt.step()
    emulated.set_capturing(False)
    before = Snapshot(opt)
    opt.found_inf.fill_(1.0)
    emulated.replay()
    before.assert_unchanged()
    opt.found_inf.fill_(0.0)
    opt.grad_scale.fill_(4.0)
    for p in parameters_of(opt):
        p.grad.mul_(4.0)
    emulated.replay()
    plain.step()
    for p, q in zip(parameters_of(opt), parameters_of(plain), strict=True):
        assert_same_bits(p, q, "parameter")


def test_scale_of_another_shape_or_dtype() -> None:
    """A float64 scale of one element, and a found_inf of integers."""
    opt, plain = make(RECORDS["AdamW"], "emulated"), make(RECORDS["AdamW"], "emulated")
    opt.grad_scale, opt.found_inf = torch.tensor([8.0], dtype=torch.float64), torch.tensor([0])
    feed(opt, 0, 8.0)
    opt.step()
    train(plain, [0])
    for p, q in zip(parameters_of(opt), parameters_of(plain), strict=True):
        assert_same_bits(p, q, "parameter")


@pytest.mark.parametrize("place", range(3), ids=["clip", "grad_scale", "found_inf"])
def test_compiled_module_rejects_an_integer_scale(place: int) -> None:
    """Python checks the scales of users; the compiled module checks those that Python passes."""
    p = torch.ones(3)
    p.grad = torch.ones(3)
    opt = onepass.AdamW([p], backend="emulated")
    opt.step()
    (bound,) = opt._execution.backends
    p.grad = torch.ones(3)
    before = p.clone()
    assert bound.ready(opt.param_groups, bound.hypers, True)
    scales = [torch.tensor(1 if i == place else 1.0) for i in range(3)]
    with pytest.raises(RuntimeError, match="scale of the gradients is not a float32 or float64 number on their device"):
        bound.plan.begin(bound.indices, *scales)
    assert torch.equal(p, before)
