"""The structure of docs/architecture.md: imports, private names of torch, includes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from paths import ROOT

PACKAGE = ROOT / "python/onepass"
MODULES = {
    ".".join(("onepass", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
CPP = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")]


def imports_of(name: str) -> set[str]:
    """The modules of the package that a module imports at module level."""
    path, found = MODULES[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    inside = {id(n) for function in functions for n in ast.walk(function)}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in inside:
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            module = f"{base}.{node.module}" if node.module else base
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {other for other in found if other in MODULES and other not in (name, "onepass")}  # `from .. import name`


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Some cycle of a graph; empty if there is none."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        found = next((c for other in sorted(graph[node]) if (c := walk(other, [*path, node]))), [])
        done.add(node)
        return found

    return next((c for node in sorted(graph) if (c := walk(node, []))), [])


def test_cycle_detection() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_imports_have_no_cycle() -> None:
    graph = {name: imports_of(name) for name in MODULES}
    assert sum(map(len, graph.values())) > 80
    assert not cycle(graph)


def test_backends_do_not_import_the_optimizer() -> None:
    for name in MODULES:
        if name.startswith("onepass.backend"):
            assert not imports_of(name) & {"onepass.optimizer", "onepass.execution_state", "onepass.checkpoints"}, name


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_private_names_of_torch_are_in_one_file(path: Path) -> None:
    text = path.read_text()
    assert "TYPE_CHECKING" not in text
    private = re.findall(
        r"\btorch(?:\.\w+)*\._(?!_)\w+|from torch[\w.]*\._\w+|(?<!from )(?<!from \.)\._(?:version|base|fsdp_\w+)\b",
        text,
    )
    if path.name == "torch_compat.py":
        assert len(private) >= 5
    else:
        assert not private


def test_no_source_includes_torch() -> None:
    for path in CPP:
        assert not re.search(r'#include\s*[<"](torch|ATen|c10)', path.read_text()), path


def test_rules_are_distinguished_only_in_the_rules_folder() -> None:
    """Code outside of rules/ uses members of a rule instead."""
    for path in CPP:
        if path.parent.name != "rules":
            assert not re.search(r"\bis_sgd\b|\bbool sgd\b|Rule::moments == \d|\[4\]\[3\]", path.read_text()), path
