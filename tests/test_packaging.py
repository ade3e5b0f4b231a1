"""What is shipped: the sdist holds all sources, builds without torch, and its wheel runs under torch."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ["csrc", "python", "triton_kernels"]
FILES = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]

# Takes a step with the package in the folder sys.argv[1]. The folder goes in front of everything, so
# that an editable install of the same package in this interpreter does not win.
STEP = """
import sys
sys.path.insert(0, sys.argv[1])
import onepass
assert onepass.__file__.startswith(sys.argv[1]), onepass.__file__
import onepass.triton_kernels
assert onepass.backends()["cpu"] is None, onepass.backends()["cpu"]

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


def run(*command, cwd=None):
    """What a command prints, run without the PYTHON* settings of this interpreter."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def pip(*arguments):
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    """A Python that has what the build needs, and no torch."""
    folder = tmp_path_factory.mktemp("builder") / "venv"
    venv.create(folder, with_pip=False)
    python = str(folder / "bin" / "python")
    needed = ["setuptools", "wheel", "ninja", "pybind11"]
    pins = str(ROOT / "requirements-dev.txt")
    pip("--python", python, "install", "-c", pins, *needed)
    return python


@pytest.fixture(scope="module")
def sdist(builder, tmp_path_factory):
    # From a copy, so that nothing built before can slip in, and nothing is left in the sources.
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


def test_sdist_holds_every_source(sdist):
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


def test_wheel_holds_the_package_and_no_top_level_triton_kernels(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for name in ("__init__.py", "py.typed", "triton_kernels/__init__.py"):
        assert f"onepass/{name}" in names
    assert sum(name.startswith("onepass/_C.") and name.endswith(".so") for name in names) == 1
    assert not any(name.startswith("triton_kernels") for name in names)


def test_wheel_built_without_torch_steps_under_torch(builder, wheel, tmp_path):
    found = run(builder, "-I", "-c", "import importlib.util as u; print(u.find_spec('torch'))")
    assert found.strip() == "None"
    pip("install", "--no-deps", "--target", str(tmp_path), str(wheel))
    run(sys.executable, "-I", "-c", STEP, str(tmp_path))
