"""Plans dropped during a step, device errors and `python -m onepass`, each in a process of its own (alone.py)."""

from __future__ import annotations

import onepass
from gpu.subprocesses import HERE, python
from gpu.target import cuda_only

pytestmark = cuda_only


def test_plan_dropped_while_a_side_stream_steps() -> None:
    assert "as if alone" in python(str(HERE / "alone.py"), "plan_is_dropped_while_a_side_stream_steps")


def test_device_error_is_reported() -> None:
    output = python(str(HERE / "alone.py"), "after_an_error_of_the_device")
    assert "onepass: " in output and "on cuda:0 failed: cudaErrorAssert" in output


def test_python_m_onepass() -> None:
    output = python("-m", "onepass")
    assert "self-test passed" in output
    assert [line.split()[1] for line in output.splitlines() if line.split()[:1] == ["cuda"]].count("AdamP") == 1
    assert onepass.__version__ in output
