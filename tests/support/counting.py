"""Memory traffic of a step of the CUDA backend: bytes counted at every load and store as it runs on the CPU.

`traffic_of` makes an optimizer, steps it and counts; `table` formats results. bench/ may import both, with tests/support
on its path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import emulated_backend
from tensors import generator, gradient, values

STREAMS = ("p", "g", "m", "v", "r")
OPERANDS = (*STREAMS, "plan", "row_stats")


@dataclass(frozen=True)
class Traffic:
    """Bytes of one step. moved: bytes loaded and stored, by operand. elements: of all parameters."""

    moved: Mapping[str, tuple[int, int]]
    elements: int

    def of(self, operand: str) -> tuple[float, float]:
        """Bytes per parameter, loaded and stored."""
        loaded, stored = self.moved[operand]
        if operand not in STREAMS:
            # The lanes of a warp read the same words of the plan and of a verdict in one access, and each was counted.
            # Not so where a tensor's statistics are added up, 41 bytes to an item: 0.005 to a parameter or less.
            loaded //= emulated_backend.emulated.limits["warp"]
        return loaded / self.elements, stored / self.elements

    @property
    def streams(self) -> float:
        """Bytes per parameter of the operands of its size: p, g and the moments. m is SGD's buffer too."""
        return sum(sum(self.of(name)) for name in STREAMS)

    @property
    def total(self) -> float:
        return sum(sum(self.of(name)) for name in OPERANDS)


def count(opt: Any, clips: bool = False) -> Traffic:
    """Traffic of a step, including the norm of the gradients if `clips`."""
    emulated_backend.emulated.reset()
    if clips:
        opt.clip_grad_norm_(1e-3)
    opt.step()
    elements = sum(p.numel() for group in opt.param_groups for p in group["params"])
    return Traffic(emulated_backend.emulated.traffic(), elements)


def traffic_of(
    make: type[Any],
    shapes: Sequence[tuple[int, ...]],
    *,
    dtype: torch.dtype = torch.float32,
    gate: str = "none",
    predicted: str = "none",
    clips: bool = False,
    gradient_dtype: torch.dtype | None = None,
    **arguments: Any,
) -> Traffic:
    """Traffic of one step in the long run: the second step on the same tensors, when the plan is on the device.

    gate: of all matrices, by their gradients. predicted: by the step, "none" or "channel".
    """
    params = [values(shape, dtype, seed) for seed, shape in enumerate(shapes)]
    opt = make(params, **{"lr": 1e-3, "weight_decay": 1e-2, "backend": "emulated", **arguments})
    for seed, p in enumerate(params):
        p.grad_dtype = gradient_dtype or dtype
        p.grad = gradient_of(gate, p, seed).to(p.grad_dtype)
    if clips:
        opt.clip_grad_norm_(1e-3)
    opt.step()
    for p in params:
        if "gate_counter" in opt.state.get(p, {}):
            p.grad.copy_(gradient_of(gate, p, 0))
            opt.state[p]["gate_counter"].fill_({"none": 0, "channel": 3}[predicted])
    traffic = count(opt, clips)
    for p, verdict in opt.last_step().items():
        assert verdict.gate == gate, (p.shape, verdict)
    return traffic


def gradient_of(gate: str, p: Tensor, seed: int) -> Tensor:
    if p.dim() > 1:
        return gradient(gate, p, seed)
    return torch.randn(p.shape, generator=generator(seed)).to(p.dtype)


def table(rows: Mapping[str, Traffic]) -> str:
    """Markdown: bytes per parameter of every operand, loaded + stored, and of all."""
    lines = [
        f"| | {' | '.join(OPERANDS)} | all |",
        f"|---|{'---|' * (len(OPERANDS) + 1)}",
    ]
    for name, traffic in rows.items():
        cells = ["+".join(f"{each:.2g}" for each in traffic.of(operand)) for operand in OPERANDS]
        lines.append(f"| {name} | {' | '.join(cells)} | {traffic.total:.2f} |")
    return "\n".join(lines)
