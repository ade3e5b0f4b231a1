"""docs/architecture.md and docs/glossary.md name files and functions that exist."""

from __future__ import annotations

import re

import pytest

from paths import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text()
ALL = [
    p.relative_to(ROOT).as_posix()
    for d in ("python", "csrc", "triton_kernels", "docs", "tests")
    for p in (ROOT / d).rglob("*")
]
SOURCES = [p for d in ("python/onepass", "csrc", "triton_kernels") for p in (ROOT / d).rglob("*") if p.is_file()]
TEXT = "\n".join(p.read_text() for p in SOURCES if p.suffix in (".py", ".h", ".cpp", ".cuh", ".cu"))
QUOTED = re.findall(r"`([^`\n]+)`", PAGE)
FILES = sorted({word for word in QUOTED if re.fullmatch(r"[\w./]+\.(py|h|cuh|cpp|cu|md)|[\w./]+/", word)})
NAMES = sorted(
    {word for word in QUOTED if word not in FILES and re.fullmatch(r"[A-Za-z_]\w*((\.|::)[A-Za-z_]\w*)*", word)}
)


def defines(name: str) -> bool:
    """Whether the sources define the last part of a name and contain the others."""
    *owners, last = re.split(r"\.|::", name)
    defined = re.search(rf"\b(def|class|struct|enum class|void|bool|auto|Hyper|Scalars|Verdict)\s+{last}\b", TEXT)
    return bool(defined or re.search(rf"\b{last}\b\s*[(=:]", TEXT)) and all(
        re.search(rf"\b{o}\b", TEXT) for o in owners
    )


def test_enough_names_are_checked() -> None:
    assert len(FILES) > 40 and len(NAMES) > 40


@pytest.mark.parametrize("file", FILES)
def test_files(file: str) -> None:
    assert (ROOT / file).is_dir() or any(f"/{path}".endswith(f"/{file.rstrip('/')}") for path in ALL), file


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    assert defines(name), name


def test_links() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
