"""Programs that run beside the tests, with the onepass under test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onepass

HERE = Path(__file__).parent


def environment(**more: str) -> dict[str, str]:
    path = [str(Path(onepass.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    # One thread on the host: the tests are of the device.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", **more}


def start(command: list[str], **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(**more)
    )


def python(*arguments: str, timeout: float = 120) -> str:
    """The output of a Python program, errors included; AssertionError if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout
