"""Launches of the CUDA backend for real models on the GPUs that the module is built for: the compiled kernels accept each
launch, and the number of resident blocks per multiprocessor is the one that the launch code assumes.

The emulation records launches without running them, so tensors have their full size and no element is accessed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch

import onepass
from emulated_backend import emulated, plan_of
from machine_code import Kernel, kernels_of
from onepass.backend import compiled
from paths import BENCH, ROOT

sys.path.append(str(BENCH))
from shapes import gpt2_shapes, llama_shapes, resnet50_shapes

MODELS = {
    "gpt2": gpt2_shapes(),
    "resnet50": resnet50_shapes(),
    "llama": llama_shapes(),
    "mlp": ((256, 784), (10, 256), (10,)),
}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "AdamW": onepass.AdamW,
    "AdamP": onepass.AdamP,
    "AdamProxL2": onepass.AdamProxL2,
    "SGDP": lambda params, **more: onepass.SGDP(params, lr=0.1, momentum=0.9, **more),
    "SGD": lambda params, **more: onepass.SGD(params, lr=0.1, **more),
}
STORAGE = {torch.float32: "float", torch.bfloat16: "BFloat16", torch.float16: "Half", torch.float64: "double"}
# Bytes of kernel parameters, from compute capability 7.0 and CUDA 12.1 on.
MOST_ARGUMENTS = 32764
REGISTERS = 65536


class Device(NamedTuple):
    """Multiprocessors of one such GPU; shared memory per multiprocessor and per block; threads per multiprocessor. From the
    table of compute capabilities in the CUDA C++ Programming Guide."""

    multiprocessors: int
    shared: int
    per_block: int
    threads: int


DEVICES = {
    "sm_80": Device(108, 164 << 10, 163 << 10, 2048),  # A100
    "sm_86": Device(84, 100 << 10, 99 << 10, 1536),  # A40
    "sm_89": Device(142, 100 << 10, 99 << 10, 1536),  # L40
    "sm_90": Device(132, 228 << 10, 227 << 10, 2048),  # H100, H200
    "sm_100": Device(148, 228 << 10, 227 << 10, 2048),  # B200
    "sm_120": Device(170, 100 << 10, 99 << 10, 1536),  # RTX 5090
}
RESERVED = 1024


@pytest.fixture(scope="module")
def kernels() -> dict[tuple[str, str, str], list[Kernel]]:
    """The compiled kernels by architecture, function and storage."""
    assert compiled._C is not None
    if not compiled._C.cuda_archs:
        pytest.skip("onepass is built without the CUDA kernels")
    found: dict[tuple[str, str, str], list[Kernel]] = {}
    for kernel in kernels_of(compiled._C.__file__):
        found.setdefault((kernel.arch, kernel.function, kernel.storage), []).append(kernel)
    return found


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves state uninitialized, and restores the device's properties and the capture mode afterwards."""
    kept = {name: getattr(emulated.device, name) for name in ("multiprocessors", *LIMITS)}
    monkeypatch.setattr(torch, "zeros_like", lambda t, **options: torch.empty_like(t, **options))
    emulated.reset()
    yield
    emulated.set_capturing(False)
    for name, value in kept.items():
        setattr(emulated.device, name, value)


LIMITS = ("shared_per_multiprocessor", "shared_per_block", "blocks_per_multiprocessor")


def launches_of(model: str, dtype: torch.dtype, optimizer: str) -> tuple[list[tuple[str, Any]], int]:
    """The launches of a step and of a clipping, as name and (grid, block, shared memory), and the size of the row cache."""
    params = [torch.empty(shape, dtype=dtype) for shape in MODELS[model]]
    for p in params:
        p.grad = torch.empty_like(p)
    opt = OPTIMIZERS[optimizer](params, backend="emulated", capturable=True)
    emulated.set_capturing(True)
    opt.step()
    names = list(plan_of(opt).launches)
    opt.clip_grad_norm_(1.0)
    names += plan_of(opt).launches
    return list(zip(names, emulated.recorded(), strict=True)), plan_of(opt).row_cache_bytes


def fitting(kernel: Kernel, device: Device, threads: int, shared: int) -> int:
    """Resident blocks per multiprocessor: registers are allocated per warp in units of 256, shared memory in units of 128."""
    warps = -(-threads // 32)
    of_warp = -(-kernel.registers * 32 // 256) * 256
    by_registers = REGISTERS // of_warp // 4 * 4 // warps
    by_shared = device.shared // (-(-shared // 128) * 128 + max(RESERVED, kernel.shared))
    return min(by_registers, by_shared, device.threads // threads)


def room_for(device: Device, blocks: int) -> int:
    """Bytes of the row cache with `blocks` resident blocks per multiprocessor, in units of 4096."""
    return (
        (min(device.shared // blocks - RESERVED, device.per_block) - int(emulated.limits["shared_storage"]))
        // 4096
        * 4096
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_launches_for_real_models(
    recording: None, kernels: dict[tuple[str, str, str], list[Kernel]], model: str, dtype: torch.dtype
) -> None:
    for arch in sorted({arch for arch, _, _ in kernels}):
        device = DEVICES[arch]
        emulated.device.multiprocessors = device.multiprocessors
        emulated.device.shared_per_multiprocessor, emulated.device.shared_per_block = device.shared, device.per_block
        # The driver's constants precede the kernel parameters, and are more if these exceed 4 KB. Their size follows from
        # `upload`, whose parameters have a known size.
        (upload,) = kernels[arch, "upload", ""]
        before_arguments = upload.constants - (16 + 8 * emulated.limits["words"])
        for optimizer in OPTIMIZERS:
            launches, room = launches_of(model, dtype, optimizer)
            rooms = {blocks: room_for(device, blocks) for blocks in (4, 3, 2)}
            assert room in rooms.values()
            for name, (grid, threads, shared) in sorted(set(launches)):
                function = {"add_up": "sum_of"}.get(name, name)
                storage = "" if name in ("add_up", "upload") else STORAGE[dtype]
                for kernel in kernels[arch, function, storage]:
                    what = f"{arch} {kernel.short_name} of {optimizer}"
                    assert 1 <= grid < 1 << 31 and kernel.registers <= 255, what
                    assert kernel.constants - before_arguments <= MOST_ARGUMENTS, what
                    assert shared + max(0, kernel.shared - RESERVED) <= device.per_block, what
                    wanted = {
                        "step": 4,
                        "square_sum": 4,
                        "gate_stats": 4,
                        "correct": 4,
                        "update": next(blocks for blocks in rooms if room == rooms[blocks]),
                    }
                    blocks = fitting(kernel, device, threads, shared)
                    assert blocks >= wanted.get(name, 1), what
                    print(f"{what}: {grid} blocks of {threads}, {shared} bytes shared, {blocks} on a multiprocessor")
            assert {"device_scalars", "square_sum", "add_up"} <= {name for name, _ in launches}
            assert ("update" in {name for name, _ in launches}) == (optimizer in ("AdamP", "SGDP"))


def test_devices_cover_the_architectures_of_the_wheel() -> None:
    setup = (ROOT / "setup.py").read_text()
    archs = setup.partition("CUDA_ARCHS = (")[2].partition(")")[0]
    assert {f"sm_{arch.strip()[1:-1]}" for arch in archs.split(",")} == set(DEVICES)
