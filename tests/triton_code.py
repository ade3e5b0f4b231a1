"""Compiles the Triton kernels ahead of time, which needs no GPU: `python triton_code.py FOLDER`, without TRITON_INTERPRET
in the environment. Writes machine code and PTX of every case into the folder, and cases.json with what Triton says of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
DTYPES = ("float32", "float64", "bfloat16", "float16")
KERNELS = ("step", "measure", "update", "settle", "square_sum")
WARPS = 8
# Rows that lie at multiples of 16 bytes: as long as fit, and short ones, of which a thread has several.
WIDEST = {"float64": 15}
SHORT = 9
# Rows that lie anywhere.
UNALIGNED = 8


@dataclass(frozen=True)
class Case:
    target: str
    kernel: str
    dtype: str
    body: int
    family: str = "adam"
    projects: bool = False

    @property
    def name(self) -> str:
        return f"{self.target}-{self.kernel}-{self.dtype}-{self.body}-{self.family}" + "-projects" * self.projects


def cases() -> Iterator[Case]:
    for target in TARGETS:
        for dtype in DTYPES:
            for kernel in KERNELS:
                yield Case(target, kernel, dtype, WIDEST.get(dtype, 19))
            yield Case(target, "update", dtype, UNALIGNED)
        for kernel in KERNELS:
            yield Case(target, kernel, "float32", SHORT)
            yield Case(target, kernel, "float32", 4)
        for family in ("sgd", "plain_sgd"):
            yield Case(target, "step", "float32", 17, family)
        yield Case(target, "update", "float32", 17, "sgd", True)
        yield Case(target, "settle", "bfloat16", 17, "sgd", True)
        yield Case(target, "verdict", "float32", 0)
        yield Case(target, "add_up", "float32", 0)
        yield Case(target, "prepare", "float32", 0)


def vectors(case: Case) -> int:
    """Accesses of 16 bytes that a thread makes, if all of p, g and the moments are reached so."""
    if case.body % 2 == 0:
        return 0
    item = {"float64": 8, "float32": 4}.get(case.dtype, 2)
    work = 8 if case.dtype == "float64" else 4
    moments = {"adam": 2, "sgd": 1, "plain_sgd": 0}[case.family]
    if case.kernel == "square_sum":
        read = item
    else:
        read = 2 * item + (moments * work if case.kernel != "measure" else 0)
    written = {"step": item + moments * work, "update": item + moments * work, "settle": item}.get(case.kernel, 0)
    written += work if case.kernel == "settle" and case.projects else 0
    threads = WARPS * (64 if case.target.startswith("gfx") else 32)
    elements = max(4096 // (2 if case.dtype == "float64" else 1), 16 << case.body // 2) // threads
    return elements * (read + written) // 16


def compiled(case: Case) -> Any:
    import triton
    import triton.language as tl
    from onepass.triton_kernels import kernels, launch, live, plan
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = (
        GPUTarget("hip", case.target, 64)
        if case.target.startswith("gfx")
        else GPUTarget("cuda", int(case.target.removeprefix("sm_")), 32)
    )
    fn = live.prepare if case.kernel == "prepare" else getattr(kernels, case.kernel)
    section = plan.Section(0, 1, 1 << case.body, plan.tile_of(case.dtype))
    given = {
        **launch.constants(case.dtype, case.family, section),
        "PROJECTS_MOMENTUM": case.projects,
        "MEASURED": False,
        "TENSORS": launch.TENSORS,
        "BLOCK": launch.BLOCK,
    }
    integers = ("programs", "entries", "tensors", "gated", "live_tensors", "live")
    numbers = ("first_program", "count", "tensor_count")
    signature = {
        name: "constexpr" if name in given else "i32" if name in numbers else "*i64" if name in integers else "*fp64"
        for name in fn.arg_names
    }
    at = {name: (i,) for i, name in enumerate(fn.arg_names)}
    source = ASTSource(
        fn,
        signature,
        {at[name]: value for name, value in given.items() if name in at},
        {at[name]: [["tt.divisibility", 16]] for name, kind in signature.items() if kind.startswith("*")},
    )
    assert tl  # the names in `given` are its
    return triton.compile(source, target=target, options=launch.OPTIONS)


def main(folder: Path) -> None:
    said = {}
    for case in cases():
        try:
            code = compiled(case).asm
        except Exception as error:
            if not case.target.startswith("gfx"):  # those that the installed Triton must know
                raise
            said[case.name] = {"cannot": repr(error)}
            continue
        said[case.name] = {}
        for kind in ("ptx", "cubin", "amdgcn"):
            if kind in code:
                text = code[kind]
                (folder / f"{case.name}.{kind}").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "cases.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
