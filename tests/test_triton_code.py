"""The Triton kernels' machine code, compiled ahead of time: nothing is spilled, and memory is reached 16 bytes at a time.

Needs no GPU. `pytest tests/test_triton_code.py -rP` prints registers.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import onepass
import triton_code
from machine_code import resources_of
from triton_code import Case, vectors

CASES = list(triton_code.cases())
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
ON_NVIDIA = [case for case in CASES if case.target.startswith("sm_")]
ON_AMD = [case for case in CASES if case.target.startswith("gfx")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the code of every case is. Compiled in another process: in this one Triton interprets."""
    folder = tmp_path_factory.mktemp("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(Path(onepass.__file__).parents[1])}
    command = [sys.executable, triton_code.__file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_kernel_and_dtype_is_compiled_for_every_target() -> None:
    for target in triton_code.TARGETS:
        for dtype in triton_code.DTYPES:
            assert {case.kernel for case in CASES if (case.target, case.dtype) == (target, dtype)} >= set(
                triton_code.KERNELS
            )
        assert {"verdict", "prepare", "add_up"} <= {case.kernel for case in CASES if case.target == target}


@pytest.mark.parametrize("case", ON_NVIDIA, ids=lambda case: case.name)
def test_no_spills(folder: Path, case: Case) -> None:
    ((registers, stack, local),) = resources_of(folder / f"{case.name}.cubin").values()
    print(f"{case.name}: {registers} registers")
    assert stack == local == 0


@pytest.mark.parametrize("case", [c for c in ON_NVIDIA if c.body % 2], ids=lambda case: case.name)
def test_16_bytes_at_a_time(folder: Path, case: Case) -> None:
    """As many accesses of 16 bytes as it takes to reach every element so."""
    text = (folder / f"{case.name}.ptx").read_text()
    wide = re.findall(r"(?:ld|st)\.global(?:\.\w+)*\.(?:v4\.[bfu]32|v2\.[bfu]64)", text)
    assert len(wide) == vectors(case)


@pytest.mark.parametrize(
    "case", [c for c in ON_NVIDIA if c.body % 2 and c.kernel != "verdict"], ids=lambda case: case.name
)
def test_nothing_is_contracted(folder: Path, case: Case) -> None:
    """No multiply-add in the numbers of elements that the sources do not have: division and square root bring their own,
    which `measure` has not."""
    if case.kernel == "measure":
        assert not re.findall(r"\bfma\.rn", (folder / f"{case.name}.ptx").read_text())
    text = (folder / f"{case.name}.ptx").read_text()
    assert "approx" not in text and ".ftz" not in text


@pytest.mark.parametrize("case", ON_AMD, ids=lambda case: case.name)
def test_on_amd(folder: Path, case: Case) -> None:
    said = json.loads((folder / "cases.json").read_text())[case.name]
    if "cannot" in said:
        pytest.skip(f"the installed Triton cannot compile for {case.target}: {said['cannot']}")
    text = (folder / f"{case.name}.amdgcn").read_text()
    number = {
        name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1])
        for name in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    }
    print(f"{case.name}: {number['vgpr_count']} registers")
    assert number["vgpr_spill_count"] == number["private_segment_fixed_size"] == 0
    assert len(re.findall(r"(?:global|buffer|flat)_(?:load|store)_dwordx4", text)) >= vectors(case)
