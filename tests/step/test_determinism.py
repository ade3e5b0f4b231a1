"""The same bits from run to run, for any number of threads and under every instruction set."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
import torch

from compare import digest
from drive import feed, parameters, train
from fresh_python import in_new_python
from records import COMPILED, DTYPES, RECORDS, Record, each_compiled, each_optimizer

# Rows that are cut into pieces, cached rows, many short rows, and enough small tensors to share a batch of items.
SHAPES = [(2, 70_000), (40, 1500), (4000, 9), (40_001,), *[(8, 8)] * 40]


def compiled_module() -> Any:
    return importlib.import_module("onepass._C")


def digests(backend: str) -> dict[str, str]:
    """Of every optimizer and dtype, on small tensors of odd sizes."""
    shapes = [(2, 33_001), (40, 1025), (7, 5, 3, 3), (555,), (1, 1), (5000, 3), ()]
    return {
        f"{name} {dtype} {i}": digest(
            train(record.make(parameters(dtype, shapes), backend=backend, **arguments), range(3))
        )
        for name, record in RECORDS.items()
        for dtype in DTYPES
        for i, arguments in enumerate(record.variants.values())
        if i < 3
    }


@each_compiled
@each_optimizer
def test_any_number_of_threads(backend: str, record: Record) -> None:
    seen = set()
    for threads in (1, 3) if backend == "triton" else (1, 2, 3, 5, 2):  # Triton's kernels use no threads
        opt = record.make(parameters(shapes=SHAPES), backend=backend, **record.typical)
        for time in range(3):
            torch.set_num_threads(1)  # for the gradients: torch's own sums depend on it
            feed(opt, time)
            torch.set_num_threads(threads)
            opt.step()
        seen.add(digest(opt))
    assert len(seen) == 1


@pytest.fixture(scope="module")
def by_instruction_set() -> dict[str, dict[str, str]]:
    """Digests under each instruction set, after a check of its 16-bit conversions."""
    code = """
        import json
        import torch
        torch.set_num_threads(1)
        from test_conversions import check_all
        from test_determinism import digests
        check_all("cpu")
        from onepass import _C
        print(json.dumps([_C.isa(), digests("cpu")]))
    """
    found = {}
    for isa in compiled_module().isas():
        running, own = json.loads(in_new_python(code, ONEPASS_ISA=isa))
        assert running == isa
        found[isa] = own
    return found


def test_instruction_sets(by_instruction_set: dict[str, dict[str, str]]) -> None:
    assert "baseline" in by_instruction_set
    for isa, found in by_instruction_set.items():
        assert found == by_instruction_set["baseline"], isa


def test_from_run_to_run(by_instruction_set: dict[str, dict[str, str]]) -> None:
    """This process, with another heap, against a new one."""
    assert digests(COMPILED[0]) == by_instruction_set[compiled_module().isa()]


def test_unknown_instruction_set() -> None:
    said = in_new_python(
        """
        import torch, onepass
        p = torch.ones(3)
        p.grad = torch.ones(3)
        try:
            onepass.SGD([p], backend="cpu").step()
        except Exception as error:
            print(type(error).__name__, error)
        """,
        ONEPASS_ISA="altivec",
    )
    assert "altivec" in said
    assert "baseline" in said
