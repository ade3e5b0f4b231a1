"""What goes from the host to the device of some parameters, without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CAPTURING = (
    "this step has to make state or a plan, which must not happen while the stream is captured into a CUDA graph; take a "
    "step before the capture, and change no parameter, state or group in between"
)


def capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def refuse_capture(device: torch.device) -> None:
    """Raises RuntimeError during a capture, for what must not be captured."""
    if capturing(device):
        raise RuntimeError(CAPTURING)


def send(rows: Any, dtype: torch.dtype, width: int, device: torch.device) -> Tensor:
    """A table of so many columns on the device."""
    host = torch.as_tensor(rows, dtype=dtype, device="cpu").reshape(-1, width)
    return to_device(host.pin_memory() if device.type == "cuda" else host, device)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    return host.to(device, non_blocking=True)
