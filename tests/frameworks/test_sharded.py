"""Sharded parameters on four processes with gloo: the gates, counters and bits of one process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

import sharded_runs
from processes import of_run, results_of
from records import BACKENDS
from sharded_runs import NAMES, PLACES, RUNS, WORLD

GATES = ["channel", "none", "channel", "channel", "layer", "channel"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return results_of(sharded_runs.__file__, WORLD, RUNS, tmp_path_factory.mktemp("sharded"))


def runs(start: str) -> Callable[[Any], Any]:
    names = [name for name in RUNS if name.startswith(start)]
    assert names
    return pytest.mark.parametrize("name", names)


def test_runs_cover_every_backend_and_layout() -> None:
    import sharded

    assert set(NAMES) == set(BACKENDS) and set(PLACES) == set(sharded.LAYOUTS)
    for backend in NAMES:
        for place in PLACES:
            assert f"beside {backend} {place} AdamP" in RUNS


@runs("beside")
def test_the_bits_of_one_process(results: Any, name: str) -> None:
    """Weights, moments, counters and gates, which the run itself has compared; gates were as asked for."""
    for result in of_run(results, name):
        if not name.endswith("AdamP"):
            continue
        for gate, found in zip(GATES, result["gates"], strict=True):
            assert gate in found


@runs("many ranks")
def test_a_sum_of_the_library_gives_the_same_gates(results: Any, name: str) -> None:
    of_run(results, name)


ROWS, RECORD = 32, 48  # bytes of a row's sums, and of a tensor's statistics


@runs("collectives")
def test_collectives(results: Any, name: str) -> None:
    """One for an axis that parts rows, one more for an axis that splits them; none of elementwise rules, none over replicas. The
    same ones and bytes in every step, whatever the gates, the predictions and the missing gradients are."""
    _, rule, place = name.split()
    for result in of_run(results, name):
        calls, tensors = result["calls"], result["tensors"]
        assert all(each == calls[0] for each in calls)
        sizes = [size for _, size in calls[0]]
        if rule == "AdamW":
            assert not sizes
            continue
        rows, records = {"fsdp": (0, 1), "hsdp": (0, 1), "fsdp_columns": (1, 1), "tp": (1, 1), "fsdp_tp": (1, 2)}[place]
        assert len(sizes) == rows + records
        assert all(size % ROWS == 0 for size in sizes[:rows])
        assert all(size % RECORD == 0 and size <= RECORD * tensors for size in sizes[rows:])
        if place in ("fsdp", "hsdp"):
            assert sizes == [RECORD * tensors]


@runs("not a number")
def test_one_rank_closes_the_gate_of_all(results: Any, name: str) -> None:
    for result in of_run(results, name):
        assert result["gates"] == [["none", "none"]] * WORLD
        for cosines in result["cosines"]:
            assert all(math.isnan(cosine) for cosine in cosines)


@runs("near the threshold")
def test_the_threshold_is_of_whole_rows(results: Any, name: str) -> None:
    for result in of_run(results, name):
        assert result["gates"] == sharded_runs.NEAR


@runs("uneven ranks")
def test_ranks_that_differ_do_not_part(results: Any, name: str) -> None:
    ranks = of_run(results, name)
    assert ranks[0]["gates"] == [["channel"] * 2, ["channel"], ["none"] * 2, ["channel"] * 2]
    for result in ranks[1:]:
        for time in (0, 2, 3):
            assert result["gates"][time] == ranks[0]["gates"][time]


def test_ranks_without_rows_take_part(results: Any) -> None:
    ranks = of_run(results, "empty ranks")
    assert all(result == ranks[0] for result in ranks) and ranks[0]["gates"] == ["none"]


@runs("placed otherwise")
def test_gradients_that_are_placed_otherwise(results: Any, name: str) -> None:
    for result in of_run(results, name):
        assert {("Partial(sum)",), ("Replicate()",)} < result["placements"]
        for sharded, whole in result["norms"]:
            assert sharded == pytest.approx(whole, rel=1e-6)
        assert max(result["apart"]) < 1e-6
        sharded, whole = result["gates"]
        assert sharded == whole


@runs("partial alone")
def test_partial_gradients_are_summed_at_every_step(results: Any, name: str) -> None:
    for result in of_run(results, name):
        assert result["apart"] == [0.0] * 3


def test_replaced_tensors_are_seen(results: Any) -> None:
    of_run(results, "seen again")


@runs("tied")
def test_policies_of_fsdp2_and_tied_weights(results: Any, name: str) -> None:
    for result in of_run(results, name):
        assert max(result["apart"]) == 0 and len(result["apart"]) == 5
        assert result["gates"][0] == result["gates"][1]
        assert result["dtypes"] == {"torch.float32"} and result["losses"][-1] < result["losses"][0]


@runs("clipped")
def test_clipping(results: Any, name: str) -> None:
    for result in of_run(results, name):
        if name == "clipped over stages":
            assert result["norm"] == pytest.approx(result["want"], rel=1e-6)
            continue
        for sharded, whole in result["norms"]:
            assert sharded == pytest.approx(whole, rel=1e-6)
        assert max(result["collectives"]) <= 2
        assert result["apart"] < 1e-6


@runs("overflowed")
def test_an_overflow_on_one_rank_skips_the_step_of_all(results: Any, name: str) -> None:
    for result in of_run(results, name):
        assert result == {"stepped": [[True, True], [False, False], [True, True]], "count": 2.0}


def test_steps_in_the_backward_pass(results: Any) -> None:
    for result in of_run(results, "stepped in backward"):
        assert result == {"apart": [0.0] * 7, "left": 0}


@runs("resumed")
def test_checkpoints(results: Any, name: str) -> None:
    """The loaded state has the bits of the saved; training goes on with those of the unbroken run, or their gradients', which tensor
    parallelism sums in another order."""
    for result in of_run(results, name):
        assert not any(result["apart"].values())
        assert result["distance"] < (1e-6 if "fsdp_tp" in name else 1e-12)
        assert result["counters"]


def test_a_state_dict_of_one_process(results: Any) -> None:
    for result in of_run(results, "loaded whole"):
        assert max(result["apart"]) == 0 and result["counters"]


@runs("mutant")
def test_mutants_are_noticed(results: Any, name: str) -> None:
    """On some rank."""
    assert any(result["caught"] for result in of_run(results, name))


@runs("example")
def test_examples(results: Any, name: str) -> None:
    for result in of_run(results, name):
        assert result["losses"] == pytest.approx(result["want"], rel=1e-5) and result["losses"][-1] < 7
        assert result["apart"] < 1e-5


def test_refusals(results: Any) -> None:
    for result in of_run(results, "refused"):
        for what, words in {
            "partial": ("ValueError", "Partial", "redistribute"),
            "dim 2": ("ValueError", "sharded along dim 2", "along dim 0 or 1", "state_dtype=None"),
            "blocks": ("ValueError", "no multiples of 256", "state_dtype=torch.bfloat16"),
            "blocks cut twice": ("ValueError", "no multiples of 256", "state_dtype=torch.bfloat16"),
            "state": ("ValueError", "'exp_avg'", "with placements (Shard(dim=0),)"),
            "plain gradient": ("TypeError", "on the mesh of the parameter, DeviceMesh", "got none (a plain tensor)"),
            "gradient of a plain one": ("TypeError", "none (a plain tensor), got DeviceMesh"),
            "another mesh": ("TypeError", "DeviceMesh((dp=4)", "got DeviceMesh((dp=2, tp=2)"),
        }.items():
            for word in (*words, "parameter 0 of group 0"):
                assert word in result[what], result[what]
        assert result["whole blocks"] == "accepted"


def test_a_rank_that_raises_leaves_the_others_with_an_error(results: Any) -> None:
    """Of torch's timeout; no step is counted on any."""
    first, *others = of_run(results, "left alone")
    assert "lr must be at least 0" in first["said"]
    for result in others:
        assert result["said"].startswith("RuntimeError") and result["step"] == 0
