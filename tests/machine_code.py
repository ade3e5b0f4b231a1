"""The kernels in a compiled module as machine code: their registers, their instructions, and what is wrong with them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import defaultdict
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
    """A PATH with cuobjdump and nvdisasm: the user's, next to nvcc, and in the triton package, which ships them."""
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
    """A listing of cuobjdump's, each line with the architecture and the mangled name of the kernel that it is about."""
    arch = function = ""
    for line in cuobjdump(listing, str(binary)).splitlines():
        if found := re.search(r"(?:code for|^arch =) (\w+)", line):
            arch = found[1]
        elif found := re.search(r"Function (?:: )?([^\s:]+)", line):
            function = found[1]
        yield (arch, function), line


def resources_of(binary: str | Path) -> dict[tuple[str, str], list[int]]:
    """Registers, stack and local memory of every kernel, by architecture and mangled name."""
    return {
        kernel: [int(number) for number in found.groups()]
        for kernel, line in lines_of(binary, "--dump-resource-usage")
        if (found := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line))
    }


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


def has(kernel: Kernel, instruction: str) -> bool:
    """If it has the 16 byte form of LDG or STG; hints on caching stand between the two."""
    return any(re.fullmatch(rf"{instruction}\.E(\.\w+)*\.128(\.\w+)*", i) for i in kernel.instructions)


def spills(kernel: Kernel) -> list[str]:
    """Which registers' worth of data lies in memory."""
    found = [f"{name} {size}" for name, size in [("stack", kernel.stack), ("local", kernel.local)] if size]
    return found + sorted({i for i in kernel.instructions if re.match(r"(LDL|STL)\b", i)})


def narrow(kernel: Kernel) -> list[str]:
    """Which of the accesses that must be there in 16 bytes are not."""
    wanted = {"measure": ["LDG"]}.get(kernel.function, ["LDG", "STG"])
    return [f"no {i}.E.128" for i in wanted if not has(kernel, i)]


def occupancy(registers: int, threads: int = 128) -> float:
    """Warps of a multiprocessor of sm_90 that can be resident, of its 64: what NVIDIA's calculator says of blocks
    that use little shared memory. Registers are handed to warps 256 at a time, and to four warps alike."""
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // 256) * 256
    resident = 65536 // of_warp // 4 * 4
    blocks = min(32, 64 // warps, resident // warps)
    return blocks * warps / 64
