"""Machine code of the Triton kernels, cross-compiled by the backend's own code for the plans of real models: no register
spills, and 16-byte memory accesses. See triton_code.py.

`pytest tests/builds/test_triton_code.py -rP` prints registers. ONEPASS_EVERY_TARGET=1 in the environment compiles every model in
every dtype for every target, which takes four times as long.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import onepass
import triton_code
from machine_code import resources_of
from paths import SUPPORT

TARGETS = list(triton_code.SHARED)
ON_NVIDIA = [target for target in TARGETS if target.startswith("sm_")]
WARPS = 8
WITH_GATE = {"update", "correct", "decide"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the code of every kernel. Two other processes compile it: in this one Triton interprets."""
    folder = tmp_path_factory.mktemp("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([str(Path(onepass.__file__).parents[1]), str(SUPPORT)]),
        "OMP_NUM_THREADS": "1",
    }
    each = [
        subprocess.Popen([sys.executable, triton_code.__file__, str(folder), *targets], env=environment)
        for targets in (TARGETS[::2], TARGETS[1::2])
    ]
    assert [process.wait() for process in each] == [0, 0]
    return folder


def compiled_for(folder: Path, target: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / f"{target}.json").read_text())
    return report


def vectors(target: str, kernel: str, constants: dict[str, str]) -> int:
    """16-byte accesses of a thread if it accesses p, g and the moments 16 bytes at a time wherever rows are aligned."""
    if "CONFIGS" not in constants:
        return 0
    item = {"fp64": 8, "fp32": 4}.get(constants["PARAM"], 2)
    work = 8 if item == 8 else 4
    moments = 2 - int(constants.get("RULE", 0))
    read = item if kernel == "square_sum" else 2 * item + (moments * work if kernel != "gate_stats" else 0)
    written = {"step": item + moments * work, "update": item + moments * work, "correct": item}.get(kernel, 0)
    if kernel == "correct" and constants["PROJECTS_MOMENTUM"] == "True":
        written += work
    threads = WARPS * (64 if target.startswith("gfx") else 32)
    configs, tile = int(constants["CONFIGS"]), int(constants["TILE"])
    widths = [16 << config // 2 for config in range(1, 64, 2) if configs >> config & 1]
    return sum(max(tile, width) // threads * (read + written) // 16 for width in widths)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_for_real_models(folder: Path, target: str) -> None:
    report = compiled_for(folder, target)
    for run, launches in report["launches"].items():
        _, dtype, optimizer = run.split(", ", 2)
        gated = optimizer.split(",")[0] in ("AdamP", "SGDP")
        first, clipped, scaled = map(set, launches)
        assert first >= (WITH_GATE if gated else {"step"}), run
        assert clipped == scaled == first | {"device_scalars"}
        unpredicted = gated and (dtype in ("bfloat16", "float16") or "," in optimizer)
        assert ("gate_stats" in first) == unpredicted
    assert {kernel["kernel"] for kernel in report["kernels"]} == {
        *("step", "gate_stats", "update", "correct", "decide"),
        *("square_sum", "add_up", "device_scalars"),
    }
    assert all(0 < x < 1 << 31 and y == z == 1 for x, y, z in report["grids"])


@pytest.mark.parametrize("pairs", [triton_code.PAIRS])
def test_compiles_for_real_models_each_in_both_dtypes(pairs: dict[str, Any]) -> None:
    assert set(pairs) == set(TARGETS)
    compiled = [plan for plans in pairs.values() for plan in plans]
    models = set(triton_code.MODELS) - {"rows"}
    assert {(m, d) for m, d in compiled if m != "rows"} == {(m, d) for m in models for d in ("float32", "bfloat16")}


def test_compiles_for_real_models_with_several_configurations(folder: Path) -> None:
    """Every kernel with rows of a real model dispatches to at least two tile configurations."""
    classes = [
        int(kernel["constants"]["CONFIGS"]).bit_count()
        for target in TARGETS
        for kernel in compiled_for(folder, target)["kernels"]
        if "CONFIGS" in kernel["constants"] and not kernel["run"].startswith("rows")
    ]
    assert min(classes) >= 2 and max(classes) >= 5


@pytest.mark.parametrize("target", ON_NVIDIA)
def test_compiles_for_real_models_without_spills(folder: Path, target: str) -> None:
    for kernel in compiled_for(folder, target)["kernels"]:
        ((registers, stack, local, *_),) = resources_of(folder / f"{kernel['name']}.cubin").values()
        print(f"{kernel['name']}: {registers} registers; {kernel['run']}")
        assert local == 0 and stack <= allowed_stack(kernel), kernel


def allowed_stack(kernel: dict[str, Any]) -> int:
    """Stack bytes per thread that ptxas 13 leaves for sm_90 with ONEPASS_EVERY_TARGET=1, in 12 of 241 kernels."""
    constants = kernel["constants"]
    if kernel["kernel"] == "correct" and constants["PARAM"] == "fp64":
        return 32  # saves registers across the call of a division function
    if (
        kernel["kernel"] == "update"
        and constants["PROJECTS_MOMENTUM"] == "True"
        and int(constants["CONFIGS"]) >> 19 & 1
    ):
        return 80  # keeps the buffer of a row of 8,192 besides p and u
    return 0


@pytest.mark.parametrize("target", ON_NVIDIA)
def test_compiles_for_real_models_16_bytes_at_a_time(folder: Path, target: str) -> None:
    """All accesses of aligned rows have 16 bytes, by their number."""
    for kernel in compiled_for(folder, target)["kernels"]:
        text = (folder / f"{kernel['name']}.ptx").read_text()
        wide = re.findall(r"(?:ld|st)\.global(?:\.\w+)*\.(?:v4\.[bfu]32|v2\.[bfu]64)", text)
        assert len(wide) == vectors(target, kernel["kernel"], kernel["constants"]), kernel


@pytest.mark.parametrize("target", ON_NVIDIA)
def test_no_contraction_or_approximation(folder: Path, target: str) -> None:
    """No fused multiply-add in `gate_stats` and `decide`; in other kernels division and square root of float32 use some."""
    for kernel in compiled_for(folder, target)["kernels"]:
        text = (folder / f"{kernel['name']}.ptx").read_text()
        if kernel["kernel"] in ("gate_stats", "decide"):
            assert not re.findall(r"\bfma\.rn", text)
        if kernel["kernel"] not in ("decide", "device_scalars"):
            assert "approx" not in text and ".ftz" not in text, kernel


@pytest.mark.parametrize("target", [target for target in TARGETS if target not in ON_NVIDIA])
def test_compiles_for_real_models_on_amd(folder: Path, target: str) -> None:
    for kernel in compiled_for(folder, target)["kernels"]:
        text = (folder / f"{kernel['name']}.amdgcn").read_text()
        number = {
            name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1])
            for name in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
        }
        print(f"{kernel['name']}: {number['vgpr_count']} registers; {kernel['run']}")
        assert number["vgpr_spill_count"] == number["private_segment_fixed_size"] == 0, kernel
        wide = re.findall(r"(?:global|buffer|flat)_(?:load|store)_dwordx4", text)
        assert len(wide) >= vectors(target, kernel["kernel"], kernel["constants"]), kernel
