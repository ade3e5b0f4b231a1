"""A step needs no memory to speak of beside parameters, gradients and state, and leaks none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from test_backends import in_new_python

sys.path.append(str(Path(__file__).parents[1] / "bench"))
import peak

LIMIT = 0.01
# 64 MB of parameters: rows, one row, no rows, and a gradient of another layout.
CODE = """
    sys.path.append({bench!r})
    import json, torch, onepass, peak

    torch.set_num_threads(2)
    params = [torch.ones(2048, 3072), torch.ones(1, 4_000_000), torch.ones(2_000_000), torch.ones(1000, 4000)]
    for p in params:
        p.uniform_(-1, 1)
        p.grad = torch.ones_like(p).uniform_(-1, 1)
    params[3].grad = params[3].grad.T.contiguous().T
    opt = onepass.{name}(params, lr=1e-3, weight_decay=0.1, backend="{backend}")
    for _ in range(2):
        opt.step()
    parameters = sum(p.nbytes for p in params)
    peak.assert_seen(int(2 * {limit} * parameters))
    print(peak.peak(lambda: [opt.step() for _ in range(4)]) / parameters)
"""


def _extra(name: str, backend: str) -> float:
    """Peak of a step beyond what is there between steps, as a share of the parameters; measured where a temporary of twice
    the limit is seen."""
    code = CODE.format(name=name, backend=backend, bench=peak.__file__.rpartition("/")[0], limit=LIMIT)
    return float(in_new_python(code, **peak.ENVIRONMENT))


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
@pytest.mark.parametrize("name", ["AdamW", "AdamP"])
def test_peak_of_a_step(name: str) -> None:
    assert _extra(name, "cpu") <= LIMIT


@linux
def test_the_measurement_sees_temporaries() -> None:
    assert _extra("AdamW", "reference") > 0.1
