"""Packaging: the sdist has all sources and builds without torch, its wheel runs with torch; options of the CUDA build."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest
import setuptools
from setuptools.errors import CompileError

from paths import ROOT

FOLDERS = ["csrc", "python", "triton_kernels"]
FILES = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]

# Takes a step with the package in the folder sys.argv[1], which precedes an editable install on sys.path.
STEP = """
import sys
sys.path.insert(0, sys.argv[1])
import onepass
assert onepass.__file__.startswith(sys.argv[1]), onepass.__file__
import onepass.triton_kernels
assert onepass.backends()["cpu"] is None, onepass.backends()["cpu"]
assert "CUDA" in onepass.backends()["cuda"], onepass.backends()["cuda"]
assert "nvcc" not in onepass.backend.compiled._C.build_flags, onepass.backend.compiled._C.build_flags

import torch
torch.manual_seed(0)
ours = [torch.nn.Parameter(torch.randn(shape)) for shape in [(7, 99), (19,), (3, 4, 3, 3)]]
theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
steppers = [onepass.AdamW(ours, lr=0.1, backend="cpu"), torch.optim.AdamW(theirs, lr=0.1)]
for _ in range(2):
    for p, q in zip(ours, theirs):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    for stepper in steppers:
        stepper.step()
for p, q in zip(ours, theirs):
    torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
"""


# A fake nvcc with two architectures, which answers the queries of setup.py.
NVCC = """#!/bin/sh
case "$*" in
  *--list-gpu-code*) echo sm_80; echo sm_90;;
  *--version*) echo "Cuda compilation tools, release 12.8, V12.8.93";;
  *) echo '#$ INCLUDES="-I/cuda/include"' >&2; echo '#$ LIBRARIES=  "-L/cuda/lib/stubs" "-L/cuda/lib"' >&2;;
esac
"""


def environment(**changes):
    """The environment of this process without variables that control Python or the build of the CUDA kernels."""
    kept = {k: v for k, v in os.environ.items() if not re.match("PYTHON|ONEPASS_CUDA|NVCC", k)}
    return kept | changes


def run(*command, cwd=None):
    """Returns the output of a command. Its builds have no CUDA kernels (see test_machine_code.py), and -O1 saves a third of
    the time."""
    env = environment(ONEPASS_CUDA="0", CXXFLAGS="-O1")
    done = subprocess.run(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def pip(*arguments):
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    """A Python with the build requirements and without torch."""
    folder = tmp_path_factory.mktemp("builder") / "venv"
    venv.create(folder, with_pip=False)
    python = str(folder / "bin" / "python")
    needed = ["setuptools", "wheel", "ninja", "pybind11"]
    pins = str(ROOT / "requirements" / "build.txt")
    pip("--python", python, "install", "-c", pins, *needed)
    return python


@pytest.fixture(scope="module")
def sdist(builder, tmp_path_factory):
    # From a copy, without earlier build products, and to keep the sources clean.
    folder = tmp_path_factory.mktemp("sdist")
    built = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=built)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    run(builder, "-c", "import setuptools.build_meta as b; b.build_sdist('.')", cwd=folder)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(builder, sdist, tmp_path_factory):
    """Built from the sdist, in the environment without torch."""
    folder = tmp_path_factory.mktemp("wheel")
    isolated = ["--no-deps", "--no-build-isolation", "--no-cache-dir"]
    pip("--python", builder, "wheel", *isolated, "-w", str(folder), str(sdist))
    return next(folder.glob("*.whl"))


def test_sdist_has_every_source(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    for folder in FOLDERS:
        files = {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*") if p.is_file()}
        sources = {name for name in files if not re.search(r"__pycache__|egg-info|\.so$", name)}
        assert sources, folder
        assert sources <= held


def test_no_torch_header_is_included():
    include = re.compile(r"""^\s*#\s*include\s*[<"](torch|ATen|c10|caffe2)/""", re.MULTILINE)
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file():
            assert not include.search(path.read_text()), path


