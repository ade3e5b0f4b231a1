"""One record per optimizer. The tests expand them over backend, dtype, layout and size.

A new backend is one more name in BACKENDS; a new optimizer is one more record (and its rule in truth.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import emulated_backend  # noqa: F401  the backend "emulated"
import onepass
import oracles
from oracles import Arguments, Oracle

INSTALLED = ["reference", "cpu"]  # in the installed package, on any machine
BACKENDS = [*INSTALLED, "emulated", "triton"]  # the CUDA kernels on a CPU, and the Triton kernels in the interpreter
COMPILED = [name for name in BACKENDS if name != "reference"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_compiled = pytest.mark.parametrize("backend", COMPILED)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@dataclass(frozen=True)
class Record:
    """make: the class. variants: arguments to test, the typical ones first. moments: their keys in the state.

    Only "no_decay" has a weight decay of 0, and no variant has one so small that dropping it goes unnoticed.
    """

    make: type[onepass.Adam]
    variants: dict[str, Arguments]
    moments: tuple[str, ...]
    oracles: tuple[Oracle, ...] = ()
    projected: bool = False

    def __post_init__(self) -> None:
        # Copies, so that for tiers.py Adam and AdamW with the same arguments are two options.
        object.__setattr__(self, "variants", {name: dict(own) for name, own in self.variants.items()})

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def typical(self) -> Arguments:
        return next(iter(self.variants.values()))


EXP = ("exp_avg", "exp_avg_sq")
# Small betas make an error in any of the moments' factors large.
QUICK: Arguments = dict(lr=3e-2, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.7, maximize=True)

# The arguments that timm's factory passes to its optimizers besides lr and weight_decay; tests/rule/test_oracles.py compares them.
FACTORY_OF_TIMM: dict[str, Arguments] = {
    "adamp": dict(wd_ratio=0.01, nesterov=True),
    "sgdp": dict(nesterov=True, momentum=0.9),
}

_ADAM_LIKE: dict[str, Arguments] = {
    "decay": dict(lr=1e-2, weight_decay=0.5),
    "quick_maximize": QUICK,
    "no_memory": dict(lr=1e-2, betas=(0.0, 0.0), weight_decay=0.3),
    "big_decay": dict(lr=0.5, weight_decay=3.0),
    "decouple_lr": dict(lr=2e-2, weight_decay=0.05, decouple_lr=True),
    "no_decay": dict(lr=1e-2, weight_decay=0),
}

_ADAMP: dict[str, Arguments] = {
    "decoupled": dict(lr=1e-2, weight_decay=0.5, wd_ratio=0.3),
    "proximal": dict(lr=1e-2, weight_decay=0.5, wd_ratio=0.3, decay="proximal"),
    "as_timm": dict(lr=1e-2, weight_decay=4.0, **FACTORY_OF_TIMM["adamp"]),
    "quick_maximize": {**QUICK, "wd_ratio": 0.5, "nesterov": True, "decay": "proximal"},
    "wide_gate": dict(lr=3e-2, betas=(0.5, 0.9), weight_decay=2.0, delta=5.0),
    "decouple_lr": dict(lr=2e-2, weight_decay=0.05, decouple_lr=True),
    "two_visits": dict(lr=1e-2, weight_decay=0.5, wd_ratio=0.3, speculate=False),
    "no_decay": dict(lr=1e-2, weight_decay=0),
    "always_layer": dict(lr=1e-2, weight_decay=0.5, wd_ratio=0.3, projection="layer"),
    "always_channel": dict(
        lr=1e-2, weight_decay=0.5, wd_ratio=0.3, projection="channel", nesterov=True, decay="proximal"
    ),
}

_SGD: dict[str, Arguments] = {
    "momentum": dict(lr=0.05, momentum=0.9, weight_decay=0.3),
    "plain": dict(lr=0.05, weight_decay=0.3),
    "dampening_maximize": dict(lr=0.05, momentum=0.6, dampening=0.4, weight_decay=0.3, maximize=True),
    "nesterov": dict(lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.3),
    "no_decay": dict(lr=0.05, momentum=0.9),
}

_SGDP: dict[str, Arguments] = {
    "decoupled": dict(lr=0.05, momentum=0.8, weight_decay=0.3, wd_ratio=0.3),
    "proximal": dict(lr=0.05, momentum=0.8, weight_decay=0.3, wd_ratio=0.3, decay="proximal"),
    "as_timm": dict(lr=0.05, weight_decay=0.3, **FACTORY_OF_TIMM["sgdp"]),
    "project_momentum": dict(lr=0.05, momentum=0.8, weight_decay=0.3, project_momentum=True),
    "no_momentum_maximize": dict(lr=0.05, momentum=0, weight_decay=0.3, maximize=True),
    "wide_gate": dict(lr=0.1, momentum=0.5, dampening=0.4, weight_decay=0.5, delta=5.0, eps=1e-2),
    "decouple_lr": dict(lr=0.02, momentum=0.5, weight_decay=0.05, decouple_lr=True),
    "two_visits": dict(
        lr=0.05, momentum=0.8, weight_decay=0.3, wd_ratio=0.3, speculate=False, nesterov=True, dampening=0.2
    ),
    "no_decay": dict(lr=0.05, momentum=0.9),
    "always_layer": dict(lr=0.05, momentum=0.8, weight_decay=0.3, projection="layer"),
    "never": dict(lr=0.05, momentum=0.8, weight_decay=0.3, projection="none"),
}

RECORDS = {
    record.name: record
    for record in (
        Record(onepass.Adam, _ADAM_LIKE, EXP, oracles.ADAM),
        Record(onepass.AdamW, _ADAM_LIKE, EXP, oracles.ADAMW),
        Record(onepass.AdamProx, _ADAM_LIKE, EXP),
        Record(onepass.AdamProxL2, _ADAM_LIKE, EXP),
        Record(onepass.AdamP, _ADAMP, EXP, oracles.ADAMP, projected=True),
        Record(onepass.SGD, _SGD, ("momentum_buffer",), oracles.SGD),
        Record(onepass.SGDP, _SGDP, ("momentum",), oracles.SGDP, projected=True),
    )
}
PROJECTED = [name for name, record in RECORDS.items() if record.projected]

each_optimizer = pytest.mark.parametrize("record", RECORDS.values(), ids=lambda r: r.name)
each_projected = pytest.mark.parametrize("record", [RECORDS[name] for name in PROJECTED], ids=lambda r: r.name)


def _cases(names: Iterable[str]) -> Iterator[Any]:
    for record in (RECORDS[name] for name in names):
        for variant, arguments in record.variants.items():
            yield pytest.param(record, arguments, id=f"{record.name}-{variant}")


each_variant = pytest.mark.parametrize(("record", "arguments"), list(_cases(RECORDS)))
each_projected_variant = pytest.mark.parametrize(("record", "arguments"), list(_cases(PROJECTED)))
each_oracle = pytest.mark.parametrize(
    ("record", "arguments", "oracle"),
    [
        pytest.param(record, arguments, oracle, id=f"{record.name}-{variant}-{oracle.name}")
        for record in RECORDS.values()
        for variant, arguments in record.variants.items()
        for oracle in record.oracles
        if oracle.translate(arguments) is not None
    ],
)


def each_variant_in(dtypes: list[torch.dtype], names: Iterable[str] = RECORDS) -> Any:
    """All variants in `dtypes`, the typical ones in the other dtypes too."""
    cases = [
        pytest.param(dtype, record, arguments, id=f"{record.name}-{variant}-{str(dtype).removeprefix('torch.')}")
        for record in map(RECORDS.__getitem__, names)
        for variant, arguments in record.variants.items()
        for dtype in (DTYPES if arguments is record.typical else dtypes)
    ]
    return pytest.mark.parametrize(("dtype", "record", "arguments"), cases)
