"""The CUDA kernels, emulated on a CPU, under AddressSanitizer and UndefinedBehaviorSanitizer: no access out of the bounds of a
tensor, the plan or shared memory, no misaligned access, no overflow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edits
import emulated_backend
import sanitize
import sanitized_cases
from paths import ROOT, SUPPORT, TESTS

# The tests chosen of each file: steps, and whatever else writes to a plan or to shared memory.
CHOSEN = {
    "support/sanitized_cases.py": "emulated and no_access",
    "rule/test_parity.py": "emulated and (test_large_tensors or test_layouts) and (AdamP or SGD) and (float32 or bfloat16)",
    "step/test_rows_on_chip.py": "just_fit and AdamP or deferred_piece or nan_survives",
    "plan/test_launches.py": "new_gradients and 1500 or step_counts and 40-9 or momentum_of_sgd or row_cache",
    "step/test_capturable.py": "many_tensors and 300 or groups",
    "step/test_captures.py": "test_replays and float32 and (AdamP or SGD) or between_replays",
    "step/test_block_orders.py": "test_same_bits_of_variants",
}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    try:
        preloaded = sanitize.preloaded("address")
    except sanitize.Missing as what:
        pytest.skip(str(what))
    return {
        **os.environ,
        **preloaded,
        "ONEPASS_EMULATED": str(emulated_backend.build("sanitized")),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SUPPORT), *sys.path])),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
    }


def _run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=600)


def test_no_stray_access(environment: dict[str, str]) -> None:
    chosen = " or ".join(f"{Path(file).name} and ({words})" for file, words in CHOSEN.items())
    done = _run(environment, "-m", "pytest", *CHOSEN, "-q", "-x", "-p", "no:cacheprovider", "-k", chosen)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 100, done.stdout[-500:]


def test_a_stray_access_is_detected(environment: dict[str, str]) -> None:
    """Each operand in turn is one element too short, unknown to the kernels."""
    done = _run(environment, "support/sanitized_cases.py", "emulated", "heap")
    assert done.stdout.splitlines() == [f"{operand} found out" for operand in sanitized_cases.OPERANDS], done.stderr[
        -3000:
    ]
    assert done.stderr.count("ERROR: AddressSanitizer: heap-buffer-overflow") == len(sanitized_cases.OPERANDS)
    assert "onepass::cuda::" in done.stderr


# ------------------------------------------------------------------ sanitize.py, for the CPU backend


def test_mistakes_follow_the_sources() -> None:
    for sanitizer in sanitize.SANITIZERS.values():
        file, code, _ = sanitizer.mistake
        edits.home_of(code, {file: (ROOT / file).read_text()})


def test_a_child_without_the_sanitizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEPASS_SANITIZED", "/build")
    good = {"PYTHONPATH": os.pathsep.join(["/tests", "/build"]), "LD_PRELOAD": "libasan.so"}
    sanitize.refuse_others("subprocess.Popen", (sys.executable, [], None, good))
    sanitize.refuse_others("subprocess.Popen", ("c++", [], None, {}))
    for name in good:
        with pytest.raises(AssertionError, match="no sanitizer"):
            sanitize.refuse_others("subprocess.Popen", (sys.executable, [], None, {**good, name: ""}))