def test_wheel_has_the_package_and_no_top_level_triton_kernels(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for name in ("__init__.py", "py.typed", "triton_kernels/__init__.py"):
        assert f"onepass/{name}" in names
    assert sum(name.startswith("onepass/_C.") and name.endswith(".so") for name in names) == 1
    assert not any(name.startswith("triton_kernels") for name in names)


def test_wheel_has_the_description(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        text = archive.read(name).decode()
    assert "Description-Content-Type: text/markdown\n" in text and "\n## Which optimizer\n" in text
    assert "](docs/" not in text


def test_wheel_built_without_torch_steps_under_torch(builder, wheel, tmp_path):
    found = run(builder, "-I", "-c", "import importlib.util as u; print(u.find_spec('torch'))")
    assert found.strip() == "None"
    pip("install", "--no-deps", "--target", str(tmp_path), str(wheel))
    run(sys.executable, "-I", "-c", STEP, str(tmp_path))


@pytest.mark.parametrize("pages", ["", "https://example.org/onepass/blob/v1/"])
def test_links_of_the_description_hold_outside_of_the_repository(pages, setup_py, monkeypatch):
    monkeypatch.setenv("ONEPASS_PAGES", pages)
    text = setup_py["description"]()
    links = re.findall(r"""(?:\]\(|src(?:set)?=")([^)"#]+)""", text)
    assert len(links) > (40 if pages else 1)
    for link in links:
        assert link.startswith("https://"), link
        if pages and link.startswith(pages):
            assert (ROOT / link.removeprefix(pages).removesuffix("?raw=true")).exists(), link
    assert "](#measured)" in text and ("[`AdamP`]" in text) == ("<picture>" in text) == bool(pages)


@pytest.fixture
def setup_py(monkeypatch):
    """The functions of setup.py, without the environment variables that control them."""
    for name in os.environ.keys() - environment().keys():
        monkeypatch.delenv(name)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path("setup.py")


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    """Makes setup.py use an nvcc with the given text."""

    def given(text):
        path = tmp_path / "nvcc"
        path.write_text(text)
        path.chmod(0o755)
        monkeypatch.setenv("NVCC", str(path))

    return given


def test_build_queries_folders_and_architectures_of_nvcc(setup_py, nvcc, tmp_path, capsys):
    nvcc(NVCC)
    cuda = setup_py["cuda_toolkit"]("ccache g++ -m64", tmp_path)
    assert cuda.version == "nvcc 12.8.93"
    assert cuda.includes == ["-isystem/cuda/include"]
    assert cuda.libraries.startswith('"-L/cuda/lib/stubs" "-L/cuda/lib" -lcudart_static')
    assert "-ccbin g++ " in cuda.command
    assert re.findall(r",code=(\w+)", cuda.command) == ["sm_80", "sm_90", "compute_90"]
    assert cuda.archs == "80,90"
    assert "without code for sm_86, sm_89, sm_100, sm_120" in capsys.readouterr().out


@pytest.mark.parametrize("asked", ["90;120", "120,90", " 90, 120 ", "90 120 90"])
def test_architectures_can_be_chosen(asked, setup_py, monkeypatch):
    monkeypatch.setenv("ONEPASS_CUDA_ARCHS", asked)
    assert setup_py["cuda_archs"](["80", "90", "100", "120"]) == ["90", "120"]


@pytest.mark.parametrize("asked", ["sm_90", "90a", "9.0", "42", "80;all"])
def test_unknown_architectures_are_refused(asked, setup_py, nvcc, tmp_path, monkeypatch):
    nvcc(NVCC)
    monkeypatch.setenv("ONEPASS_CUDA_ARCHS", asked)
    with pytest.raises(CompileError, match=f"ONEPASS_CUDA_ARCHS: '{asked.split(';')[-1]}' .* knows: 80, 90"):
        setup_py["cuda_toolkit"]("c++", tmp_path)


@pytest.mark.parametrize(
    ("text", "why"), [(None, "there is no nvcc"), ("#!/bin/sh\necho too old; exit 1\n", "too old")]
)
def test_without_a_usable_nvcc_only_forced_cuda_fails(text, why, setup_py, nvcc, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NVCC", str(tmp_path / "none"))
    if text:
        nvcc(text)
    assert setup_py["cuda_toolkit"]("c++", tmp_path) is None
    assert re.search(f"without CUDA kernels: .*{why}", capsys.readouterr().out)
    monkeypatch.setenv("ONEPASS_CUDA", "1")
    with pytest.raises(CompileError, match=f"ONEPASS_CUDA=1, but .*{why}"):
        setup_py["cuda_toolkit"]("c++", tmp_path)


def test_cuda_build_can_be_disabled(setup_py, nvcc, tmp_path, monkeypatch):
    nvcc(NVCC)
    monkeypatch.setenv("ONEPASS_CUDA", "0")
    assert setup_py["cuda_toolkit"]("c++", tmp_path) is None
    monkeypatch.setenv("ONEPASS_CUDA", "no")
    with pytest.raises(CompileError, match="ONEPASS_CUDA must be 0 or 1, got 'no'"):
        setup_py["cuda_toolkit"]("c++", tmp_path)


def test_build_error_is_one_line(tmp_path):
    folders = ["--build-temp", str(tmp_path), "--build-lib", str(tmp_path)]
    env = environment(ONEPASS_CUDA="1", NVCC="/none/nvcc")
    command = [sys.executable, "setup.py", "build_ext", *folders]
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "error: ONEPASS_CUDA=1, but there is no nvcc: looked for /none/nvcc"
