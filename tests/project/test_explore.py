"""The variants of bench/explore.py are edits of what the sources say, compile, and can be timed, as far as a CPU shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paths import BENCH, ROOT

sys.path.append(str(BENCH))
from explore import FIELDS, VARIANTS, Variant, sources_of


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
def test_edits_apply(variant: Variant, tmp_path: Path) -> None:
    sources_of(variant, tmp_path / "tree")
    changed = {
        path.name
        for path in (ROOT / "csrc/cuda").iterdir()
        if (tmp_path / "tree/csrc/cuda" / path.name).read_bytes() != path.read_bytes()
    }
    assert changed == {file for file, _, _ in variant.edits}


def test_rehearsal() -> None:
    command = [sys.executable, str(BENCH / "explore.py"), "--time", "--rehearse"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert len(rows) == 6 and all(set(row) == set(FIELDS) and row["us"] > 0 for row in rows)
