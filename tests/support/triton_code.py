"""Compiles the Triton kernels for the parameters of real models, stepped on a fake GPU: `python triton_code.py FOLDER TARGET...`,
without TRITON_INTERPRET in the environment. With `--predicted` first, just what the predictions are made of (programs.py).

Only the device is fake: the optimizer's step, the plan, Triton's specialisation of every launch (signature, divisibility,
constants) and its compilers are real; a launch does nothing. Writes machine code and PTX of every kernel into the folder,
and TARGET.json with the run and the constants of each.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import onepass
from fake_gpu import FakeGpu, OnGpu, empty_on_gpu
from paths import BENCH

sys.path.append(str(BENCH))
from shapes import Shape, gpt2_shapes, llama_shapes, resnet50_shapes

MODELS: dict[str, tuple[Shape, ...]] = {
    "gpt2": gpt2_shapes(),
    "resnet50": resnet50_shapes(),
    "llama": llama_shapes(),
    "mlp": ((256, 784), (256,), (10, 256), (10,)),
    # A row that is cut into pieces, and one that is not a multiple of 16 bytes.
    "rows": ((8, 20000), (5, 129), (7,)),
}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "AdamW": onepass.AdamW,
    "AdamP": onepass.AdamP,
    "AdamP with exact weights": lambda params, **more: onepass.AdamP(params, master_weights=True, **more),
    "AdamP with exact weights and short moments": lambda params, **more: onepass.AdamP(
        params, master_weights=True, state_dtype=torch.bfloat16, **more
    ),
    "AdamP rounded stochastically with short moments": lambda params, **more: onepass.AdamP(
        params, stochastic_rounding=True, state_dtype=torch.bfloat16, **more
    ),
    "AdamW with short moments": lambda params, **more: onepass.AdamW(params, state_dtype=torch.bfloat16, **more),
    "AdamW with moments of 8 bits": lambda params, **more: onepass.AdamW(params, state_dtype="8bit", **more),
    "AdamP with moments of 8 bits": lambda params, **more: onepass.AdamP(params, state_dtype="8bit", **more),
    "AdamP with exact weights and moments of 8 bits": lambda params, **more: onepass.AdamP(
        params, master_weights=True, state_dtype="8bit", **more
    ),
    "AdamW with exact weights and moments of 8 bits": lambda params, **more: onepass.AdamW(
        params, master_weights=True, state_dtype="8bit", **more
    ),
    "AdamP rounded stochastically with moments of 8 bits": lambda params, **more: onepass.AdamP(
        params, stochastic_rounding=True, state_dtype="8bit", **more
    ),
    "AdamW with float32 gradients": onepass.AdamW,
    "AdamP with exact weights and float32 gradients": lambda params, **more: onepass.AdamP(
        params, master_weights=True, **more
    ),
    "SGD rounded stochastically": lambda params, **more: onepass.SGD(
        params, lr=0.1, momentum=0.9, stochastic_rounding=True, **more
    ),
    "AdamP, no speculation": lambda params, **more: onepass.AdamP(params, speculate=False, **more),
    "SGDP": lambda params, **more: onepass.SGDP(params, lr=0.1, momentum=0.9, **more),
    "SGDP, projected buffer": lambda params, **more: onepass.SGDP(
        params, lr=0.1, momentum=0.9, project_momentum=True, **more
    ),
    "AdamProxL2": lambda params, **more: onepass.AdamProxL2(params, weight_decay=1e-2, **more),
    "SGD": lambda params, **more: onepass.SGD(params, lr=0.1, momentum=0.9, **more),
    "SGD without a buffer": lambda params, **more: onepass.SGD(params, lr=0.1, **more),
}
COMMON = (
    "AdamW",
    "AdamP",
    "AdamP with exact weights",
    "AdamP with exact weights and short moments",
    "AdamP with exact weights and moments of 8 bits",
    "SGDP",
    "AdamProxL2",
)
# The dtypes of what is for some only, by words of their names.
OF_SOME = {
    "exact": ("bfloat16",),
    "stochastically": ("bfloat16",),
    "short": ("bfloat16", "float32"),
    "8 bits": ("bfloat16", "float32"),
    "float32 gradients": ("bfloat16", "float16"),
}
ALL_DTYPES = ("float32", "bfloat16", "float16", "float64")
# Shared memory that a block may have, by target.
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
# Every model in both dtypes, and every target with both dtypes, so that each compiles every kernel. ONEPASS_EVERY_TARGET=1
# takes all combinations, and four times as long.
EVERY = os.environ.get("ONEPASS_EVERY_TARGET") == "1"
PAIRS = {
    "sm_80": (("llama", "float32"), ("mlp", "bfloat16"), ("rows", "float16")),
    "sm_90": (("gpt2", "float32"), ("resnet50", "bfloat16"), ("rows", "float64")),
    "sm_100": (("mlp", "float32"), ("llama", "bfloat16"), ("rows", "float64")),
    "gfx942": (("resnet50", "float32"), ("gpt2", "bfloat16"), ("rows", "float16")),
}


def predicted() -> Iterator[tuple[str, str, str]]:
    """The runs of bench/predict_triton.py."""
    for model in ("gpt2", "resnet50", "llama"):
        for dtype in ("float32", "bfloat16"):
            for optimizer in ("AdamW", "AdamP"):
                yield model, dtype, optimizer


def runs(target: str) -> Iterator[tuple[str, str, str]]:
    """Models, dtypes and optimizers to step for a target."""
    every = tuple((model, dtype) for model in MODELS for dtype in ALL_DTYPES)
    for model, dtype in every if EVERY else PAIRS[target]:
        for optimizer in OPTIMIZERS if model == "mlp" or EVERY else COMMON:
            if all(dtype in dtypes for word, dtypes in OF_SOME.items() if word in optimizer):
                yield model, dtype, optimizer


class Driver:
    """Replaces Triton's drivers for CUDA and HIP."""

    def __init__(self, target: str):
        from triton.backends.compiler import GPUTarget

        nvidia = target.startswith("sm_")
        self.device = list(SHARED).index(target)  # Triton has caches for each
        self.target = GPUTarget("cuda", int(target[3:]), 32) if nvidia else GPUTarget("hip", target, 64)
        self.shared = SHARED[target]
        self.grids: list[tuple[int, ...]] = []
        self.utils = self

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.shared}

    def load_binary(self, name: str, code: bytes, shared: int, device: int) -> tuple[int, ...]:
        return 0, 0, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda x, y, z, *_: self.grids.append((x, y, z))


