"""Records have the same fields in hyperparams.py, csrc/rules/ and triton_kernels/plan.py."""

from __future__ import annotations

import re
from dataclasses import fields

from onepass.triton_kernels import plan

from onepass.backend.base import STATS
from onepass.hyperparams import DeviceHyper, Hyper
from paths import ROOT


def fields_of(header: str, struct: str) -> list[str]:
    """The names of the data members of a C++ struct, in order."""
    text = re.sub(r"//.*", "", (ROOT / "csrc/rules" / header).read_text())
    body = re.search(rf"\bstruct {struct} {{(.*?)^}};", text, re.DOTALL | re.MULTILINE)
    assert body, f"no struct {struct} in {header}"
    members = re.findall(
        r"^  (?:double|bool|int|uint64_t|S|DeviceNumber|Decay|Hyper|Precision) ([^();]*);", body[1], re.MULTILINE
    )
    return [re.split(r"[ ={]", name.strip())[0] for member in members for name in member.split(",")]


def test_fields_of() -> None:
    assert fields_of("projection.h", "Affine") == ["d", "k"]
    assert fields_of("projection.h", "RowSums") == ["pg", "pp", "gg", "pu"]


def test_hyper_fields() -> None:
    assert sorted(fields_of("hyper.h", "Hyper")) == sorted({f.name for f in fields(Hyper)} - {"device_hyper"})


def test_device_hyper_fields() -> None:
    """C++ also has Hyper's constant fields and whether the device counts steps; Python has the identities of tensors."""
    numbers = [f.name for f in fields(DeviceHyper) if not f.compare]
    assert list(plan.DEVICE_HYPER) == numbers
    own = {f.name for f in fields(DeviceHyper)} - {"identities"}
    assert sorted(fields_of("hyper.h", "DeviceHyper")) == sorted(own | {"fixed", "on_device"})


def test_scalars_fields() -> None:
    """A bucket's table has the fields of every rule, without the flags that only save comparisons."""
    rules = {*fields_of("adam.h", "Adam"), *fields_of("sgd.h", "Momentum"), *fields_of("sgd.h", "Sgd")}
    wanted = {name for name in rules if not name.startswith("has_")} | {*fields_of("projection.h", "Projection")}
    assert set(plan.SCALARS) == wanted | {"project_momentum", "skipped", "draw_a", "draw_b"}
    assert len(set(plan.SCALARS)) == len(plan.SCALARS)


def test_row_statistics_fields() -> None:
    assert (*fields_of("projection.h", "RowSums"), "c", "deferred") == plan.ROW_STATS


def test_tensor_statistics_fields() -> None:
    assert STATS == plan.STATS == (*fields_of("projection.h", "RowSums"), *fields_of("verdict.h", "TensorStats"))
