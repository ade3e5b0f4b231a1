"""Machine code of the kernels in a compiled module: registers, instructions, and spills."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Kernel:
    arch: str
    name: str  # demangled
    registers: int  # of a thread
    stack: int  # bytes, as local
    local: int
    shared: int  # static bytes of a block, including the driver's
    constants: int  # bytes, most of them arguments
    instructions: list[str] = field(repr=False)  # without operands

    @property
    def short_name(self) -> str:
        """step<float, Adam<float>> for void onepass::cuda::step<float, onepass::Adam<float> >(...)."""
        return re.sub(r"\(.*|\b(?:void|onepass|cuda|\(anonymous namespace\))(?:::| )", "", self.name).replace(
            "> >", ">>"
        )

    @property
    def function(self) -> str:
        return self.short_name.partition("<")[0]

    @property
    def storage(self) -> str:
        """The type of the parameters, which is the first argument of the template."""
        return re.split("[<,>]", self.short_name + "<")[1]


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(os.environ.get("NVCC", "nvcc")) or shutil.which(f"{home}/bin/nvcc")


def tools_path() -> str:
    """A PATH with cuobjdump and nvdisasm: the user's, nvcc's folder, and that of the triton package, which ships them."""
    folders = [os.environ.get("PATH", "")]
    nvcc, triton = find_nvcc(), importlib.util.find_spec("triton")
    if nvcc:
        folders.append(str(Path(nvcc).resolve().parent))
    if triton and triton.origin:
        folders.append(str(Path(triton.origin).parent / "backends/nvidia/bin"))
    return os.pathsep.join(folders)


def cuobjdump(*arguments: str) -> str:
    path = tools_path()
    tool = shutil.which("cuobjdump", path=path)
    assert tool and shutil.which("nvdisasm", path=path), (
        "cuobjdump and nvdisasm are neither on the PATH nor next to nvcc nor in triton; "
        "install what requirements/test.txt names"
    )
    # It calls nvdisasm.
    return subprocess.run(
        [tool, *arguments], env={**os.environ, "PATH": path}, text=True, capture_output=True, check=True
    ).stdout


def demangled(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), text=True, stdout=subprocess.PIPE, check=True)
    return done.stdout.splitlines()


def lines_of(binary: str | Path, listing: str) -> Iterator[tuple[tuple[str, str], str]]:
    """The lines of a cuobjdump listing, each with the architecture and the mangled name of its kernel."""
    arch = function = ""
    for line in cuobjdump(listing, str(binary)).splitlines():
        if found := re.search(r"(?:code for|^arch =) (\w+)", line):
            arch = found[1]
        elif found := re.search(r"Function (?:: )?([^\s:]+)", line):
            function = found[1]
        yield (arch, function), line


def resources_of(binary: str | Path) -> dict[tuple[str, str], list[int]]:
    """Registers, stack, local memory, shared memory and constants of every kernel, by architecture and mangled name."""
    usage = {}
    for kernel, line in lines_of(binary, "--dump-resource-usage"):
        said = {name: int(number) for name, number in re.findall(r"([A-Z]+)(?:\[0\])?:(\d+)", line)}
        if "REG" in said:
            usage[kernel] = [said[name] for name in ("REG", "STACK", "LOCAL", "SHARED", "CONSTANT")]
    return usage


def kernels_of(binary: str | Path) -> list[Kernel]:
    """All kernels in a module or an object file, for every architecture that it has machine code for."""
    instructions = defaultdict(list)
    for kernel, line in lines_of(binary, "-sass"):
        if found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", line):
            instructions[kernel].append(found[1])

    usage = resources_of(binary)
    assert usage.keys() == instructions.keys(), "the two listings name other kernels"
    names = demangled([function for _, function in usage])
    return [Kernel(key[0], name, *usage[key], instructions[key]) for key, name in zip(usage, names, strict=True)]


def has_blocks_of(kernel: Kernel) -> bool:
    return "ByteMoment" in kernel.short_name


def wide_accesses(kernel: Kernel) -> dict[str, int]:
    """Loads and stores of vectors of global memory with a streaming hint, as those of elements have it, by their bytes."""
    found = Counter(
        f"{match[1]}.{int(match[2] or 32) // 8}"
        for i in kernel.instructions
        if (match := re.fullmatch(r"(LDG\.E\.NA|STG\.E\.EF)(?:\.(64|128))?", i))
    )
    return {name.replace(".E.NA", "").replace(".E.EF", ""): count for name, count in sorted(found.items())}


def wide_accesses_wanted(kernel: Kernel) -> dict[str, int]:
    """Their number if every operand of a packed tensor is accessed a vector at a time in whole rounds: each traversal of
    csrc/cuda/rows.cuh, once for blocks and once for warps, which take no tensor with moments of 8 bits. A vector is 4 elements, and 2
    of float64."""
    item = {"float": 4, "double": 8}.get(kernel.storage, 2)
    lanes = 2 if item == 8 else 4
    has_blocks = has_blocks_of(kernel)
    param = lanes * item
    moment = lanes * (1 if has_blocks else 2 if "ShortMoment" in kernel.short_name else max(4, item))
    count = 0 if "Sgd" in kernel.short_name else 1 if "Momentum" in kernel.short_name else 2
    at_a_time = 1 if item == 8 else 2  # Operands::at_a_time of item.cuh
    weight = 2 if kernel.storage == "Master" else 1  # with a remainder
    buffer = 1 if count == 1 else 0  # which is projected too, if asked for
    # Gradients of 16-bit parameters may be float32.
    gradient = [("LDG", param, 1), *[("LDG", 4 * lanes, 1)] * (item == 2)]
    read, written = ("LDG", param, weight), ("STG", param, weight)
    step = [read, *gradient, ("LDG", moment, count), written, ("STG", moment, count)]
    # p is read again where u alone was kept.
    update = [read, *step[:-1], ("STG", moment, count + buffer)]
    correct = [*step[:-1], ("STG", moment, buffer)]
    traversals = {
        "step": [(at_a_time, step)],
        "square_sum": [(4, gradient)],
        "gate_stats": [(4, [read, *gradient])],
        # A tensor that is not projected is stepped in place of updated.
        "update": [(at_a_time, step), (at_a_time, update)],
        "correct": [(at_a_time, correct)],
    }
    if has_blocks:  # both vectors of a block; its weights are written, and corrected, one after the other
        stepped = [x for x in step if x is not written]
        traversals = {
            "step": [(2, step)],
            "update": [(2, step), (2, stepped), (1, [read, written])],
            "correct": [(1, correct)],
        }
    wanted: Counter[str] = Counter()
    for times, accesses in traversals.get(kernel.function, []):
        with_single = times + (times > 1)  # the last vector of a lane may be without others
        for name, size, number in accesses:
            wanted[f"{name}.{size}"] += (times if has_blocks else 2 * with_single) * number
    return dict(sorted((+wanted).items()))


def spills(kernel: Kernel) -> list[str]:
    """Register spills: sizes of stack and local memory, and their instructions."""
    found = [f"{name} {size}" for name, size in [("stack", kernel.stack), ("local", kernel.local)] if size]
    return found + sorted({i for i in kernel.instructions if re.match(r"(LDL|STL)\b", i)})


def occupancy(registers: int, threads: int = 128) -> float:
    """The fraction of the 64 warps of an sm_90 multiprocessor that can be resident, as in NVIDIA's calculator for blocks
    with little shared memory. Registers are allocated to warps 256 at a time, and to four warps alike."""
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // 256) * 256
    resident = 65536 // of_warp // 4 * 4
    blocks = min(32, 64 // warps, resident // warps)
    return blocks * warps / 64
