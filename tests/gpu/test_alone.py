"""Tests that need a process of their own; what they do is in alone.py."""

from __future__ import annotations

import onepass
from gpu.subprocesses import HERE, python
from gpu.target import cuda_only

pytestmark = cuda_only


def test_a_plan_is_dropped_while_a_side_stream_steps() -> None:
    assert "as if alone" in python(str(HERE / "alone.py"), "plan_is_dropped_while_a_side_stream_steps")


def test_an_error_of_the_device_is_told() -> None:
    said = python(str(HERE / "alone.py"), "after_an_error_of_the_device")
    assert "onepass: " in said and "on cuda:0 failed: cudaErrorAssert" in said


def test_python_m_onepass() -> None:
    said = python("-m", "onepass")
    assert "self-test passed" in said
    assert [line.split()[1] for line in said.splitlines() if line.split()[:1] == ["cuda"]].count("AdamP") == 1
    assert onepass.__version__ in said
