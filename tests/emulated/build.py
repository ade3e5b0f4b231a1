"""Builds the module `emulated`: the CUDA backend's own sources, compiled for a CPU. Prints its path.

    python tests/emulated/build.py [plain | quick | sanitized]

The module is kept in build/ and rebuilt when a source has changed. Of concurrent processes one builds and the others wait.
`sanitized` is built with AddressSanitizer and UndefinedBehaviorSanitizer; to import it, preload libasan.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pybind11
from ninja.ninja_syntax import Writer

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("tests/emulated")

FLAGS = "-std=c++20 -fPIC -Wall -Wextra -Werror -Wno-unknown-pragmas -fvisibility=hidden -ffp-contract=off"
FLAGS += f" -DONEPASS_EMULATED -I{HERE} -Icsrc -include cuda_runtime.h"
# All threads share the parameters of a kernel, without a copy for each.
FLAGS += " '-D__grid_constant__=&'"
KINDS = {
    "plain": "-O2",
    "quick": "-O1 -w",  # quick to compile
    # Without checks of pointers that AddressSanitizer makes too, when they are dereferenced.
    "sanitized": "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    " -fno-sanitize=null,pointer-overflow,object-size,vptr",
}
# Mostly templates of pybind11, which take longer to compile with sanitizers than all kernels, and are not sanitized.
BINDINGS = [Path("csrc/binding.cpp"), Path("csrc/binding_hypers.cpp"), HERE / "module.cpp"]


def sources(root: Path = ROOT) -> list[Path]:
    """Paths relative to the root: plan.cpp (shared with the CPU backend), the CUDA backend, the emulated host, the bindings.
    Bindings come last: of a function in two objects the linker takes the first, which should be the sanitized one."""
    backend = sorted((root / "csrc/cuda").glob("*.c*"))
    ours = [root / "csrc/plan.cpp", *(p for p in backend if p.suffix in (".cu", ".cpp"))]
    host = [root / HERE / name for name in ("fiber.cpp", "grid.cpp", "runtime.cpp")]
    return [path.relative_to(root) for path in ours + host] + BINDINGS


def object_of(source: Path, kind: str = "plain", root: Path = ROOT) -> Path:
    return root / "build" / f"emulated-{kind}" / source.with_suffix(source.suffix + ".o")


def build(kind: str = "plain", root: Path = ROOT, made: Mapping[Path, Path] = {}) -> Path:
    """Returns the path of the extension module, up to date; CalledProcessError, with the output, if it fails.

    made: objects of sources that are not compiled again.
    """
    if kind == "sanitized":
        build("plain", root)
        made = {path: object_of(path, "plain", root) for path in BINDINGS}
    folder = root / "build" / f"emulated-{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        _write_rules(kind, root, target, made)
        command = [sys.executable, "-m", "ninja", "-f", str(folder / "build.ninja")]
        subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return target


def _write_rules(kind: str, root: Path, target: Path, made: Mapping[Path, Path]) -> None:
    folder = target.parent
    includes = shlex.join(f"-isystem{path}" for path in (sysconfig.get_path("include"), pybind11.get_include()))
    cxx = os.environ.get("CXX", "g++")
    with (folder / "build.ninja").open("w") as file:
        n = Writer(file)
        n.variable("builddir", str(folder))
        n.rule(
            "cxx",
            f"{cxx} {FLAGS} $kind {includes} -MD -MF $out.d -x c++ -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
        )
        n.rule("link", f"{cxx} {KINDS[kind]} -shared $in -o $out")
        objects = {source: str(made.get(source) or object_of(source, kind, root)) for source in sources(root)}
        for source in [source for source in objects if source not in made]:
            n.build(objects[source], "cxx", str(source), variables={"kind": KINDS[kind]})
        n.build(str(target), "link", list(objects.values()))


if __name__ == "__main__":
    try:
        print(build(*sys.argv[1:]))
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}\n{error.stdout}")