def train(model: str, dtype: str, optimizer: str) -> list[list[str]]:
    """Takes a plain, a clipped and a scaled step; returns the launches of each."""
    params = [torch.nn.Parameter(empty_on_gpu(shape, getattr(torch, dtype))) for shape in MODELS[model]]
    for p in params:
        p.grad_dtype = torch.float32 if "float32 gradients" in optimizer else p.dtype
        p.grad = empty_on_gpu(p.shape, p.grad_dtype)
    opt = OPTIMIZERS[optimizer](params, backend="triton")
    launches = []

    def step() -> None:
        opt.step()
        launches.append(opt._execution.backends[0].launches)

    step()
    opt.clip_grad_norm_(1.0)
    step()
    opt.grad_scale, opt.found_inf = OnGpu(torch.tensor(8.0)), OnGpu(torch.tensor(0.0))
    step()
    return launches


def main(folder: Path, targets: list[str], runs: Callable[[str], Iterator[tuple[str, str, str]]] = runs) -> None:
    import triton
    from triton import knobs

    for target in targets:
        kernels: list[dict[str, Any]] = []
        run = ""

        def keep(key: str, fn: Any, compile: Any, **_: Any) -> None:
            kernel = fn.jit_function
            constants = {kernel.arg_names[at]: str(x) for (at,), x in compile["constants"].items()}
            code = kernel.device_caches[compile["device"]][0][key].asm
            name = f"{target}-{len(kernels)}-{fn.name}"  # noqa: B023  (called in this round)
            for kind in ("ptx", "cubin", "amdgcn"):
                if kind in code:
                    text = code[kind]
                    (folder / f"{name}.{kind}").write_bytes(text if isinstance(text, bytes) else text.encode())
            what = {"name": name, "kernel": fn.name, "run": run, "constants": constants}  # noqa: B023
            kernels.append({**what, "threads": compile["num_warps"] * driver.target.warp_size})  # noqa: B023

        knobs.runtime.jit_post_compile_hook = keep
        driver = Driver(target)
        triton.runtime.driver.set_active(driver)
        launches = {}
        with FakeGpu()():
            for model, dtype, optimizer in runs(target):
                run = f"{model}, {dtype}, {optimizer}"
                launches[run] = train(model, dtype, optimizer)
        said = {"kernels": kernels, "launches": launches, "grids": driver.grids}
        (folder / f"{target}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    if sys.argv[1] == "--predicted":
        main(Path(sys.argv[2]), sys.argv[3:], lambda target: predicted())
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
