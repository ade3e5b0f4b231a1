"""Bytes per parameter in the text of the README and docs/ equal the counted ones.

test_bench_tables.py tests the table of bytes of measured.md.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch

import onepass
from counting import traffic_of
from onepass.backend.base import STATS
from pages import PAGES, text_of
from triton_traffic import total, traffic

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
MOMENTUM = ("momentum", 0.9)
WRONG = (("gate", "channel"), ("predicted", "none"))
RIGHT = (("gate", "channel"), ("predicted", "channel"))
MEASURED = ("speculate", False)
CLIPS = ("clips", True)
MASTERS = ("master_weights", True)
SHORT = ("state_dtype", torch.bfloat16)
CODES = ("state_dtype", "8bit")
STOCHASTIC = ("stochastic_rounding", True)
NESTEROV = ("nesterov", True)
PROJECT = ("project_momentum", True)
LONG_ROWS = (2, 40_000)

Options = tuple[tuple[str, Any], ...]


@cache
def moved(name: str, *options: tuple[str, Any], dtype: str = "float32", shape: tuple[int, ...] = (128, 256)) -> int:
    """Bytes per parameter that the CUDA kernels move for p, g and the moments."""
    found = traffic_of(getattr(onepass, name), [shape], dtype=DTYPES[dtype], **dict(options)).streams
    assert found == int(found)
    return int(found)


@cache
def moved_by_triton(
    name: str, *options: tuple[str, Any], dtype: str = "float32", shape: tuple[int, ...] = (16, 256)
) -> int:
    found = total(traffic(getattr(onepass, name), shape, dtype=DTYPES[dtype], **dict(options))[0])
    assert found == int(found)
    return int(found)


def kept(name: str, dtype: str = "float32", **arguments: Any) -> int:
    """Bytes per parameter of the state."""
    return int(kept_exactly(name, dtype, (8,), **arguments))


def kept_exactly(name: str, dtype: str, shape: tuple[int, ...], **arguments: Any) -> float:
    p = torch.ones(shape, dtype=DTYPES[dtype])
    p.grad = torch.ones_like(p)
    opt = getattr(onepass, name)([p], **{"lr": 0.1, "backend": "reference", **arguments})
    opt.step()
    return sum(t.nbytes for t in opt.state[p].values() if torch.is_tensor(t) and t.dim()) / p.numel()


def of_adam(name: str) -> str:
    return (
        f"State: {kept(name)} bytes a parameter (two float32 moments; {kept(name, 'float64')} in float64). A step moves"
        f" {moved(name)} bytes per float32 parameter, {moved(name, dtype='bfloat16')} per bfloat16 or float16 one,"
        f" {moved(name, dtype='float64')} per float64 one."
    )


def of_readme() -> list[str]:
    assert moved("AdamW") == moved("AdamP", *RIGHT) == moved("AdamP")
    short, stochastic = "state_dtype=torch.bfloat16`", 'stochastic_rounding=True, state_dtype="8bit"'
    least = f"| `{stochastic}` | every update, on average | "
    nearest = "in the weight's last place | "
    precisions = of_precision()

    def same(start: str) -> str:
        """The numbers of a line of precision.md."""
        (numbers,) = (line.removeprefix(start) for line in precisions if line.startswith(start))
        adamw, adamp, state = numbers.strip(" |").split(" | ")
        return f"{adamw} | {adamp} | {state} |"

    return [
        f"a remainder of {of_remainder()} bytes",
        f"[{int(float(same(least).split(' |')[0]))} to {moved('AdamW')} bytes](#which-precision) per parameter and step in place of {moved('AdamW')}",
        f"one message, of {8 * len(STATS)} bytes",
        f"| float32 | | everything | {same('| float32 | | everything | ')}",
        f"| float32 | `{short} | the weight | {same(f'| float32 | `{short} | the weight | ')}",
        f"| everything: the float32 weight | {same('| everything: the float32 weight | ')}",
        f"`master_weights=True, {short} | the float32 weight | {same(f'| `master_weights=True, {short} | the float32 weight | ')}",
        f"`{stochastic}` | every update, on average | {same(least)}",
        f"as torch: small updates are lost | {same(nearest)}",
    ]


def of_semantics() -> list[str]:
    more = moved("AdamP", *WRONG) - moved("AdamP", *RIGHT)
    return [
        f"if the verdict differs ({more} bytes more for that tensor)",
        f"{moved('AdamP', MEASURED)} bytes, and no dependence on the predictor",
        f"16-bit parameters without exact weights are stepped that way ({moved('AdamP', dtype='bfloat16')} bytes)",
        f"[exact float32 weights](precision.md) with {of_remainder()} bytes of state",
    ]


def of_faq() -> list[str]:
    return [
        f"Two float32 moments, {kept('AdamW')} bytes a parameter, for Adam and its kin and AdamP; {kept('SGD', momentum=0.9)} bytes for SGD"
        " and SGDP with momentum",
    ]


def of_remainder() -> int:
    return kept("AdamW", "bfloat16", master_weights=True) - kept("AdamW", "bfloat16")


def of_wide_gradients() -> int:
    return moved("AdamW", ("gradient_dtype", torch.float32), dtype="bfloat16") - moved("AdamW", dtype="bfloat16")


def of_precision() -> list[str]:
    def row(dtype: str, *options: tuple[str, Any]) -> str:
        projected = RIGHT if dtype == "float32" or MASTERS in options else ()
        bytes_of = [moved("AdamW", *options, dtype=dtype), moved("AdamP", *options, *projected, dtype=dtype)]
        return " | ".join(map(str, [*bytes_of, kept("AdamW", dtype, **dict(options))])) + " |"

    def coded(dtype: str, *options: tuple[str, Any]) -> str:
        """The same of moments of 8 bits, whose scales are hundredths of a byte."""
        projected = RIGHT if dtype == "float32" or MASTERS in options else ()
        adamw, adamp = (
            traffic_of(
                getattr(onepass, name), [(128, 256)], dtype=DTYPES[dtype], **dict((*options, CODES, *more))
            ).streams
            for name, more in (("AdamW", ()), ("AdamP", projected))
        )
        state = kept_exactly("AdamW", dtype, (128, 256), **dict((*options, CODES)))
        return " | ".join(f"{x:.2f}" for x in (adamw, adamp, state)) + " |"

    wrong = traffic_of(onepass.AdamP, [(128, 256)], dtype=torch.bfloat16, **dict((*WRONG, MASTERS, CODES))).streams
    exact = [moved("AdamP", *WRONG, MASTERS, *more, dtype="bfloat16") for more in ((), (SHORT,))]
    short = "state_dtype=torch.bfloat16`"
    return [
        f"| float32 | | everything | {row('float32')}",
        f"| float32 | `{short} | the weight | {row('float32', SHORT)}",
        f"| everything: the float32 weight | {row('bfloat16', MASTERS)}",
        f"| `master_weights=True, {short} | the float32 weight | {row('bfloat16', MASTERS, SHORT)}",
        f"| `stochastic_rounding=True, {short} | every update, on average | {row('bfloat16', STOCHASTIC, SHORT)}",
        f"in the weight's last place | {row('bfloat16')}",
        f"(AdamP: gate predicted right; mispredicted {moved('AdamP', *WRONG)} in float32, {exact[0]} with exact weights,"
        f" {exact[1]} with exact weights and short moments, {wrong:.2f} with exact weights and moments of 8 bits)",
        f'| float32 | `state_dtype="8bit"` | the weight | {coded("float32")}',
        f'| `master_weights=True, state_dtype="8bit"` | the float32 weight | {coded("bfloat16", MASTERS)}',
        f'| `stochastic_rounding=True, state_dtype="8bit"` | every update, on average | {coded("bfloat16", STOCHASTIC)}',
        f"{of_wide_gradients()} bytes more",
        f"before the update then ({moved('AdamP', STOCHASTIC, SHORT, dtype='bfloat16')} bytes with short moments)",
        f"is missing: {of_remainder()} bytes in place of the 4 of a float32 copy",
    ]


def of_triton() -> list[str]:
    adamw, half = moved_by_triton("AdamW"), moved_by_triton("AdamW", dtype="bfloat16")
    assert adamw == moved_by_triton("AdamP", *RIGHT)
    more = [moved_by_triton("AdamW", CLIPS) - adamw, moved_by_triton("AdamW", CLIPS, dtype="bfloat16") - half]
    return [
        f"AdamW and AdamP {adamw}, {moved_by_triton('AdamP', *WRONG)} for a tensor whose gate was mispredicted,"
        f" {moved_by_triton('AdamP', MEASURED)} without speculation; bfloat16 {half} and"
        f" {moved_by_triton('AdamP', dtype='bfloat16')}; clipping {more[0]} more, {more[1]} in bfloat16",
        f"where a projection is predicted, which is {moved_by_triton('AdamP', *RIGHT, shape=(2, 9000))} bytes",
    ]


def of_adamp() -> list[str]:
    def exact(*options: tuple[str, Any]) -> int:
        return moved("AdamP", MASTERS, *options, dtype="bfloat16")

    assert moved("AdamP", MEASURED, dtype="bfloat16") == moved("AdamP", dtype="bfloat16")
    return [
        f"State: {kept('AdamP')} bytes a parameter (two float32 moments; {kept('AdamP', 'float64')} in float64)",
        f"| gate predicted right | {moved('AdamP', *RIGHT)} | {exact(*RIGHT)} |",
        f"| mispredicted | {moved('AdamP', *WRONG)} ({moved('AdamP', *WRONG, NESTEROV)} with nesterov)"
        f" | {exact(*WRONG)} ({exact(*WRONG, NESTEROV)} with nesterov) |",
        f"16-bit weights | {moved('AdamP', MEASURED)} | {exact(MEASURED)} | {moved('AdamP', dtype='bfloat16')} |",
    ]


def of_sgd() -> list[str]:
    assert kept("SGD") == 0
    return [
        f"State: {kept('SGD', momentum=0.9)} bytes a parameter with momentum ({kept('SGD', 'float64', momentum=0.9)} in"
        f" float64), none without. A step moves {moved('SGD', MOMENTUM)} bytes per float32 parameter, {moved('SGD')} without"
        f" momentum; {moved('SGD', MOMENTUM, dtype='bfloat16')} and {moved('SGD', dtype='bfloat16')} per bfloat16 or float16"
    ]


def of_sgdp() -> list[str]:
    project, projected = moved("SGDP", MOMENTUM, PROJECT), moved("SGDP", MOMENTUM, PROJECT, *RIGHT)
    return [
        f"State: {kept('SGDP', momentum=0.9)} bytes a parameter ({kept('SGDP', 'float64', momentum=0.9)} in float64)",
        f"| gate predicted right | {moved('SGDP', *RIGHT, MOMENTUM)} |",
        f"| mispredicted | {moved('SGDP', *WRONG, MOMENTUM)} ({moved('SGDP', *WRONG, MOMENTUM, NESTEROV)} with nesterov) |",
        f"`speculate=False` | {moved('SGDP', MEASURED, MOMENTUM)} |",
        f"| `project_momentum=True` | {project}, and {projected - project} more where it is projected |",
    ]


def of_limits() -> list[str]:
    assert moved("AdamP", shape=LONG_ROWS) == moved("AdamP")
    adamp, sgdp = moved("AdamP", *RIGHT, shape=LONG_ROWS), moved("SGDP", *RIGHT, MOMENTUM, shape=LONG_ROWS)
    return [f"while its gate is `none`, {adamp} bytes per parameter (SGDP {sgdp}) when it is projected"]


def of_training() -> list[str]:
    assert moved("AdamW", CLIPS) == moved("AdamP", CLIPS)
    return [f"AdamW and AdamP move {moved('AdamW', CLIPS)} bytes per float32 parameter with it"]


def of_distributed() -> list[str]:
    """As test_sharded.py counts them on four processes."""
    record, row = 8 * len(STATS), 8 * len(STATS[:4])
    return [
        f"1: {record} bytes for each matrix",
        f"1: {row} bytes for each row",
        f"2: {row} bytes for each row of row-wise weights, {record} for each column-wise weight",
    ]


STATEMENTS = {
    "README.md": of_readme,
    "adam.md": lambda: [of_adam("Adam")],
    "adamw.md": lambda: [of_adam("AdamW")],
    "adamprox.md": lambda: [of_adam("AdamProx")],
    "adamproxl2.md": lambda: [of_adam("AdamProxL2")],
    "adamp.md": of_adamp,
    "sgd.md": of_sgd,
    "semantics.md": of_semantics,
    "sgdp.md": of_sgdp,
    "distributed.md": of_distributed,
    "faq.md": of_faq,
    "gpu.md": of_triton,
    "limits.md": of_limits,
    "precision.md": of_precision,
    "training.md": of_training,
}
# Sizes of accesses and of spills, tested in tests/builds.
NOT_MOVED = {
    "gpu.md": "multiples of 16 bytes are read and written 16 bytes at a time",
    "gpu-checks.md": "ptxas leaves 8 bytes of stack to a kernel with 64 registers, and in rows of more than 4,096"
    " elements, where `update` keeps 8 on sm_90 with a projected buffer and 32 with narrow accesses",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_number_of_bytes_is_counted(page: Any) -> None:
    """A page has each statement with the counted numbers, and no other number of bytes."""
    text = " ".join(text_of(page).split())
    for statement in [*STATEMENTS.get(page.name, list)(), NOT_MOVED.get(page.name, "")]:
        assert statement in text
        text = text.replace(statement, "")
    assert not re.findall(r"\b\d+ bytes.{20}", text)
