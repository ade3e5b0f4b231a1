"""torch.distributed, two processes with gloo: the bits of one process with the mean of the gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import distributed_runs
from compare import assert_same_bits
from distributed_runs import RUNS, STEPS, WORLD, alone, model_of, weights
from records import BACKENDS, RECORDS

SECONDS = 240


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The results of every run, by rank. All runs share one pair of processes: starting them takes most of the time."""
    folder = tmp_path_factory.mktemp("distributed")
    path = [str(Path(distributed_runs.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # independent of host name and network
    programs = [
        subprocess.Popen(
            [sys.executable, distributed_runs.__file__, str(rank), str(folder)],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    try:
        output = [program.communicate(timeout=SECONDS)[0] for program in programs]
    finally:
        for program in programs:
            program.kill()
    assert [program.returncode for program in programs] == [0] * WORLD, "\n".join(output)[-3000:]
    return {
        name: [torch.load(folder / f"{name}.{rank}.pt", weights_only=False) for rank in range(WORLD)] for name in RUNS
    }


def of_run(results: dict[str, list[dict[str, Any]]], name: str) -> list[dict[str, Any]]:
    for result in results[name]:
        assert "error" not in result, result["error"]
    return results[name]


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


def test_shards_of_fully_shard_are_refused(results: Any) -> None:
    """The advice in the message works."""
    _, want = alone_with("AdamW")
    for result in of_run(results, "fsdp2 AdamW"):
        for words in ("is a DTensor", "p.detach().to_local()", "p.grad.to_local()"):
            assert words in result["refused"]
        assert_same_weights(result["weights"], want)
    for result in of_run(results, "fsdp2 AdamP"):
        for words in ("is a DTensor", "needs whole tensors", "DistributedDataParallel", "without projection"):
            assert words in result["refused"]
