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
from paths import ROOT, SUPPORT
from programs import programs_of, read_table

TARGETS = list(triton_code.SHARED)
ON_NVIDIA = [target for target in TARGETS if target.startswith("sm_")]
WITH_GATE = {"update", "correct", "decide"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the code of every kernel. Two other processes compile it: in this one Triton interprets."""
    folder = tmp_path_factory.mktemp("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(ROOT / "build/triton-cache"),  # what has not changed is not compiled again
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


def tile_of(kernel: dict[str, Any]) -> tuple[int, int]:
    """Width and rows of the tile of a kernel; zeros where it has none."""
    constants = kernel["constants"]
    return int(constants.get("WIDTH", 0)), int(constants.get("ROWS", 0))


def is_double(kernel: dict[str, Any]) -> bool:
    return kernel["constants"]["GRADIENT"] == "fp64"  # which `square_sum` has too


def vectors(kernel: dict[str, Any]) -> int:
    """16-byte accesses of a thread if it accesses p, g and the moments 16 bytes at a time where rows are aligned. Codes of 8 bits
    are fewer bytes where it has fewer elements than 16."""
    name, constants, (width, rows) = kernel["kernel"], kernel["constants"], tile_of(kernel)
    if not int(constants.get("ALIGNED", 0)):
        return 0
    gradient = {"fp64": 8, "fp32": 4}.get(constants["GRADIENT"], 2) if "GRADIENT" in constants else 0
    item = {"fp64": 8, "fp32": 4}.get(constants["PARAM"], 2) if "PARAM" in constants else 0
    moment = {"fp64": 8, "fp32": 4, "uint8": 1}.get(constants.get("MOMENT", ""), 2)
    moments = [moment] * (2 - int(constants.get("RULE", 0)))
    weight = [item, item] if constants.get("MASTER") == "True" else [item]
    read = [gradient] if name == "square_sum" else [*weight, gradient, *(moments if name != "gate_stats" else [])]
    written = {"step": weight + moments, "update": weight + moments, "correct": weight}.get(name, [])
    if name == "correct" and constants["PROJECTS_MOMENTUM"] == "True":
        written = [*written, moment]
    return sum(width * rows // kernel["threads"] * size // 16 for size in read + written)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_for_real_models(folder: Path, target: str) -> None:
    report = compiled_for(folder, target)
    for run, launches in report["launches"].items():
        _, dtype, optimizer = run.split(", ", 2)
        gated = re.split("[, ]", optimizer)[0] in ("AdamP", "SGDP")
        first, clipped, scaled = map(set, launches)
        assert first >= (WITH_GATE if gated else {"step"}), run
        assert clipped == scaled == first | {"device_scalars"}
        half = dtype in ("bfloat16", "float16") and "exact" not in optimizer
        unpredicted = gated and (half or "," in optimizer)
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


def elements_of(kernel: dict[str, Any]) -> int:
    """Of a thread."""
    width, rows = tile_of(kernel)
    return width * rows // int(kernel["threads"])


@pytest.mark.parametrize("target", TARGETS)
def test_elements_of_a_thread(folder: Path, target: str) -> None:
    """8, and 4 of float64; fewer where accesses are narrow; on NVIDIA 16 of a long row with sums."""
    seen = set()
    for kernel in compiled_for(folder, target)["kernels"]:
        width, _ = tile_of(kernel)
        if not width or not int(kernel["constants"]["ALIGNED"]):
            continue
        double = is_double(kernel)
        long = width >= 1024 and target in ON_NVIDIA and kernel["kernel"] != "step" and not double
        long = long and kernel["constants"].get("STOCHASTIC") != "True"
        # What only reads takes rows of projected tensors and of others, and of parameters that are rounded stochastically.
        either = kernel["kernel"] in ("square_sum", "gate_stats")
        allowed = {8, 16} if long and either else {16} if long else {4 if double else 8}
        assert elements_of(kernel) in allowed, kernel
        seen.add(elements_of(kernel))
    assert (16 in seen) == (target in ON_NVIDIA)


@pytest.mark.parametrize("target", ON_NVIDIA)
def test_compiles_for_real_models_without_spills(folder: Path, target: str) -> None:
    for kernel in compiled_for(folder, target)["kernels"]:
        ((registers, stack, local, *_),) = resources_of(folder / f"{kernel['name']}.cubin").values()
        print(described(kernel, registers))
        assert local == 0 and stack <= allowed_stack(kernel), kernel
        assert registers <= most_registers(kernel), (registers, kernel)


def described(kernel: dict[str, Any], registers: int) -> str:
    width, rows = tile_of(kernel)
    return f"{kernel['name']}: {registers} registers, {kernel['threads']} threads, {rows} x {width}; {kernel['run']}"


def most_registers(kernel: dict[str, Any]) -> int:
    """Of a thread, so that the 65,536 of a multiprocessor are enough for 4 programs of 128 threads, 2 of 256, 1 of 512."""
    width, _ = tile_of(kernel)
    if width == 0 or elements_of(kernel) == 32 or (width == 8192 and not kernel["name"].startswith("sm_")):
        return 255  # a program to a multiprocessor; `decide`, which has one for each tensor
    if kernel["constants"].get("MOMENT") == "uint8":
        return 128 if kernel["name"].startswith("sm_") else 136
    return 128 if is_double(kernel) or elements_of(kernel) == 16 else 104


def allowed_stack(kernel: dict[str, Any]) -> int:
    """Stack bytes per thread that ptxas leaves: on sm_80 of 16-bit parameters, where it stays at fewer registers than it may
    have, and twice as many where a buffer is kept besides p and u; and of rows of 8,192, which have all registers (most on sm_100
    with bfloat16)."""
    constants, (width, _) = kernel["constants"], tile_of(kernel)
    if constants.get("MOMENT") == "uint8":
        return 32 if kernel["name"].startswith("sm_100") else 8
    if constants.get("PARAM") in ("bf16", "fp16") and kernel["name"].startswith("sm_80"):
        return 16 if constants.get("PROJECTS_MOMENTUM") == "True" else 8
    most = 24 if constants.get("PARAM") == "bf16" and kernel["name"].startswith("sm_100") else 8
    return most if width == 8192 else 0


@pytest.mark.parametrize("target", ON_NVIDIA)
def test_compiles_for_real_models_16_bytes_at_a_time(folder: Path, target: str) -> None:
    """All accesses of aligned rows have 16 bytes, by their number."""
    for kernel in compiled_for(folder, target)["kernels"]:
        text = (folder / f"{kernel['name']}.ptx").read_text()
        wide = re.findall(r"(?:ld|st)\.global(?:\.\w+)*\.(?:v4\.[bfu]32|v2\.[bfu]64)", text)
        assert len(wide) == vectors(kernel), kernel


@pytest.mark.parametrize("target", ON_NVIDIA)
def test_counts_are_those_of_the_table(folder: Path, target: str) -> None:
    """The predictions of bench/predict_triton.py are made of programs.csv: instructions within 5%, or 8.
    After a change that is meant, programs.py writes it anew."""
    kept = {p.key: p for p in read_table()}
    both = [(p, kept[p.key]) for p in programs_of(folder, target) if p.key in kept]
    assert len(both) >= 8
    for now, then in both:
        for name, least in (("instructions", 8), ("float64", 8), ("conversions", 8), ("special", 2), ("barriers", 1)):
            a, b = getattr(now, name), getattr(then, name)
            assert abs(a - b) <= max(least, 0.05 * b), (name, now, then)
        assert abs(now.registers - then.registers) <= 8 and (now.threads, now.rows) == (then.threads, then.rows), (
            now,
            then,
        )


def test_the_table_has_every_target() -> None:
    found = {arch: {p.key[1:] for p in read_table() if p.arch == arch} for arch in ON_NVIDIA}
    assert {p.arch for p in read_table()} == set(ON_NVIDIA)
    assert all(own == found["sm_90"] for own in found.values()) and len(found["sm_90"]) > 40


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
        print(described(kernel, number["vgpr_count"]))
        assert number["vgpr_count"] <= most_registers(kernel), kernel
        assert number["vgpr_spill_count"] == number["private_segment_fixed_size"] == 0, kernel
        wide = re.findall(r"(?:global|buffer|flat)_(?:load|store)_dwordx4", text)
        assert len(wide) >= vectors(kernel), kernel
