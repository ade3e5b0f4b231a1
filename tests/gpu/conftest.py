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
def synchronize_after_each_test() -> Iterator[None]:
    """Synchronizes after each test, so that an asynchronous error of the device fails the test that caused it."""
    yield
    synchronize()
