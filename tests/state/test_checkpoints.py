"""Checkpoints: files of earlier versions, torch.distributed.checkpoint, parameter names, mismatched groups."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

import onepass
from compare import Snapshot, assert_same_bits, assert_same_state
from drive import parameters, parameters_of, through_a_file, train
from oracles import Arguments
from paths import TESTS
from records import RECORDS, Record, each_backend, each_optimizer
from tensors import values

FILES = sorted((TESTS / "checkpoints").glob("*.pt"))
# Rules corrected after a release: its file loads, and the next step differs.
CORRECTED = {("0.1.0", "AdamProxL2"): "the shrink was 1 + wd*s/D and not 1 + lr*wd/D"}


# ------------------------------------------------------------------ earlier versions


@each_backend
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_resume_from_a_file_of_an_earlier_version(file: Path, backend: str) -> None:
    for name, saved in torch.load(file, weights_only=True).items():
        params = [p.clone() for p in saved["parameters"]]
        opt = RECORDS[name.split(",")[0]].make(params, backend=backend, **saved["arguments"])
        opt.load_state_dict(saved["state_dict"])
        for number, own in saved["state_dict"]["state"].items():
            for key, value in own.items():
                assert_same_bits(opt.state[params[number]][key], value, f"{name}, {key}")
        for p, gradient in zip(params, saved["gradients"], strict=True):
            p.grad = gradient
        opt.step()
        for p, want in zip(params, saved["continued"], strict=True):
            if (file.stem, name) in CORRECTED:
                assert not torch.equal(p, want)
            elif p in opt.last_step() and backend != "cpu":  # another summation order
                torch.testing.assert_close(p, want, rtol=1e-6, atol=1e-7)
            else:
                assert_same_bits(p, want, f"{name} {tuple(p.shape)}")


def test_this_version_has_a_file() -> None:
    """CONTRIBUTING.md describes how to make it."""
    (file,) = [file for file in FILES if file.stem == onepass.__version__]
    saved = torch.load(file, weights_only=True)
    assert set(RECORDS) < set(saved)
    for stored in ("exact weights", "stochastic rounding", "8 bits"):
        assert f"AdamP, {stored}" in saved


# ------------------------------------------------------------------ torch.distributed.checkpoint


@pytest.fixture
def in_one_process() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process.*")
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


class Run:
    """A model and its optimizer, saved to and loaded from a folder."""

    def __init__(self, record: Record, backend: str, options: StateDictOptions, **arguments: Any):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))
        self.opt = record.make(self.model.parameters(), backend=backend, **arguments)
        self.options = options

    def state_dict(self) -> dict[str, Any]:
        optimizer = get_optimizer_state_dict(self.model, self.opt, options=self.options)
        return {"model": self.model.state_dict(), "optimizer": optimizer}

    def save(self, folder: Path) -> None:
        dcp.save(self.state_dict(), checkpoint_id=folder, no_dist=True)

    def load(self, folder: Path) -> None:
        state_dict = self.state_dict()
        dcp.load(state_dict, checkpoint_id=folder, no_dist=True)
        set_optimizer_state_dict(self.model, self.opt, state_dict["optimizer"], options=self.options)


each_option = pytest.mark.parametrize(
    "options",
    [
        StateDictOptions(),
        StateDictOptions(flatten_optimizer_state_dict=True),
        StateDictOptions(full_state_dict=True, cpu_offload=True),
    ],
    ids=["plain", "flat", "full"],
)


@pytest.mark.parametrize(
    "options",
    [
        StateDictOptions(full_state_dict=True),
        StateDictOptions(cpu_offload=True),
        StateDictOptions(flatten_optimizer_state_dict=True),
    ],
    ids=["full", "offloaded", "flat"],
)
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16, "bfloat16", "8bit"], ids=str)
@pytest.mark.usefixtures("in_one_process")
def test_distributed_checkpoint_of_every_state_dtype(
    state_dtype: Any, options: StateDictOptions, tmp_path: Path
) -> None:
    """torch gathers and offloads state dicts of tensors, numbers and strings alone."""
    run, other = (Run(RECORDS["AdamP"], "cpu", options, lr=1e-2, state_dtype=state_dtype) for _ in range(2))
    train(run.opt, range(3))
    run.save(tmp_path)
    train(run.opt, range(3, 5))
    other.load(tmp_path)
    assert other.opt.param_groups[0]["state_dtype"] == state_dtype
    assert_same_state(train(other.opt, range(3, 5)), run.opt)


WITHOUT_STATE = RECORDS["SGD"], RECORDS["SGD"].variants["plain"]


@each_option
@pytest.mark.parametrize(
    ("record", "arguments"),
    [*[pytest.param(r, r.typical, id=r.name) for r in RECORDS.values()], pytest.param(*WITHOUT_STATE, id="SGD-plain")],
)
@pytest.mark.usefixtures("in_one_process")
def test_distributed_checkpoint(
    record: Record, arguments: Arguments, options: StateDictOptions, tmp_path: Path
) -> None:
    """A run resumed in a new optimizer, or in one that has stepped, equals the uninterrupted run."""
    if options.full_state_dict and (record, arguments) == WITHOUT_STATE:
        options = StateDictOptions()  # torch cannot load a full state dict without state, not even of its own SGD
    run, fresh, used = (Run(record, "cpu", options, **arguments) for _ in range(3))
    train(run.opt, range(3))
    train(used.opt, range(2), sign=-1.0)
    run.save(tmp_path)
    train(run.opt, range(3, 5))
    for other in (fresh, used):
        other.load(tmp_path)
        assert_same_state(train(other.opt, range(3, 5)), run.opt)


@each_backend
@pytest.mark.parametrize("name", ["AdamW", "AdamP", "SGDP"])
@pytest.mark.usefixtures("in_one_process")
def test_distributed_checkpoint_onto_another_backend(name: str, backend: str, tmp_path: Path) -> None:
    record, options = RECORDS[name], StateDictOptions(flatten_optimizer_state_dict=True)
    run = Run(record, "cpu", options, **record.typical)
    train(run.opt, range(3))
    run.save(tmp_path)
    other = Run(record, backend, options, **record.typical)
    other.load(tmp_path)
    assert other.opt.param_groups[0]["backend"] == backend
    train(run.opt, [3])
    train(other.opt, [3])
    for p, q in zip(parameters_of(run.opt), parameters_of(other.opt), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@each_backend
@each_optimizer
def test_state_dict_step_of_dcp_moves_nothing(backend: str, record: Record) -> None:
    """To create state before loading, torch.distributed.checkpoint takes a step with lr 0 and zero gradients."""
    arguments = {**record.typical, "decouple_lr": True}
    run = Run(record, backend, StateDictOptions(), **arguments)
    before = [p.detach().clone() for p in parameters_of(run.opt)]
    run.state_dict()
    assert run.opt.state
    for p, start in zip(parameters_of(run.opt), before, strict=True):
        assert_same_bits(p, start, "parameter")
    group = run.opt.param_groups[0]
    assert group["lr"] == group["initial_lr"] == arguments["lr"]


@pytest.mark.usefixtures("in_one_process")
def test_distributed_checkpoint_of_a_capturable_group(tmp_path: Path) -> None:
    """The lr is a tensor, which torch replaces by 0 for that first step."""
    record = RECORDS["AdamP"]
    runs = [
        Run(record, "emulated", StateDictOptions(), capturable=True, decouple_lr=True, lr=torch.tensor(0.125))
        for _ in range(2)
    ]
    train(runs[0].opt, range(3))
    runs[0].opt.param_groups[0]["lr"].fill_(0.0625)
    runs[0].save(tmp_path)
    runs[1].load(tmp_path)
    for run in runs:
        train(run.opt, [3])
    assert_same_state(runs[1].opt, runs[0].opt)


# ------------------------------------------------------------------ parameter names


def test_names_are_saved_and_loaded() -> None:
    record, named = RECORDS["AdamP"], list(zip("abcdef", parameters(), strict=True))
    opt = train(record.make(named, **record.typical), range(2))
    saved = through_a_file(opt.state_dict())
    assert saved["param_groups"][0]["param_names"] == list("abcdef")
    other = record.make([(name * 2, p.detach().clone()) for name, p in named], **record.typical)
    other.load_state_dict(saved)
    assert other.param_groups[0]["param_names"] == list("abcdef")  # as torch's optimizers do
    assert_same_state(train(other, [2]), train(opt, [2]))


def test_a_checkpoint_without_names_keeps_the_names() -> None:
    record = RECORDS["AdamP"]
    opt = train(record.make(parameters(), **record.typical), range(2))
    named = list(zip("abcdef", [p.detach().clone() for p in parameters_of(opt)], strict=True))
    other = record.make(named, **record.typical)
    other.load_state_dict(through_a_file(opt.state_dict()))
    assert other.param_groups[0]["param_names"] == list("abcdef")
    assert_same_state(train(other, [2]), train(opt, [2]))


# ------------------------------------------------------------------ mismatches


def _groups(*sizes: int) -> list[dict[str, Any]]:
    return [{"params": [values((3, 4), torch.float32, i) for i in range(size)]} for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "words"), [((3, 1), "match the size"), ((2,), "number of parameter groups"), ((1, 3), "match the size")]
)
def test_mismatched_groups_are_refused(sizes: tuple[int, ...], words: str) -> None:
    """Loading raises torch's error and changes nothing."""
    record = RECORDS["AdamP"]
    opt = train(record.make(_groups(2, 2), backend="cpu", **record.typical), range(2))
    other = train(record.make(_groups(*sizes), backend="cpu", **record.typical), range(2))
    before = Snapshot(opt)
    with pytest.raises(ValueError, match=words):
        opt.load_state_dict(other.state_dict())
    before.assert_unchanged()
    train(opt, [2])


def test_a_step_count_without_a_value_is_0() -> None:
    """torch.distributed.checkpoint creates states on the meta device before it fills them."""
    p = torch.empty(3, device="meta")
    opt = onepass.AdamW([p], backend="reference")
    p.grad = torch.empty_like(p)
    opt.step()
    saved = opt.state_dict()
    saved["state"][0]["step"] = saved["state"][0]["step"].to("meta")
    opt.load_state_dict(saved)
    assert opt.state[p]["step"].device.type == "cpu" and float(opt.state[p]["step"]) == 0
