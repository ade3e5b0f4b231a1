"""Accelerate's FSDP2, and Hugging Face's Trainer with it, on two processes: the weights of one process, and resuming."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("transformers")
import accelerate_runs
import onepass
from accelerate_runs import OPTIMIZERS, RUNS, WORLD
from processes import of_run, results_of
from tools import ten_steps


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return results_of(accelerate_runs.__file__, WORLD, RUNS, tmp_path_factory.mktemp("accelerate"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accelerate_equals_one_process(results: Any, name: str) -> None:
    """The optimizer was made with the whole parameters, and steps the parts of a rank."""
    net, opt, losses = ten_steps(getattr(onepass, name))
    for result in of_run(results, f"accelerate {name}"):
        assert result["sharded"]
        assert result["losses"] == pytest.approx(losses, rel=1e-5)
        assert result["gates"] == [verdict.gate for verdict in opt.last_step().values()]
        for got, want in zip(result["weights"], net.parameters(), strict=True):
            assert (got - want).abs().max() < 1e-5


def test_trainer(results: Any) -> None:
    """Resumed, the weights of the uninterrupted run."""
    for result in of_run(results, "trainer"):
        assert result["sharded"] and result["apart"] == 0 and result["class"] == "AdamP"
        assert result["projected"][0] == result["projected"][1] > 0
        assert result["loss"] < 3.4  # ln(32) = 3.47 before training
