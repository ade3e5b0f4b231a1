"""The stub of the compiled module, python/onepass/_C.pyi, against the signatures that pybind11 writes into docstrings."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import onepass
from emulated_backend import emulated
from onepass.backend import compiled

STUB = ast.parse((Path(onepass.__file__).parent / "_C.pyi").read_text())

# pybind11's annotations for arguments that it converts.
PLAIN = {
    "typing.SupportsInt | typing.SupportsIndex": "int",
    "typing.SupportsFloat | typing.SupportsIndex": "float",
    "collections.abc.Sequence": "list",
}

Signature = tuple[list[tuple[str, str]], str]  # names and types of the arguments after self, type of the result


def root_of(annotation: ast.expr | None) -> str:
    """`list` for `list[Tensor]`; "object" for all types but some built-in ones."""
    if isinstance(annotation, ast.Subscript):
        annotation = annotation.value
    text = "None" if annotation is None else ast.unparse(annotation)
    return text if text in ("bool", "bytes", "dict", "float", "int", "list", "None", "str") else "object"


def signature_of(function: ast.FunctionDef) -> Signature:
    args = function.args
    assert not (args.vararg or args.kwarg or args.kwonlyargs or args.posonlyargs or args.defaults)
    return [(a.arg, root_of(a.annotation)) for a in args.args if a.arg != "self"], root_of(function.returns)


def stubbed(body: list[ast.stmt]) -> dict[str, Any]:
    """Every name that the stub declares at module level or in a class, with its signature or type."""
    found: dict[str, Any] = {}
    for statement in body:
        if isinstance(statement, ast.FunctionDef):
            signature = signature_of(statement)
            is_property = [ast.unparse(d) for d in statement.decorator_list] == ["property"]
            found[statement.name] = ("property", signature[1]) if is_property else signature
        elif isinstance(statement, ast.AnnAssign):
            found[ast.unparse(statement.target)] = root_of(statement.annotation)
        elif isinstance(statement, ast.ClassDef):
            found[statement.name] = ([ast.unparse(b) for b in statement.bases], stubbed(statement.body))
    return found


def documented(doc: str | None) -> Signature:
    assert doc
    line = doc.strip().splitlines()[0]
    for theirs, plain in PLAIN.items():
        line = line.replace(theirs, plain)
    line = re.sub(r"^\w*\(", "def f(", line)
    (function,) = ast.parse(f"{line}: ...").body
    assert isinstance(function, ast.FunctionDef)
    args, result = signature_of(function)
    return [arg for arg in args if arg[0] != "arg0"], result


def found_in(members: dict[str, Any]) -> dict[str, Any]:
    """The same as `stubbed`, from the objects at run time."""
    found: dict[str, Any] = {}
    for name, member in members.items():
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, type):
            bases = [base.__name__ for base in member.__bases__ if not base.__module__.startswith("pybind11")]
            found[name] = (bases, found_in(vars(member)))
        elif isinstance(member, property):
            found[name] = ("property", documented(member.fget.__doc__)[1])
        elif isinstance(member, str):
            found[name] = "str"
        elif name != "__init__" or "self:" in member.__doc__:  # the class defines __init__
            found[name] = documented(member.__doc__)
    return found


def test_stub() -> None:
    """The CUDA plan, which a build may lack, comes from the emulated backend, which has the same source."""
    there = {"CudaPlan": emulated.CudaPlan, **vars(compiled._C)}
    assert stubbed(STUB.body) == found_in(there)


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("def release_gradients", "def release_the_gradients"),
        ("threads: int, factor: float", "threads: int"),
        ("threads: int, factor: float", "factor: float, threads: int"),
        ("threads: int) -> list[float]", "threads: int) -> float"),
        ("class CpuPlan(Plan)", "class CpuPlan"),
        ("version: str\n", "version: bytes\n"),
    ],
)
def test_a_wrong_stub_is_detected(line: str, other: str) -> None:
    text = ast.unparse(STUB)
    assert line in text
    assert stubbed(ast.parse(text.replace(line, other)).body) != stubbed(STUB.body)
