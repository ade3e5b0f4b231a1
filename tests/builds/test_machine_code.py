"""Machine code of the CUDA kernels: no register spills, memory accessed a vector at a time, and no fence in a loop.

Needs no GPU. `pytest tests/builds/test_machine_code.py -rP` prints registers and occupancy.
"""

import re
import subprocess

import pytest

from machine_code import find_nvcc, has_blocks_of, kernels_of, occupancy, spills, wide_accesses, wide_accesses_wanted
from onepass.backend import compiled

EXAMPLE = """
namespace onepass::cuda {
__device__ float4 streamed(float4* from) {
  float4 x;
  asm volatile("ld.global.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "l"(from));
  return x;
}
template <class S> __global__ void step(float4* p) {
  float4 x = streamed(p + threadIdx.x);
  x.x *= 2;
  __stcs(p + threadIdx.x, x);
}
template <class S> __global__ void gate_stats(float* p, float* sum) {
  float4 x = streamed(reinterpret_cast<float4*>(p) + threadIdx.x);
  sum[threadIdx.x] = x.x + x.y + x.z + x.w;
}
template <class S> __global__ void update(float* p) { p[threadIdx.x] *= 2; }
template <class S> __global__ void correct(float4* p, int n) {
  float kept[64];
  for (int i = 0; i < 64; ++i) kept[i] = p[i].x;
  for (int i = 0; i < n; ++i) kept[int(p[i].y)] += 1;
  for (int i = 0; i < 64; ++i) p[i].x = kept[i];
}
template __global__ void step<float>(float4*);
template __global__ void gate_stats<float>(float*, float*);
template __global__ void update<float>(float*);
template __global__ void correct<float>(float4*, int);
}
"""


@pytest.fixture(scope="module")
def flags():
    assert compiled._C is not None
    if "nvcc" not in compiled._C.build_flags:
        pytest.skip("onepass is built without the CUDA kernels")
    return compiled._C.build_flags


@pytest.fixture(scope="module")
def kernels(flags):
    return kernels_of(compiled._C.__file__)


def test_machine_code_for_every_architecture(flags, kernels):
    assert {kernel.arch for kernel in kernels} == set(re.findall(r"code=(sm_\d+)", flags))
    by_arch = [{k.name for k in kernels if k.arch == arch} for arch in {k.arch for k in kernels}]
    assert all(names == by_arch[0] for names in by_arch)


def test_no_kernel_spills(kernels):
    assert {f"{k.arch} {k.short_name}": spills(k) for k in kernels if spills(k)} == {}
    for k in kernels:
        resident = f", occupancy {occupancy(k.registers):.0%}" if k.arch == "sm_90" else ""
        print(f"{k.arch}: {k.registers} registers{resident}, {len(k.instructions)} instructions: {k.short_name}")


WRITING, READING = ("step", "update", "correct"), ("gate_stats", "square_sum")
STORAGES = ("float", "double", "BFloat16", "Half", "Master")


@pytest.mark.parametrize(
    ("function", "storage"),
    [
        *((function, storage) for storage in STORAGES for function in (*WRITING, *READING)),
        *((function, "Stochastic") for function in WRITING),  # what only reads is that of BFloat16
    ],
)
def test_every_operand_is_accessed_a_vector_at_a_time(function, storage, kernels):
    """The exact number of loads and stores: a lower bound would not detect that one is split."""
    named = [k for k in kernels if k.function == function and k.storage == storage]
    assert named
    counts = {f"{k.arch} {k.short_name}": (wide_accesses(k), wide_accesses_wanted(k)) for k in named}
    assert {name: count for name, count in counts.items() if count[0] != count[1]} == {}


def test_other_kernels_have_no_wide_accesses(kernels):
    others = [k for k in kernels if k.function in ("device_scalars", "upload", "sum_of")]
    assert others and all(wide_accesses(k) == wide_accesses_wanted(k) == {} for k in others)


def test_a_step_converts_nothing_to_or_from_double(kernels):
    """But found_inf, once, in case it is a float."""
    steps = [k for k in kernels if k.function == "step"]
    found = {k.short_name: [i for i in k.instructions if i.startswith("F2F.") and "64" in i] for k in steps}
    assert found == {k.short_name: ["F2F.F64.F32"] for k in steps} and found


def test_an_item_ends_without_a_fence_of_sequential_consistency(kernels):
    """The cache is emptied by the warp that publishes the last item of a tensor alone, and by the last block of a correction."""
    assert not {k.short_name for k in kernels if "MEMBAR.SC.GPU" in k.instructions}
    publishing = {"gate_stats": 2, "update": 2, "square_sum": 2, "correct": 1}  # for blocks and for warps
    for k in kernels:
        wanted = min(1, publishing.get(k.function, 0)) if has_blocks_of(k) else publishing.get(k.function, 0)
        assert k.instructions.count("CCTL.IVALL") == wanted, k.short_name


def test_module_needs_no_cuda_library(flags):
    needed = subprocess.run(
        ["readelf", "-d", compiled._C.__file__], text=True, stdout=subprocess.PIPE, check=True
    ).stdout
    assert "NEEDED" in needed
    assert "cuda" not in needed.lower()


def test_spills_and_narrow_accesses_are_detected(tmp_path):
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc")
    source, binary = tmp_path / "example.cu", tmp_path / "example.o"
    source.write_text(EXAMPLE)
    subprocess.run([nvcc, "-O3", "-gencode=arch=compute_90,code=sm_90", "-c", source, "-o", binary], check=True)
    kernels = {kernel.function: kernel for kernel in kernels_of(binary)}
    assert {name: kernel.storage for name, kernel in kernels.items()} == dict.fromkeys(kernels, "float")
    assert {name: wide_accesses(kernel) for name, kernel in kernels.items()} == {
        "step": {"LDG.16": 1, "STG.16": 1},
        "gate_stats": {"LDG.16": 1},
        "update": {},
        "correct": {},
    }
    assert not any(spills(kernels[name]) for name in ("step", "gate_stats", "update"))
    assert any(found.startswith("stack") for found in spills(kernels["correct"]))
    assert any(found.startswith("LDL") for found in spills(kernels["correct"]))


@pytest.mark.parametrize(
    ("registers", "warps"),
    [(16, 64), (32, 64), (33, 48), (40, 48), (48, 40), (64, 32), (128, 16), (129, 12), (168, 12), (255, 8)],
)
def test_occupancy(registers, warps):
    assert occupancy(registers) == warps / 64
