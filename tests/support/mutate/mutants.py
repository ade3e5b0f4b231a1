"""All mutants of a source file, made by tools: cosmic-ray for the package's Python, universalmutator for C++, CUDA
and Triton kernels (whose arithmetic cosmic-ray mutates too, but not their constants and statements)."""

from __future__ import annotations

import ast
import contextlib
import io
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

FOLDERS = {"python/onepass": (".py",), "csrc": (".h", ".cpp", ".cu", ".cuh"), "triton_kernels": (".py",)}
# A file of constants, and the C table of DLPack, which the standard defines.
LEFT_OUT = ("python/onepass/_version.py", "csrc/dlpack.h")


@dataclass(frozen=True)
class Mutant:
    """In a file, `old` (whole lines, from line `line` on, counted from 1) becomes `new`."""

    file: str
    line: int
    old: str
    new: str

    def applied(self, text: str) -> str:
        lines = text.splitlines(keepends=True)
        span = len(self.old.splitlines())
        assert "".join(lines[self.line - 1 : self.line - 1 + span]) == self.old
        return "".join([*lines[: self.line - 1], self.new, *lines[self.line - 1 + span :]])

    def key(self) -> tuple[str, str, str]:
        """The identity of the mutant in equivalent_mutants.toml, without the line number, which changes."""
        return self.file, self.old.strip(), self.new.strip()

    def diff(self) -> str:
        rows = [f"{sign}{row}" for sign, text in (("-", self.old), ("+", self.new)) for row in text.splitlines()]
        return "\n".join([f"{self.file}:{self.line}", *rows])


# The first line, and a function that makes the mutant: cosmic-ray takes a while for each.
Candidate = tuple[int, Callable[[], Mutant]]


def files(root: Path) -> list[Path]:
    found = [p for folder, ends in FOLDERS.items() for p in sorted((root / folder).rglob("*")) if p.suffix in ends]
    return [p for p in found if not p.is_symlink() and p.relative_to(root).as_posix() not in LEFT_OUT]


def between(file: str, old: str, new: str) -> Mutant:
    """The mutant that makes one text of another: whole lines, without those that both begin or end with."""
    a, b = old.splitlines(keepends=True), new.splitlines(keepends=True)
    first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    last = 0
    while last < min(len(a), len(b)) - first and a[-1 - last] == b[-1 - last]:
        last += 1
    if first == len(a) - last:  # lines are added only: the line before goes with them, so that `old` is never empty
        first = max(first - 1, 0)
    return Mutant(file, first + 1, "".join(a[first : len(a) - last]), "".join(b[first : len(b) - last]))


def meaning(source: str) -> str | None:
    """The syntax tree without annotations (which are not evaluated) and docstrings; None for invalid Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.dump(tree)


def by_cosmic_ray(file: str, source: str) -> Iterator[Candidate]:
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast(source)))
    for operator in [kind() for kind in map(get_operator, operator_names()) if not kind.arguments()]:
        places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, (line, _) in enumerate(places):

            def make(operator: Any = operator, occurrence: int = occurrence) -> Mutant:
                return between(file, source, mutate_code(source, operator, occurrence) or source)

            yield line, make


def by_universalmutator(file: str, source: str) -> Iterator[Candidate]:
    from universalmutator.mutator import mutants_regexp

    lines = source.splitlines(keepends=True)
    language = ["python.rules"] if file.endswith(".py") else ["c_like.rules", "cpp.rules"]
    with contextlib.redirect_stdout(io.StringIO()):
        made = mutants_regexp(lines, ["universal.rules", *language], ignorePatterns=[])
    for line, new, *_ in made:
        yield line, partial(Mutant, file, line, lines[line - 1], new)


def of_file(path: Path, root: Path) -> Iterator[Candidate]:
    file = path.relative_to(root).as_posix()
    tool = by_cosmic_ray if file.startswith("python/") else by_universalmutator
    return tool(file, path.read_text())


def changes_code(mutant: Mutant, source: str) -> bool:
    """False if only a comment, a docstring or an annotation differs, or it is invalid Python."""
    if not mutant.file.endswith(".py"):
        return bool(_code(mutant.old)) and _code(mutant.old) != _code(mutant.new)
    return mutant.old != mutant.new and meaning(mutant.applied(source)) not in (meaning(source), None)


def _code(lines: str) -> str:
    return "".join("".join(row.split("//")[0].split()) for row in lines.splitlines())


def in_random_order(root: Path, seed: int) -> Iterator[Mutant]:
    """One mutant of every line that has any, in random order: a prefix is a sample, spread over lines, not over rules, some of
    which make twenty mutants of a line."""
    of_line = defaultdict(list)
    for path in files(root):
        for line, make in of_file(path, root):
            of_line[path, line].append(make)
    chance = random.Random(seed)
    for path, line in chance.sample(sorted(of_line), len(of_line)):
        makes = of_line[path, line]
        tried = (make() for make in chance.sample(makes, len(makes)))
        mutant = next((m for m in tried if changes_code(m, path.read_text())), None)
        if mutant:
            yield mutant
