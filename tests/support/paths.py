"""Folders of the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
SUPPORT = TESTS / "support"
BENCH = ROOT / "bench"
# Folders whose test modules checks.py, or a Python that a test starts, imports by name.
IMPORTED = [TESTS / name for name in ("rule", "state", "step", "plan", "project")]
