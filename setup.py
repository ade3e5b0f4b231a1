"""Builds onepass._C, the one extension module. No torch is needed to build it, and none is imported.

ninja drives the compilers because setuptools can neither compile one source several times with other
flags nor see that a header changed. The rest of the packaging is in pyproject.toml.

The CUDA kernels are in it where there is nvcc: NVCC, else in CUDA_HOME/bin, on the PATH or in /usr/local/cuda.
    ONEPASS_CUDA=1             stop if they cannot be built; 0: leave them out
    ONEPASS_CUDA_ARCHS="90"    for these architectures only ("80;90")
    ONEPASS_WERROR=1           stop at the first warning
ONEPASS_PAGES is the address of the repository's files, which links of the README in the package's description then have.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

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

CUDA_SOURCES = sorted(Path("csrc/cuda").glob("*.cpp"))
CUDA_KERNELS = sorted(Path("csrc/cuda").glob("*.cu"))
# Machine code for these, and PTX of the last, from which a driver makes code for what comes after. nvcc compiles
# them one after the other unless --threads says otherwise.
CUDA_ARCHS = ("80", "86", "89", "90", "100", "120")
NVCC_FLAGS = "-std=c++20 -O3 -DNDEBUG -fmad=false --expt-relaxed-constexpr --threads=0"
NVCC_FLAGS += " -Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off"

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


class NoCuda(Exception):
    """Why the CUDA kernels cannot be built here."""


def find_nvcc():
    """The path of nvcc."""
    given, home = os.environ.get("NVCC"), os.environ.get("CUDA_HOME")
    places = [given] if given else [*[f"{home}/bin/nvcc"] * bool(home), "nvcc", "/usr/local/cuda/bin/nvcc"]
    for path in filter(None, map(shutil.which, places)):
        return path
    raise NoCuda(f"there is no nvcc: looked for {', '.join(places)}")


def cuda_archs(known):
    """The architectures to compile for, oldest first. `known` are those of the nvcc at hand."""
    asked = re.split("[;, ]+", os.environ.get("ONEPASS_CUDA_ARCHS", "").strip(";, "))
    if asked == [""]:
        missing = [arch for arch in CUDA_ARCHS if arch not in known]
        if missing:
            print(f"onepass is built without code for sm_{', sm_'.join(missing)}, which this nvcc does not know")
        return [arch for arch in CUDA_ARCHS if arch in known]
    for arch in asked:
        if arch not in known:
            raise CompileError(f"ONEPASS_CUDA_ARCHS: {arch!r} is not one that this nvcc knows: {', '.join(known)}")
    return sorted(set(asked), key=int)


def try_nvcc(nvcc, cxx, build):
    """How to call nvcc, and what to link; NoCuda if it cannot compile what we rely on."""
    # -ccbin takes a program alone: without ccache in front of it, and flags after it.
    host = [word for word in shlex.split(cxx) if not word.startswith("-")][-1]
    command = f"{shlex.quote(nvcc)} -ccbin {shlex.quote(host)} {NVCC_FLAGS}"
    probe = build / "probe.cu"
    probe.write_text("#include <cuda_runtime.h>\n")
    tried = [*shlex.split(command), "-v", "-shared", str(probe), "-o", str(build / "probe.so")]
    done = subprocess.run(tried, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        said = "\n".join(line for line in done.stdout.splitlines() if not line.startswith("#$"))
        raise NoCuda(f"`{command}` said: {said}")
    # nvcc names the folders of its headers and libraries itself: each distribution has them elsewhere.
    folders = dict(re.findall(r"^#\$ (INCLUDES|LIBRARIES)= *(.*)$", done.stdout, re.MULTILINE))
    archs = cuda_archs(re.findall(r"\bsm_(\d+)\b", subprocess.check_output([nvcc, "--list-gpu-code"], text=True)))
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    code += [f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]
    return SimpleNamespace(
        archs=",".join(archs),
        command=" ".join([command, *code]),
        flags=" ".join([NVCC_FLAGS, *code]),
        includes=[path.replace("-I", "-isystem", 1) for path in shlex.split(folders["INCLUDES"])],
        # The runtime is linked statically: the module is imported under a CPU-only torch too, and without a driver.
        libraries=f"{folders['LIBRARIES']} -lcudart_static -ldl -lrt -lpthread",
        version="nvcc " + re.search(r"V([\d.]+)", subprocess.check_output([nvcc, "--version"], text=True))[1],
    )


def cuda_toolkit(cxx, build):
    """What try_nvcc says; None where the CUDA kernels are left out."""
    wish = os.environ.get("ONEPASS_CUDA", "")
    if wish not in ("", "0", "1"):
        raise CompileError(f"ONEPASS_CUDA must be 0 or 1, got {wish!r}")
    try:
        if wish == "0":
            raise NoCuda("ONEPASS_CUDA=0")
        return try_nvcc(find_nvcc(), cxx, build)
    except NoCuda as reason:
        if wish == "1":
            raise CompileError(f"ONEPASS_CUDA=1, but {reason}") from None
        print(f"onepass is built without CUDA kernels: {reason}", flush=True)
        return None


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
        cuda = cuda_toolkit(cxx, build)
        version = f'-DONEPASS_VERSION="{self.distribution.get_version()}"'
        build_flags = f"{compiler}: {flags}" + (f"; {cuda.version}: {cuda.flags}" if cuda else "")
        host = [version, f"-DONEPASS_BUILD_FLAGS={json.dumps(build_flags)}", *["-DONEPASS_X86_64=1"] * X86_64]
        if cuda:
            host += ["-DONEPASS_CUDA=1", f'-DONEPASS_CUDA_ARCHS="{cuda.archs}"', *cuda.includes]
        with (build / "build.ninja").open("w") as file:
            n = Writer(file)

            def compiled(source, suffix, own, rule="cxx"):
                target = str(build / source.with_suffix(suffix))
                return n.build(target, rule, str(source), variables={"own": escape(own)})[0]

            n.variable("builddir", build)
            n.variable("cxx", escape(f"{cxx} {flags}"))
            n.variable("common", escape(f"-Wall -Wextra -Wno-psabi{werror} {includes}"))
            command = "$cxx $common $own -MD -MF $out.d -c $in -o $out"
            n.rule("cxx", command, depfile="$out.d", deps="gcc")
            n.variable("libraries", escape(cuda.libraries if cuda else ""))
            n.rule("link", "$cxx -shared $in -o $out $libraries")
            objects = [compiled(s, ".o", shlex.join(host)) for s in SOURCES if s != KERNELS]
            if cuda:
                warnings = " -Xcompiler=-Wall,-Wextra,-Wno-psabi" + " -Werror all-warnings" * bool(werror)
                command = f"{cuda.command}{warnings} -Icsrc"
                n.rule("nvcc", f"{escape(command)} -MD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
                objects += [compiled(s, ".o", shlex.join(host)) for s in CUDA_SOURCES]
                objects += [compiled(s, ".cu.o", "", "nvcc") for s in CUDA_KERNELS]
            # Baseline first: the linker keeps the first of several copies of an inline function,
            # and an AVX-512 copy would then run on machines without it.
            for isa, march in ISAS.items():
                objects += [compiled(KERNELS, f".{isa}.o", f"-DONEPASS_ISA={isa} {march}")]
            n.build(str(build / "_C.so"), "link", objects)


def description():
    """The README, with links that hold outside of the repository: to ONEPASS_PAGES; where it is not known, as text, without figures."""
    pages, text = os.environ.get("ONEPASS_PAGES", "").rstrip("/"), Path("README.md").read_text(encoding="utf-8")
    if not pages:
        text = re.sub(r"<picture>.*?</picture>\n+", "", text, flags=re.DOTALL)
        return re.sub(r"\[([^\]]*)\]\((?![\w+.-]+:|#)[^)]*\)", r"\1", text)
    text = re.sub(r'((?:src|srcset)=")(?!\w+:)([^"]*)', rf"\g<1>{pages}/\g<2>?raw=true", text)
    return re.sub(r"(\]\()(?![\w+.-]+:|#)", rf"\g<1>{pages}/", text)


setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    ext_modules=[Extension("onepass._C", [str(source) for source in SOURCES], language="c++")],
    cmdclass={"build_ext": NinjaBuild},
)
