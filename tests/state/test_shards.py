"""Flat shards of matrices in projected optimizers: refused where recognised; true vectors are accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import onepass
from drive import train

PROJECTED = [onepass.AdamP, onepass.SGDP]


def flat(**attributes: Any) -> Tensor:
    """A vector with the attributes that a sharding library sets."""
    p = nn.Parameter(torch.ones(10))
    for name, value in attributes.items():
        setattr(p, name, value)
    return p


class FlatParameter(nn.Parameter):
    """The class name that fairscale uses."""


def matrix() -> Tensor:
    return nn.Parameter(torch.ones(4, 6))


SHARDS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "FSDP": (lambda: flat(_fsdp_flattened=True), "a flat shard made by FSDP"),
    "fairscale": (lambda: FlatParameter(torch.ones(10)), "a flat shard made by FSDP"),
    "ZeRO 3": (lambda: flat(ds_id="0_3"), "a flat shard made by DeepSpeed's ZeRO 3"),
    "Megatron, row parallel": (lambda: flat(partition_dim=1), "made by Megatron (of a matrix, since its partition_dim is 1)"),
    "a view": (lambda: matrix().detach().view(-1)[5:15], "a flat piece of a tensor of shape (4, 6)"),
    "an empty view": (lambda: matrix().detach().view(-1)[5:5], "a flat piece of a tensor of shape (4, 6)"),
    "a whole view": (lambda: matrix().detach().view(-1), "a flat piece of a tensor of shape (4, 6)"),
}  # fmt: skip

VECTORS: dict[str, Callable[[], Tensor]] = {
    "bias": lambda: nn.Linear(3, 10).bias,
    "norm": lambda: nn.LayerNorm(10).weight,
    "bias under ZeRO 3": lambda: flat(ds_id=3),
    "bias, column parallel": lambda: flat(partition_dim=0),
    "bias, not parallel": lambda: flat(partition_dim=-1),
    "partition_dim None": lambda: flat(partition_dim=None),
    "row of a stack": lambda: matrix().detach()[2],
    "column of a stack": lambda: matrix().detach()[:, 2],
    "part of a vector": lambda: nn.Parameter(torch.ones(20)).detach()[3:13],
    "made of a matrix": lambda: nn.Parameter(torch.ones(4, 6).view(-1)),
    "scalar of a matrix": lambda: matrix().detach()[1, 2],
}


@pytest.mark.parametrize("make", PROJECTED)
@pytest.mark.parametrize("kind", SHARDS)
def test_shards_are_refused(make: type[onepass.AdamP], kind: str) -> None:
    """At construction, and when a shard replaces a matrix later."""
    shard, words = SHARDS[kind]
    with pytest.raises(ValueError) as caught:
        make([matrix(), shard()], lr=0.1)
    for each in ("parameter 1 of group 0", words, "needs its rows", "optimizer without projection"):
        assert each in str(caught.value)
    opt = train(make([matrix(), matrix()], lr=0.1), range(2))
    opt.param_groups[0]["params"][1] = shard()
    opt.param_groups[0]["params"][1].grad = torch.ones_like(opt.param_groups[0]["params"][1])
    with pytest.raises(ValueError, match="needs its rows"):
        opt.step()


@pytest.mark.parametrize("kind", SHARDS)
def test_shards_are_accepted_without_projection(kind: str) -> None:
    train(onepass.AdamW([matrix(), SHARDS[kind][0]()]), range(2))


@pytest.mark.parametrize("make", PROJECTED)
def test_plain_vectors_in_the_place_of_all_matrices_are_refused(make: type[onepass.AdamP]) -> None:
    """As DeepSpeed's ZeRO 1 and 2 and Megatron put them there, after construction."""
    opt = make([{"params": [nn.Parameter(torch.ones(3))]}, {"params": [matrix(), matrix()]}], lr=0.1)
    kept = [group["params"] for group in opt.param_groups]
    for group in opt.param_groups:
        group["params"] = [torch.ones(10, requires_grad=True)]
        group["params"][0].grad = torch.ones(10)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0.*is a plain vector.*needs its rows.*fully_shard"):
        opt.step()
    assert not opt.state and torch.equal(opt.param_groups[0]["params"][0], torch.ones(10))
    opt.param_groups[1]["params"] = kept[1]  # a matrix that is left shows that nothing has made them flat
    train(opt, range(2))
    opt.param_groups[:] = [{**opt.param_groups[0], "params": kept[0]}]  # stepped group by group
    train(opt, range(2))


def test_plain_vectors_in_the_place_of_matrices_are_accepted_without_projection() -> None:
    opt = onepass.AdamW([matrix()])
    opt.param_groups[0]["params"] = [torch.ones(10, requires_grad=True)]
    train(opt, range(2))


@pytest.mark.parametrize("make", PROJECTED)
@pytest.mark.parametrize("kind", VECTORS)
def test_vectors_are_not_refused(make: type[onepass.AdamP], kind: str) -> None:
    train(make([matrix(), VECTORS[kind]()], lr=0.1), range(2))


@pytest.mark.parametrize("make", PROJECTED)
def test_vectors_of_unsharded_fsdp(make: type[onepass.AdamP]) -> None:
    """Unsharded, the matrices are parameters too, and every parameter has FSDP's attribute."""
    weight = matrix()
    weight._fsdp_flattened = True  # type: ignore[attr-defined]
    train(make([{"params": [flat(_fsdp_flattened=True)]}, {"params": [weight]}], lr=0.1), range(2))


@pytest.mark.parametrize("make", PROJECTED)
def test_a_view_as_a_parameter_is_accepted(make: type[onepass.AdamP]) -> None:
    """A view that is meant to be a vector is accepted as a Parameter, as the message advises."""
    shard, _ = SHARDS["a view"]
    with pytest.raises(ValueError, match=r"meant to be a vector, make it a torch\.nn\.Parameter"):
        make([shard()], lr=0.1)
    train(make([nn.Parameter(shard())], lr=0.1), range(2))


@pytest.mark.parametrize("kind", ["FSDP", "fairscale"])
def test_clipping_refuses_a_shard(kind: str) -> None:
    """Only the FSDP module can compute the norm over all shards."""
    opt = onepass.AdamW([flat(), SHARDS[kind][0]()])
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.ones(10)
    with pytest.raises(ValueError, match=r"parameter 1 of group 0.*is sharded by FSDP.*of the FSDP module"):
        opt.clip_grad_norm_(1.0)
    assert not opt.state
    opt.step()


@pytest.mark.parametrize("kind", ["FSDP", "fairscale"])
def test_clipping_refuses_a_shard_in_a_later_group(kind: str) -> None:
    opt = onepass.AdamW([{"params": [flat()]}, {"params": [SHARDS[kind][0]()]}])
    for group in opt.param_groups:
        group["params"][0].grad = torch.ones(10)
    with pytest.raises(ValueError, match=r"parameter 0 of group 1.*is sharded by FSDP"):
        opt.clip_grad_norm_(1.0)
