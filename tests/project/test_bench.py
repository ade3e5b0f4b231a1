"""The CPU bench (bench/run.py): its CSV has the measurements, the machine and the targets."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys

import pytest

from paths import BENCH

pytest.importorskip("adamp")
pytest.importorskip("matplotlib")

RUN = BENCH / "run.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    out = tmp_path_factory.mktemp("bench")
    chosen = ("--case", "gpt2-adam", "--case", "gpt2-bf16", "--case", "resnet50-each")
    command = [sys.executable, str(RUN), "--quick", *chosen, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.csv")
    for figure in (f"{path.stem}.svg", f"{path.stem}-dark.svg"):
        assert f"{path.name} " in (out / figure).read_text()
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_contender_has_a_row(rows):
    names = [row["contender"] for row in rows if row["case"] == "gpt2-adam"]
    assert names[0] == "torch fused AdamW" and "adamp AdamP" in names
    ours = ("AdamW", "AdamProx", "AdamProxL2", "AdamP", "AdamP proximal", "AdamP as timm")
    assert {f"onepass {name}" for name in ours} < set(names)
    if importlib.util.find_spec("timm"):
        assert "timm AdamP" in names
    assert {row["dtype"] for row in rows if row["case"] == "gpt2-bf16"} == {"float32", "bfloat16"}


def test_an_optimizer_for_each_tensor(rows):
    """Compared with one optimizer for all tensors."""
    each = {row["contender"]: row for row in rows if row["case"] == "resnet50-each"}
    for name in ("onepass AdamW", "onepass AdamP"):
        assert each[f"{name} each"]["target"] == f"<= 1.3 x {name}"
        measured, against = each[f"{name} each"]["measured"].split(" x ")
        assert float(measured) > 0 and against == name  # timings on a busy machine are not tested


def test_rows_have_measurements(rows):
    for row in rows:
        assert 0 < float(row["q1_ms"]) <= float(row["median_ms"]) <= float(row["q3_ms"])
        assert float(row["ratio"]) > 0 and int(row["rounds"]) > 0 and int(row["parameters"]) > 0
    assert all(float(row["ratio"]) == 1 for row in rows if row["contender"] == row["baseline"])


def test_every_ratio_names_its_baseline(rows):
    contenders = {case: {row["contender"] for row in rows if row["case"] == case} for case in {r["case"] for r in rows}}
    for row in rows:
        assert row["baseline"] in contenders[row["case"]]
        for measured in filter(None, row["measured"].split("; ")):
            ratio, against = measured.split(" x ")
            assert float(ratio) > 0 and against in contenders[row["case"]]


def test_rows_have_the_machine(rows):
    for row in rows:
        assert all(row[field] for field in ("date", "device", "cores", "threads", "isa", "backend", "torch", "onepass"))


def test_targets_are_compared_with_measurements(rows):
    (row,) = (row for row in rows if row["case"] == "gpt2-adam" and row["contender"] == "onepass AdamP")
    assert row["target"] == "<= 1.05 x torch fused AdamW; <= 0.0667 x adamp AdamP"
    limits = (1.05, 1 / 15)
    for limit, measured, reached in zip(limits, row["measured"].split("; "), row["reached"].split("; "), strict=True):
        ratio = float(measured.split(" x ")[0])
        if abs(ratio - limit) > 1e-3:  # both are rounded
            assert reached == ("yes" if ratio <= limit else "no")


@pytest.mark.parametrize(
    ("commit", "reason"),
    [("", "no git repository"), ("0123456789ab+dirty", "commit them first"), ("0123456789ab", None)],
)
def test_only_a_clean_commit_is_measured_for_the_readme(commit, reason, monkeypatch):
    monkeypatch.syspath_prepend(str(RUN.parent))
    spec = importlib.util.spec_from_file_location("bench_run", RUN)
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    found = run.not_for_the_readme({"commit": commit}, absent=set())
    assert found is None if reason is None else reason in found
    assert run.not_for_the_readme({"commit": commit}, absent={"timm AdamP"})
