"""torch.distributed, two processes with gloo: the bits of one process with the mean of the gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import distributed_runs
from compare import assert_same_bits
from distributed_runs import RUNS, STEPS, WORLD, alone, model_of, weights
from processes import of_run, results_of
from records import BACKENDS, RECORDS


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return results_of(distributed_runs.__file__, WORLD, RUNS, tmp_path_factory.mktemp("distributed"))


def alone_with(name: str, backend: str = "cpu", times: range = range(STEPS)) -> tuple[Any, list[torch.Tensor]]:
    model = model_of()
    opt = RECORDS[name].make(model.parameters(), backend=backend, **RECORDS[name].typical)
    alone(model, opt, times)
    return opt, weights(model.parameters())


def assert_same_weights(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for i, (p, q) in enumerate(zip(got, want, strict=True)):
        assert_same_bits(p, q, f"parameter {i}")


def test_runs_cover_every_backend() -> None:
    assert set(distributed_runs.BACKENDS) == set(BACKENDS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["AdamW", "AdamP", "SGDP"])
def test_distributed_data_parallel(results: Any, name: str, backend: str) -> None:
    _, want = alone_with(name, backend)
    for result in of_run(results, f"ddp {name} {backend}"):
        assert_same_weights(result["weights"], want)


@pytest.mark.parametrize("name", ["AdamW", "AdamP", "SGD"])
def test_zero_redundancy_optimizer(results: Any, name: str) -> None:
    """Each rank steps its part of the parameters; the consolidated state dict equals that of one process."""
    opt, half = alone_with(name)
    _, end = alone_with(name, times=range(2 * STEPS))
    ranks = of_run(results, f"zero {name}")
    assert [0 < result["own"] < len(half) for result in ranks] == [True] * WORLD
    for result in ranks:
        assert_same_weights(result["half"], half)
        assert_same_weights(result["weights"], end)
    want, got = opt.state_dict()["state"], ranks[0]["state_dict"]["state"]
    assert want.keys() == got.keys()
    for i, own in want.items():
        assert own.keys() == got[i].keys()
        for key, value in own.items():
            assert_same_bits(got[i][key], value, f"parameter {i} {key}")


@pytest.mark.parametrize("sharding", ["parameters sharded", "flat sharded", "parameters whole", "flat whole"])
@pytest.mark.parametrize("name", ["AdamW", "AdamP", "SGDP"])
def test_fully_sharded_data_parallel(results: Any, name: str, sharding: str) -> None:
    """Elementwise rules step flat shards; projected rules need rows and refuse them rather than drop the projection."""
    ranks = of_run(results, f"fsdp1 {name} {sharding}")
    if name == "AdamW" or sharding == "parameters whole":
        _, want = alone_with(name, times=range(2 * STEPS))
        for result in ranks:
            assert_same_weights([w.flatten() for w in result["weights"]], _as_in(result["weights"], want))
    else:
        for result in ranks:
            for words in (
                "parameter 0 of group 0",
                "a flat shard made by FSDP",
                "needs its rows",
                "without projection",
            ):
                assert words in result["refused"]


def _as_in(got: list[torch.Tensor], want: list[torch.Tensor]) -> list[torch.Tensor]:
    """`want`, flattened; concatenated if FSDP has flattened all parameters into one."""
    flat = [w.flatten() for w in want]
    return flat if len(got) == len(want) else [torch.cat(flat)]
