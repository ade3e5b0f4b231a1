"""DeepSpeed's ZeRO 1 and 2 on two processes: elementwise rules give the weights of one process, projected ones are refused."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("deepspeed")
import deepspeed_runs
import onepass
from deepspeed_runs import RUNS, WORLD
from processes import of_run, results_of
from tools import ten_steps


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return results_of(deepspeed_runs.__file__, WORLD, RUNS, tmp_path_factory.mktemp("deepspeed"))


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("zero")])
def test_equals_one_process(results: Any, name: str) -> None:
    """With clipping, and a checkpoint in the middle. In bfloat16 as far as its forward passes allow."""
    _, _, optimizer, *bf16 = name.split()
    net, _, losses = ten_steps(getattr(onepass, optimizer))
    ranks = of_run(results, name)
    apart = 0.1 if bf16 else 1e-5
    for result in ranks:
        for got, want in zip(result["weights"], net.parameters(), strict=True):
            assert (got - want).abs().max() < apart
    means = [sum(each) / WORLD for each in zip(*(result["losses"] for result in ranks), strict=True)]
    assert means == pytest.approx(losses, rel=0.05 if bf16 else 1e-5)
    assert means[-1] < 0.95 * means[0]


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("refused")])
def test_projection_is_refused(results: Any, name: str) -> None:
    """DeepSpeed puts a vector in the place of all parameters, after construction."""
    for result in of_run(results, name):
        for words in ("parameter 0 of group 0", "a plain vector", "DeepSpeed's ZeRO", "needs its rows", "fully_shard"):
            assert words in result["said"]
