"""The optimizer's step on the CPU, for a module on any device: bfloat16 gradients go there, the weights' bfloat16 copy comes back.

The device holds the bfloat16 parameters and their gradients alone. The CPU holds, in pinned memory where there is a GPU, a twin of
each: stepped as an exact float32 weight, with the bits that a step on the device would have.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import onepass


class Offload:
    """Steps `module` on the CPU. make: the optimizer of the twins, a class of onepass or what takes parameters alike."""

    def __init__(self, module: nn.Module, make: Any, **arguments: Any):
        self.params = [p for p in module.parameters() if p.requires_grad]
        self.stream = torch.cuda.Stream() if any(p.is_cuda for p in self.params) else None
        self.twins = [nn.Parameter(self.on_cpu(p)) for p in self.params]
        for p, twin in zip(self.params, self.twins, strict=True):
            p.register_post_accumulate_grad_hook(partial(self.fetch, twin, self.on_cpu(p)))
        self.opt = make(self.twins, **arguments)

    def on_cpu(self, p: Tensor) -> Tensor:
        return torch.empty_like(p, device="cpu", pin_memory=p.is_cuda).copy_(p.detach())

    def fetch(self, twin: Tensor, gradient: Tensor, p: Tensor) -> None:
        """Copies a gradient as soon as it is there, while the backward pass goes on."""
        assert p.grad is not None
        twin.grad = gradient
        if self.stream is None:
            gradient.copy_(p.grad)
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            gradient.copy_(p.grad, non_blocking=True)
        p.grad.record_stream(self.stream)

    @torch.no_grad()
    def step(self) -> None:
        """Steps the twins once their gradients are there, and copies them back; drops all gradients."""
        if self.stream is not None:
            self.stream.synchronize()
        self.opt.step()
        for p, twin in zip(self.params, self.twins, strict=True):
            if twin.grad is not None:
                p.copy_(twin, non_blocking=True)
            p.grad = twin.grad = None


if __name__ == "__main__":
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = nn.Sequential(nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 1)).to(device, torch.bfloat16)
    x = torch.randn(512, 32, device=device, dtype=torch.bfloat16)
    offload = Offload(net, onepass.AdamW, lr=1e-3, master_weights=True)
    for step in range(101):
        loss = (net(x) - x.square().mean(1, keepdim=True)).square().mean()
        loss.backward()
        offload.step()
        if step % 25 == 0:
            print(f"step {step}, loss {loss.item():.4f}")
