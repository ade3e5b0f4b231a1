"""Ten thousand tensors: more addresses than fit into kernel parameters, with few launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compare import assert_same_bits
from gpu.target import BACKEND, pick, to_device, to_host
from records import RECORDS
from tensors import generator

COUNT = pick(10_000, 1_100)


def launches_of(opt: Any) -> list[str]:
    """The kernels that the last step launched: `launches` of the CUDA plan, or of the Triton backend."""
    (bound,) = opt._execution.backends
    return getattr(bound, "plan", bound).launches


def stepped(name: str, gradients: list[Tensor], start: Tensor) -> tuple[Any, Tensor]:
    """The optimizer after one step per gradient, and its weights."""
    weights = to_device(start)
    opt = RECORDS[name].make(list(weights.unbind()), backend=BACKEND, **RECORDS[name].typical)
    for g in gradients:
        for p, own in zip(opt.param_groups[0]["params"], to_device(g).unbind(), strict=True):
            p.grad = own
        opt.step()
    return opt, weights


def test_adamw() -> None:
    start = torch.randn(COUNT, 64, generator=generator(0))
    gradients = [torch.randn(COUNT, 64, generator=generator(1 + i)) for i in range(3)]
    opt, weights = stepped("AdamW", gradients, start)
    reference = RECORDS["AdamW"].make([start], backend="reference", **RECORDS["AdamW"].typical)
    for g in gradients:
        start.grad = g
        reference.step()
    assert_same_bits(to_host(weights), start, "all weights as one tensor")
    assert len(launches_of(opt)) < 60


def test_adamp() -> None:
    """Every other tensor is projected."""
    start = torch.randn(COUNT, 8, 8, generator=generator(0))
    rows = start.view(-1, 8)
    gradients = []
    for i in range(2):
        g = torch.randn(rows.shape, generator=generator(1 + i))
        g -= rows * ((rows * g).sum(1) / rows.square().sum(1))[:, None]
        gradients.append(g.view_as(start))
        gradients[-1][1::2] += 2 * start[1::2]
    opt, weights = stepped("AdamP", gradients[:1], start)
    gates = [verdict.gate for verdict in opt.last_step().values()]
    assert gates == ["channel", "none"] * (COUNT // 2)

    opt, weights = stepped("AdamP", gradients, start)
    sample = range(0, COUNT, max(1, COUNT // 200) | 1)
    models = [start[i].clone() for i in sample]
    reference = RECORDS["AdamP"].make(models, backend="reference", **RECORDS["AdamP"].typical)
    for g in gradients:
        for q, i in zip(models, sample, strict=True):
            q.grad = g[i]
        reference.step()
    params, verdicts, wanted = opt.param_groups[0]["params"], opt.last_step(), reference.last_step()
    for q, i in zip(models, sample, strict=True):
        assert verdicts[params[i]].gate == wanted[q].gate
    torch.testing.assert_close(to_host(weights)[list(sample)], torch.stack(models), rtol=1e-5, atol=1e-6)


def test_launches_do_not_depend_on_the_number_of_tensors() -> None:
    """Except for uploads."""
    launches = []
    for count in (2, COUNT):
        start = torch.randn(count, 8, 8, generator=generator(0))
        opt, _ = stepped("AdamP", [torch.ones_like(start)], start)
        for _ in range(2):
            opt.step()
        launches.append([name for name in launches_of(opt) if name != "upload"])
    assert launches[0] == launches[1] and len(launches[0]) <= 3
