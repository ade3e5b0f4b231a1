"""Parameters and gradients of a case."""

from __future__ import annotations

import torch
from torch import Tensor

from cases import Case
from shapes import Shape

# Fresh random gradients are another window of one long random buffer at every round: this many elements further.
WINDOW, WINDOWS = 1024, 64
# Every tensor starts on a cache line, as an allocator would have it.
LINE = 64


class Flat:
    """Tensors of some shapes, one after the other in one buffer, which can be read from any later place on."""

    def __init__(self, shapes: tuple[Shape, ...], device: torch.device, more: int = 0):
        self.shapes, self.starts, total = shapes, [], 0
        for shape in shapes:
            self.starts.append(total)
            total += -(-torch.Size(shape).numel() // LINE) * LINE
        self.buffer = torch.empty(total + more, device=device)

    def tensors(self, buffer: Tensor, shift: int = 0) -> list[Tensor]:
        return [
            buffer[shift + start : shift + start + torch.Size(shape).numel()].view(shape)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        ]


class Model:
    """Parameters and gradients of a case, one copy for each dtype. No optimizer writes to the gradients."""

    def __init__(self, case: Case, device: torch.device, seed: int = 0):
        self.case = case
        # One set for all contenders that share it, by its name, dtype and tensor.
        self.moments: dict[tuple[str, torch.dtype, int], Tensor] = {}
        dtypes = {case.dtype_of(contender): None for contender in case.contenders}
        generator = torch.Generator(device).manual_seed(seed)
        self.windows = WINDOWS if case.gradients == "random" else 1
        weights = Flat(case.shapes, device)
        weights.buffer.normal_(0, 0.02, generator=generator)
        self.slopes = Flat(case.shapes, device, more=(self.windows - 1) * WINDOW)
        self.slopes.buffer.normal_(0, 1e-3, generator=generator)
        self.weights = weights.tensors(weights.buffer)
        if case.gradients == "tangent":
            for p, g in zip(self.weights, self.slopes.tensors(self.slopes.buffer), strict=True):
                g.copy_(off_rows(g, p))
        self.parameters = {dtype: weights.tensors(weights.buffer.to(dtype)) for dtype in dtypes}
        self.gradients = {dtype: self.slopes.buffer.to(dtype) for dtype in dtypes}

    def copies(self, dtype: torch.dtype) -> list[Tensor]:
        """Parameters for one contender alone."""
        return [p.to(dtype, copy=True).requires_grad_() for p in self.weights]

    def share_moments(self, optimizer: torch.optim.Optimizer, params: list[Tensor]) -> None:
        """Puts the shared moments in place of those that a first step has made."""
        for i, p in enumerate(params):
            own = optimizer.state.get(p, {})
            for key, value in own.items():
                if isinstance(value, Tensor) and value.shape == p.shape and key != "step":
                    slot = key.replace("momentum_buffer", "momentum")
                    own[key] = self.moments.setdefault((slot, value.dtype, i), value)

    def give(self, params: list[Tensor], number: int) -> None:
        """Sets the gradients of round `number`."""
        shift = number % self.windows * WINDOW
        for p, g in zip(params, self.slopes.tensors(self.gradients[params[0].dtype], shift), strict=True):
            p.grad = g


def off_rows(g: Tensor, p: Tensor) -> Tensor:
    """g without its part along each row of p, for tensors of more than one dimension: as under normalization."""
    if p.dim() < 2:
        return g
    p_rows, g_rows = p.flatten(1), g.flatten(1)
    for _ in range(2):  # the second time removes what the first one's rounding has left
        g_rows = g_rows - p_rows * ((p_rows * g_rows).sum(1) / p_rows.square().sum(1))[:, None]
    return g_rows.view_as(g)
