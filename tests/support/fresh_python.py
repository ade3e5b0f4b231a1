"""A new Python process, for tests that depend on its start."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import onepass
from paths import IMPORTED
from processor import INSTRUCTIONS


def in_new_python(code: str, **environment: str) -> str:
    """The output of a new interpreter that imports the onepass under test."""
    # With folders of tests, so that a test may run its own functions there.
    path = [str(Path(onepass.__file__).parents[1]), *filter(None, sys.path), *map(str, IMPORTED)]
    setup = f"import sys; sys.path[:0] = {path!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", setup + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **INSTRUCTIONS, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
