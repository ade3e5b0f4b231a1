from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def no_capture() -> Iterator[None]:
    """Ends a capture that a test of the emulated device has left open."""
    from emulated_backend import emulated

    yield
    emulated.set_capturing(False)
    emulated.reset()
