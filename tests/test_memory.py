"""A step needs no memory to speak of beside parameters, gradients and state, and leaks none."""

from __future__ import annotations

import json
import sys

import pytest

from test_backends import in_new_python

# 64 MB of parameters: rows, one row, no rows, and a gradient of another layout.
CODE = """
    import json, torch, onepass
    from pathlib import Path

    def kilobytes(key):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1])

    torch.set_num_threads(2)
    params = [torch.ones(2048, 3072), torch.ones(1, 4_000_000), torch.ones(2_000_000), torch.ones(1000, 4000)]
    for p in params:
        p.uniform_(-1, 1)
        p.grad = torch.ones_like(p).uniform_(-1, 1)
    params[3].grad = params[3].grad.T.contiguous().T
    opt = onepass.{name}(params, lr=1e-3, weight_decay=0.1, backend="{backend}")
    for _ in range(2):
        opt.step()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = kilobytes("VmRSS")
    for _ in range(4):
        opt.step()
    print(json.dumps([kilobytes("VmHWM") - before, sum(p.nbytes for p in params) // 1024]))
"""


def _extra(name: str, backend: str) -> float:
    """Peak of a step beyond what is there between steps, as a share of the parameters."""
    extra, parameters = json.loads(in_new_python(CODE.format(name=name, backend=backend)))
    return extra / parameters


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
@pytest.mark.parametrize("name", ["AdamW", "AdamP"])
def test_peak_of_a_step(name: str) -> None:
    assert _extra(name, "cpu") <= 0.01


@linux
def test_the_measurement_sees_temporaries() -> None:
    assert _extra("AdamW", "reference") > 0.1
