"""The emulated device with other orders and numbers of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from emulated_backend import emulated


@dataclass(frozen=True)
class Device:
    """seed: of the order of blocks; 0 is sequential. blocks: resident on a multiprocessor at once."""

    seed: int
    multiprocessors: int = 2
    blocks: int = 32


@contextmanager
def on(device: Device) -> Iterator[None]:
    """Optimizers made and stepped in here run on such a device."""
    kept = emulated.device.multiprocessors, emulated.device.blocks_per_multiprocessor
    emulated.device.multiprocessors = device.multiprocessors
    emulated.device.blocks_per_multiprocessor = device.blocks
    emulated.reset(device.seed)
    try:
        yield
    finally:
        emulated.device.multiprocessors, emulated.device.blocks_per_multiprocessor = kept
        emulated.reset()
