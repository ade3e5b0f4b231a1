"""Builds onepass._C, the one extension module. No torch is needed to build it, and none is imported.

ninja drives the compiler because setuptools can neither compile one source several times with other
flags nor see that a header changed. The rest of the packaging is in pyproject.toml.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# KERNELS is compiled once for each instruction set; the dispatcher picks one at run time.
KERNELS = Path("csrc/cpu/kernels.cpp")
SOURCES = sorted(source for folder in ("csrc", "csrc/cpu") for source in Path(folder).glob("*.cpp"))
X86_64 = platform.machine().lower() in ("x86_64", "amd64")
ISAS = {"baseline": ""}
if X86_64:
    ISAS |= {"avx2": "-march=x86-64-v3", "avx512": "-march=x86-64-v4"}

FLAGS = "-std=c++20 -O3 -DNDEBUG -fPIC -fvisibility=hidden -fopenmp"
# Contraction would make the bits depend on the instruction set. The other two change no result;
# without them loops with a square root or a comparison are not vectorised.
FLAGS += " -ffp-contract=off -fno-math-errno -fno-trapping-math"

PROBE = "#include <Python.h>\n#include <omp.h>\n#include <version>\n"
ADVICE = """onepass needs a C++20 compiler with OpenMP (g++ >= 11, or clang++ with libomp) and the \
headers of this Python. Install them (Debian, Ubuntu: apt install g++ python3-dev; Fedora: dnf \
install gcc-c++ python3-devel), or set CXX to the compiler to use. `{}` said: {}"""


def compiler_version(cxx, flags):
    """One line that names the compiler; a CompileError if it does not compile what we rely on."""
    probe = shlex.split(f"{cxx} {flags} {' '.join(ISAS.values())} -fsyntax-only -x c++ -")
    try:
        subprocess.run(probe, input=PROBE, text=True, stderr=subprocess.PIPE, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompileError(ADVICE.format(cxx, getattr(error, "stderr", error))) from None
    return subprocess.check_output([*shlex.split(cxx), "--version"], text=True).splitlines()[0]


class NinjaBuild(build_ext):
    def build_extension(self, ext):
        # An editable build gets a new build_temp each time; only a lasting one makes it incremental.
        build = Path("build/editable" if self.editable_mode else self.build_temp)
        target = Path(self.get_ext_fullpath(ext.name))
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.write_ninja(build)
        if subprocess.call([sys.executable, "-m", "ninja", "-f", build / "build.ninja"]):
            raise CompileError("onepass._C does not compile; the compiler's words are above")
        self.copy_file(build / "_C.so", target)

    def write_ninja(self, build):
        import pybind11
        from ninja.ninja_syntax import Writer, escape

        cxx = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")
        flags = f"{FLAGS} {os.environ.get('CXXFLAGS', '')}".strip()
        system = (sysconfig.get_path("include"), pybind11.get_include())
        includes = shlex.join(["-Icsrc", *(f"-isystem{path}" for path in system)])
        werror = " -Werror" * (os.environ.get("ONEPASS_WERROR") == "1")
        compiler = compiler_version(cxx, f"{flags} {includes}")
        build_flags = json.dumps(f"{compiler}: {flags}")  # a C string
        version = f'-DONEPASS_VERSION="{self.distribution.get_version()}"'
        host = [version, f"-DONEPASS_BUILD_FLAGS={build_flags}", *["-DONEPASS_X86_64=1"] * X86_64]
        with (build / "build.ninja").open("w") as file:
            n = Writer(file)

            def compiled(source, suffix, own):
                target = str(build / source.with_suffix(suffix))
                return n.build(target, "cxx", str(source), variables={"own": escape(own)})[0]

            n.variable("builddir", build)
            n.variable("cxx", escape(f"{cxx} {flags}"))
            n.variable("common", escape(f"-Wall -Wextra -Wno-psabi{werror} {includes}"))
            command = "$cxx $common $own -MD -MF $out.d -c $in -o $out"
            n.rule("cxx", command, depfile="$out.d", deps="gcc")
            n.rule("link", "$cxx -shared $in -o $out")
            objects = [compiled(s, ".o", shlex.join(host)) for s in SOURCES if s != KERNELS]
            # Baseline first: the linker keeps the first of several copies of an inline function,
            # and an AVX-512 copy would then run on machines without it.
            for isa, march in ISAS.items():
                objects += [compiled(KERNELS, f".{isa}.o", f"-DONEPASS_ISA={isa} {march}")]
            n.build(str(build / "_C.so"), "link", objects)


setup(
    ext_modules=[Extension("onepass._C", [str(source) for source in SOURCES], language="c++")],
    cmdclass={"build_ext": NinjaBuild},
)
