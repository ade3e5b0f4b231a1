"""Random sequences of everything that can happen to an optimizer between steps: each backend beside the reference."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drive import parameters_of, through_a_file
from records import RECORDS, each_compiled
from tensors import gradient, values

SHAPES = [(4, 6), (5,), (2, 3, 3)]
Operation = Callable[[Any, int], Any]  # on an optimizer, with a seed; returns the optimizer if it is another


def chosen(opt: Any, seed: int) -> Any:
    params = parameters_of(opt)
    return params[seed % len(params)]


def reversed_layout(t: Tensor) -> Tensor:
    """The same numbers, with the first dimension innermost."""
    dims = [*reversed(range(t.dim()))]
    return t.permute(dims).contiguous().permute(dims)


def give_gradients(opt: Any, seed: int) -> None:
    """To some of the parameters, or to all."""
    for i, p in enumerate(parameters_of(opt)):
        if seed % 3 == 0 and (seed // 3 + i) % 2:
            p.grad = None
        elif p.dim() > 1:
            p.grad = gradient(("none", "channel", "layer")[(seed + i) % 3], p, seed + i)
        else:
            p.grad = values(p.shape, p.dtype, seed + i)


def step(opt: Any, seed: int) -> None:
    give_gradients(opt, seed)
    opt.step()


def clip(opt: Any, seed: int) -> None:
    give_gradients(opt, seed)
    opt.clip_grad_norm_(0.5 + seed % 2)
    if seed % 5:
        opt.step()
    opt.zero_grad(set_to_none=seed % 4 != 0)


def scale(opt: Any, seed: int) -> None:
    give_gradients(opt, 3 * seed + 1)  # to all: the same as at most steps
    opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(float(seed % 3 == 0))
    opt.step()
    del opt.grad_scale, opt.found_inf


def refuse(opt: Any, seed: int) -> None:
    give_gradients(opt, seed)
    p = chosen(opt, seed)
    p.grad = torch.ones((), dtype=p.dtype).expand(p.shape)
    with pytest.raises(ValueError, match="expanded"):
        opt.step()
    opt.zero_grad()


def reload(opt: Any, seed: int) -> None:
    saved = through_a_file(opt.state_dict())
    if seed % 3 == 0:
        saved["state"].pop(seed % len(SHAPES), None)
    opt.load_state_dict(saved)


def move(opt: Any, seed: int) -> Any:
    return copy.deepcopy(opt)


def add_group(opt: Any, seed: int) -> None:
    if len(opt.param_groups) < 3:
        opt.add_param_group({"params": [values((3, 4), torch.float64, seed)], "lr": 0.01 * (seed % 4)})


def drop_group(opt: Any, seed: int) -> None:
    """With its state, which torch's optimizers cannot save without it."""
    if len(opt.param_groups) > 1:
        for p in opt.param_groups.pop()["params"]:
            opt.state.pop(p, None)


def set_argument(opt: Any, seed: int) -> None:
    group = opt.param_groups[seed % len(opt.param_groups)]
    value = (0.0, 0.3, 0.02)[seed % 3]
    name = ("lr", "weight_decay", "momentum", "wd_ratio", "maximize", "speculate")[seed % 6]
    if name in group:
        group[name] = bool(seed % 4) if name in ("maximize", "speculate") else value


def replace_data(opt: Any, seed: int) -> None:
    p = chosen(opt, seed)
    p.data = p.detach().clone() if seed % 2 else reversed_layout(p.detach())


def replace_state(opt: Any, seed: int) -> None:
    """By a copy, one of another layout, nothing, or all of it by nothing."""
    own = opt.state.get(chosen(opt, seed), {})
    for key in [key for key, value in own.items() if isinstance(value, Tensor)]:
        kind = (seed + len(key)) % 3
        own[key] = own[key].clone() if kind or own[key].dim() == 0 else reversed_layout(own[key])
    if seed % 5 == 0:
        own.clear()
    if seed % 7 == 0:
        opt.state = defaultdict(dict)


def leave_a_note(opt: Any, seed: int) -> None:
    opt.state["note"] = seed
    if seed % 2:
        opt.state[chosen(opt, seed)][f"note {seed % 3}"] = (seed, "text", torch.ones(2))
    if seed % 3 == 0:
        del opt.state["note"]


OPERATIONS: dict[str, Operation] = {
    operation.__name__: operation
    for operation in (
        *(step, clip, scale, refuse, reload, move, add_group, drop_group),
        *(set_argument, replace_data, replace_state, leave_a_note),
    )
}


def compare(got: Any, want: Any) -> None:
    """Parameters, state and what the last step has seen. Sums over rows are taken in another order."""
    for p, q in zip(parameters_of(got), parameters_of(want), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
        own, other = got.state.get(p, {}), want.state.get(q, {})
        assert own.keys() == other.keys()
        for key, value in own.items():
            if key == "step":
                assert float(value) == float(other[key])
            elif isinstance(value, Tensor) and key != "gate_counter":  # the reference does not predict
                torch.testing.assert_close(value, other[key], rtol=1e-9, atol=1e-11)
    places = [{id(p): i for i, p in enumerate(parameters_of(opt))} for opt in (got, want)]
    seen = [
        {place[id(p)]: verdict.gate for p, verdict in opt.last_step().items() if id(p) in place}
        for opt, place in zip((got, want), places, strict=True)
    ]
    assert seen[0] == seen[1]


@each_compiled
@settings(max_examples=80)
@given(
    st.sampled_from(list(RECORDS)),
    st.lists(st.tuples(st.sampled_from(list(OPERATIONS)), st.integers(0, 1000)), min_size=3, max_size=12),
)
def test_sequences(backend: str, name: str, operations: list[tuple[str, int]]) -> None:
    """Every other operation is a plain step, so that what an operation leaves behind is seen."""
    record = RECORDS[name]

    def make(backend: str) -> Any:
        params = [values(shape, torch.float64, i) for i, shape in enumerate(SHAPES)]
        return record.make(
            [{"params": params}],
            backend=backend,
            **{**record.typical, "eps": 1e-3} if name != "SGD" else {**record.typical},
        )

    opts = [make(backend), make("reference")]
    for place, (operation, seed) in enumerate(operations):
        for what, number in ((operation, seed), ("step", seed + place)):
            opts = [OPERATIONS[what](opt, number) or opt for opt in opts]
            compare(*opts)
