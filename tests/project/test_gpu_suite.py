"""tests/gpu, run on the emulation as far as it can."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import onepass
from paths import SUPPORT


def run_on(choice: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "ONEPASS_GPU_TESTS_ON": choice, "OMP_NUM_THREADS": "1", "ONEPASS_TEST_PART": "0/1",
    }  # fmt: skip
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(onepass.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    # From tests/support: `python -m` then adds the same folder to the path as pytest.
    command = [sys.executable, "-m", "pytest", "../gpu", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=SUPPORT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(torch.cuda.is_available(), reason="they would run")
@pytest.mark.parametrize("choice", ["cuda", "triton"])
def test_is_collected_for_a_gpu(choice: str) -> None:
    """Collection succeeds, and the first test fails with the reason that tests/gpu cannot run."""
    done = run_on(choice)
    assert done.returncode == 1, done.stdout[-5000:] + done.stderr[-2000:]  # 2: an error while collecting
    assert "tests/gpu cannot run: torch" in done.stdout + done.stderr


def test_on_the_emulation() -> None:
    done = run_on("emulated")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 300
