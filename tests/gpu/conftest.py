from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpu.target import CHOICE, missing, synchronize

MISSING = missing()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if MISSING and CHOICE:
        pytest.exit(f"tests/gpu cannot run: {MISSING}", returncode=1)
    if MISSING:
        pytest.skip(MISSING)


@pytest.fixture(autouse=True)
def errors_belong_here() -> Iterator[None]:
    """What fails on the device, later than the call that asked for it, fails the test that did."""
    yield
    synchronize()
