"""Invalid inputs that an optimizer must reject, and its messages. See test_errors.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode


class Wrapper(torch.Tensor):
    """A tensor subclass that wraps another tensor, like DTensor."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner: Tensor):
        self.inner = inner

    def __tensor_flatten__(self) -> Any:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, *_: Any) -> Wrapper:
        return Wrapper(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inner = [a.inner if isinstance(a, Wrapper) else a for a in args]
        return function(*inner, **(kwargs or {}))


class Elsewhere(torch.nn.Parameter):
    """A parameter whose gradient is on another device, which torch does not allow to assign."""

    @property
    def grad(self) -> Tensor:
        return torch.empty(self.shape, device="meta")


Spoil = Callable[[Any, dict[str, Any], Tensor], Any]
PARAMETER = "parameter 1 of group 1, shape "
GROUP = "param group 1: "


@dataclass(frozen=True)
class Case:
    """record: the optimizer. spoil: makes it invalid, given the optimizer, its second group and that group's parameter 1.

    kind, about, words: the exception, the subject of its message, and words in it.
    """

    name: str
    record: str
    spoil: Spoil
    kind: type[Exception]
    about: str
    words: tuple[str, ...]


def _argument(name: str, value: Any) -> Spoil:
    def spoil(opt: Any, group: dict[str, Any], p: Tensor) -> None:
        group[name] = value

    return spoil


def _gradient(make: Callable[[Tensor], Tensor]) -> Spoil:
    def spoil(opt: Any, group: dict[str, Any], p: Tensor) -> None:
        p.grad = None
        p.grad = make(p)

    return spoil


def _fake(t: Tensor) -> Tensor:
    return FakeTensorMode().from_tensor(t.detach())


@torch.inference_mode()
def _in_inference_mode(p: Tensor) -> Tensor:
    return torch.ones_like(p)


def _replace(make: Callable[[Tensor], Tensor]) -> Spoil:
    """Another object in the group's list of parameters."""

    def spoil(opt: Any, group: dict[str, Any], p: Tensor) -> None:
        group["params"][1] = make(p)

    return spoil


def _data(make: Callable[[Tensor], Tensor]) -> Spoil:
    def spoil(opt: Any, group: dict[str, Any], p: Tensor) -> None:
        p.data = make(p)

    return spoil


def _state(key: str, make: Callable[[Tensor], Any]) -> Spoil:
    def spoil(opt: Any, group: dict[str, Any], p: Tensor) -> None:
        opt.state[p][key] = make(p)

    return spoil


def _bad(name: str, record: str, values: list[Any], kind: type[Exception], says: str) -> list[Case]:
    return [
        Case(f"{name}={bad!r}", record, _argument(name, bad), kind, GROUP, (f"{name} must {says.format(bad)}",))
        for bad in values
    ]


def _numbers() -> list[Case]:
    """Every numeric argument out of its range, NaN, infinite, and of another type."""
    inf, nan = float("inf"), float("nan")
    homes = {"momentum": "SGD", "dampening": "SGD", "delta": "AdamP", "wd_ratio": "SGDP"}
    cases = []
    for name in ("lr", "weight_decay", "eps", "momentum", "dampening", "delta", "wd_ratio"):
        at = (name, homes.get(name, "AdamW"))
        if name == "dampening":
            cases += _bad(*at, [-inf, nan, inf], ValueError, "be a finite number, got {}")
        else:
            cases += _bad(*at, [-1.0, -inf, nan, inf], ValueError, "be at least 0 and finite, got {}")
        cases += _bad(*at, ["1", None, True, [0.1], 1j], TypeError, "be a number, got {!r}")
        cases += _bad(*at, [np.ones(2), torch.tensor(1j)], TypeError, "be a real number, got {!r}")
        cases += _bad(*at, [torch.ones(2)], ValueError, "hold one number, got a tensor of shape (2,)")
    return cases


def _flags() -> list[Case]:
    """Values that Python converts to true or false, such as the string "false"."""
    homes = {"maximize": "AdamW", "decouple_lr": "SGD", "master_weights": "AdamW", "stochastic_rounding": "SGD", "capturable": "AdamW", "nesterov": "SGD", "speculate": "AdamP",
             "project_momentum": "SGDP"}  # fmt: skip
    cases = _bad("maximize", "SGDP", [2, None, 1.0, torch.zeros(1)], TypeError, "be True or False, got {!r}")
    for name, record in homes.items():
        cases += _bad(name, record, ["false"], TypeError, "be True or False, got {!r}")
    return cases


def _betas() -> list[Case]:
    cases = _bad("betas", "AdamP", [0.9, (0.9,), (0.9, 0.99, 0.9), None, "ab"], TypeError, "be two numbers, got {!r}")
    for i in (0, 1):
        for bad in (-0.1, 1.0, float("nan"), float("inf"), "a"):
            pair = (bad, 0.5) if i == 0 else (0.5, bad)
            says, kind = (f"at least 0 and below 1, got {bad}", ValueError) if bad != "a" else ("a number", TypeError)
            words = (f"betas[{i}] must be {says}",)
            cases.append(Case(f"betas={pair}", "AdamW", _argument("betas", pair), kind, GROUP, words))
    return cases


def _without_lr(opt: Any, group: dict[str, Any], p: Tensor) -> None:
    group.update(decouple_lr=True, lr=0.0, initial_lr=0.0)


def _flat_piece(p: Tensor) -> Tensor:
    return torch.nn.Parameter(torch.zeros(4, 6)).detach().view(-1)[3:11]


def _nesterov(opt: Any, group: dict[str, Any], p: Tensor) -> None:
    group.update(nesterov=True, dampening=0.5)


def _master_of_float16(opt: Any, group: dict[str, Any], p: Tensor) -> None:
    p.grad = None
    p.data = p.data.half()
    p.grad = torch.ones_like(p)
    group["master_weights"] = True


def _codes_without_scales(opt: Any, group: dict[str, Any], p: Tensor) -> None:
    p.grad = None
    p.data = torch.zeros(64, 64)
    p.grad = torch.ones_like(p)
    group["state_dtype"] = "8bit"
    own = {key: torch.zeros(64, 64, dtype=torch.uint8) for key in ("exp_avg", "exp_avg_sq")}
    opt.state[p] = {"step": torch.zeros(()), **own, "exp_avg_scale": torch.zeros(64, 2, dtype=torch.uint8)}


def _short_moments_of_float64(opt: Any, group: dict[str, Any], p: Tensor) -> None:
    p.grad = None
    p.data = p.data.double()
    p.grad = torch.ones_like(p)
    group["state_dtype"] = torch.bfloat16


CASES = [
    *_numbers(),
    Case(
        "master of float16",
        "AdamW",
        _master_of_float16,
        TypeError,
        PARAMETER,
        ("master_weights=True has no exact weights for torch.float16", "torch.bfloat16"),
    ),
    Case("8 bits of SGD", "SGD", _argument("state_dtype", "8bit"), ValueError, GROUP, ("momentum buffer", "torch.bfloat16")),
    Case("codes without scales", "AdamW", _codes_without_scales, ValueError, PARAMETER,
         ("'exp_avg_scale'", "shape (64, 1)", "load_state_dict")),
    Case("state_dtype of float64", "AdamW", _short_moments_of_float64, ValueError, PARAMETER, ("is not for torch.float64", "state_dtype=None")),
    Case("state_dtype", "AdamW", _argument("state_dtype", "bf16"), ValueError, GROUP, ("torch.float32, torch.bfloat16 or '8bit'", "'bf16'")),
    Case("rounding of masters", "SGD", lambda o, g, p: g.update(master_weights=True, stochastic_rounding=True), ValueError, GROUP,
         ("stochastic_rounding=True has nothing to round", "use one of them")),
    Case("seed", "AdamP", _argument("seed", 1.0), TypeError, GROUP, ("seed must be an int", "1.0")),
    Case("negative seed", "AdamP", _argument("seed", -1), ValueError, GROUP, ("seed must be at least 0 and below 2**64", "-1")),
    *_bad("lr", "AdamW", [np.True_, torch.tensor(True)], TypeError, "be a number, got {!r}"),
    *_flags(),
    *_betas(),
    Case("amsgrad", "AdamW", _argument("amsgrad", True), ValueError, GROUP, ("amsgrad is not implemented", "amsgrad=False")),
    Case("differentiable", "SGD", _argument("differentiable", True), ValueError, GROUP, ("autograd records is not", "differentiable=False")),
    Case("caution", "AdamP", _argument("caution", True), ValueError, GROUP, ("cautious update is not", "caution=False")),
    Case("apex without bias correction", "Adam", _argument("bias_correction", False), ValueError, GROUP, ("bias_correction=True",)),
    Case("decoupled_weight_decay", "Adam", _argument("decoupled_weight_decay", True), ValueError, GROUP, ("use onepass.AdamW",)),
    Case("l2 weight decay", "AdamW", _argument("decoupled_weight_decay", False), ValueError, GROUP, ("use onepass.Adam",)),
    Case("decoupled_weight_decay of SGD", "SGD", _argument("decoupled_weight_decay", True), ValueError, GROUP, ("use onepass.SGDP",)),
    Case("fused", "SGDP", _argument("fused", "yes"), ValueError, GROUP, ("fused must be None, True or False", "'yes'")),
    Case("decay", "AdamP", _argument("decay", "l2"), ValueError, GROUP, ("'decoupled' or 'proximal'", "'l2'")),
    Case("projection", "SGDP", _argument("projection", "rows"), ValueError, GROUP,
         ("'auto', 'channel', 'layer' or 'none'", "'rows'")),
    Case("nesterov", "SGD", _nesterov, ValueError, GROUP, ("momentum above 0 and a dampening of 0", "dampening=0.5")),
    Case("momentum=1", "SGDP", _argument("momentum", 1.0), ValueError, GROUP, ("momentum below 1 or weight_decay=0", "=1.0")),
    Case("initial_lr=0", "AdamProx", _without_lr, ValueError, GROUP, ("initial_lr, which is 0", "an lr above 0")),
    Case("initial_lr=nan", "AdamW", lambda o, g, p: g.update(decouple_lr=True, initial_lr=float("nan")),
         ValueError, GROUP, ("initial_lr",)),
    Case("backend", "AdamW", _argument("backend", "gpu"), ValueError, "", ("backend must be one of", "'gpu'")),
    Case("cuda", "AdamW", _argument("backend", "cuda"), RuntimeError, "", ("backend='cuda' cannot be used", "install")),
    Case("wrapper", "AdamW", _replace(lambda p: Wrapper(p.data)), TypeError, PARAMETER, ("Wrapper", "plain tensors", "DTensor")),
    Case("flat shard", "AdamP", _replace(_flat_piece), ValueError, PARAMETER,
         ("a flat piece of a tensor of shape (4, 6)", "needs its rows", "optimizer without projection", "torch.nn.Parameter")),
    Case("twice", "AdamP", lambda opt, group, p: group["params"].__setitem__(0, p), ValueError, PARAMETER,
         ("was given twice", "pass it once")),
    Case("sparse", "SGD", _replace(lambda p: p.data.to_sparse()), TypeError, PARAMETER, ("torch.sparse_coo", "p.to_dense()")),
    Case("integer", "AdamW", _replace(lambda p: p.data.int()), TypeError, PARAMETER, ("float16, bfloat16", "torch.int32")),
    Case("complex", "AdamW", _replace(lambda p: p.data + 0j), TypeError, PARAMETER, ("float16, bfloat16", "torch.complex64")),
    Case("negated lazily", "AdamW", _replace(lambda p: torch.complex(p.data, p.data).conj().imag), ValueError, PARAMETER,
         ("negates", "p.resolve_neg()")),
    Case("inference mode", "AdamW", _replace(_in_inference_mode), ValueError, PARAMETER, ("made in inference mode", "p.clone()")),
    Case("expanded", "AdamW", _replace(lambda p: torch.zeros(6).expand(4, 6)), ValueError, PARAMETER,
         ("share memory", "(0, 1)", "p.clone()")),
    Case("overlapping", "AdamP", _data(lambda p: torch.zeros(99).as_strided((4, 6), (3, 1))), ValueError, PARAMETER,
         ("share memory", "(3, 1)", "p.clone()")),
    Case("two devices", "AdamW", _replace(lambda p: torch.empty(4, 6, device="meta")), ValueError, GROUP,
         ("one device", "['cpu', 'meta']", "one param group for each device")),
    Case("fake", "AdamW", _replace(_fake), TypeError, PARAMETER, ("(4, 6): is a FakeTensor", "outside of FakeTensorMode")),
    Case("fake gradient", "AdamP", _gradient(_fake), TypeError, PARAMETER, ("its gradient is a FakeTensor", "outside of")),
    Case("fake state", "SGDP", _state("momentum", _fake), TypeError, PARAMETER, ("its state 'momentum' is a FakeTensor", "outside of")),
    Case("sparse gradient", "SGD", _gradient(lambda p: torch.ones(4, 6).to_sparse()), RuntimeError, PARAMETER,
         ("gradient must be dense", "sparse_coo", "sparse=False")),
    Case("wrapped gradient", "SGD", _gradient(lambda p: Wrapper(torch.ones(4, 6))), TypeError, PARAMETER,
         ("its gradient is a Wrapper", "plain")),
    Case("expanded gradient", "AdamP", _gradient(lambda p: torch.ones(6).expand(4, 6)), ValueError, PARAMETER,
         ("gradient is expanded", "(0, 1)", "p.grad.clone()")),
    Case("gradient of another dtype", "AdamW", _data(lambda p: p.data.double()), TypeError, PARAMETER,
         ("torch.float64 as the parameter is", "torch.float32")),
    Case("gradient of another shape", "SGDP", _data(lambda p: torch.zeros(4, 6, 1)), ValueError, PARAMETER,
         ("the parameter's shape", "(4, 6)")),
    Case("gradient on another device", "AdamW", _replace(lambda p: Elsewhere(p.data.clone())), RuntimeError, PARAMETER,
         ("must be on cpu as the parameter is", "meta")),
    Case("moment of another shape", "AdamW", _state("exp_avg", lambda p: torch.zeros(3)), ValueError, PARAMETER,
         ("'exp_avg'", "shape (3,)", "load_state_dict")),
    Case("moment of another dtype", "SGDP", _state("momentum", lambda p: torch.zeros(4, 6).double()), ValueError, PARAMETER,
         ("'momentum'", "torch.float32", "torch.float64")),
    Case("moment that is none", "AdamP", _state("exp_avg_sq", lambda p: 1.0), ValueError, PARAMETER, ("'exp_avg_sq'", "got 1.0")),
    Case("moment that overlaps", "SGD", _state("momentum_buffer", lambda p: torch.zeros(6).expand(4, 6)), ValueError, PARAMETER,
         ("'momentum_buffer'", "dense")),
    Case("state that is none", "SGD", lambda opt, group, p: opt.state.__setitem__(p, [1]), TypeError, PARAMETER,
         ("its state must be a dict, got [1]", "delete it")),
    Case("step that is none", "Adam", _state("step", lambda p: 3), ValueError, PARAMETER, ("'step'", "float32", "got 3")),
    Case("step of two", "Adam", _state("step", lambda p: torch.ones(2)), ValueError, PARAMETER, ("'step'", "one")),
    Case("counter of another dtype", "AdamP", _state("gate_counter", lambda p: torch.ones(())), ValueError, PARAMETER,
         ("'gate_counter'", "uint8")),
]  # fmt: skip
