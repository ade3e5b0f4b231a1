"""Hooks of mkdocs: the README is the first page, api.md is made of the docstrings, and files of the repository that pages link to are
put into the site.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

from onepass.doctor import OPTIMIZERS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = "source"  # folder of the site for files from outside of docs/
LINK = re.compile(r"""(\]\(|src(?:set)?=")([^)"\s#]+)((?:#[^)\s]*)?[)"])""")  # of Markdown, and of pictures in HTML
NAMES = (*(optimizer.__name__ for optimizer in OPTIMIZERS), "LastStep", "Verdict", "backends")
API = "# Reference\n\n" + "\n".join(f"::: onepass.{name}\n" for name in NAMES)


def relinked(text: str, page: PurePosixPath, place: PurePosixPath) -> str:
    """The text of a page of the repository with links that hold where it is on the site. page, place: from the root of either."""
    up = "../" * (len(place.parents) - 1)

    def link(match: re.Match[str]) -> str:
        if ":" in match[2]:
            return match[0]
        path = (ROOT / page.parent / match[2]).resolve()
        if path.is_dir():
            path = path / "README.md"
        path = path.relative_to(ROOT)
        there = "index.md" if path == Path("README.md") else f"{SOURCES}/{path.as_posix()}"
        if path.is_relative_to("docs"):
            there = path.relative_to("docs").as_posix()
        return f"{match[1]}{up}{there}{match[3]}"

    return LINK.sub(link, text)


def linked_sources() -> list[str]:
    """Files outside of docs/ that pages link to."""
    found = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for match in LINK.finditer(page.read_text(encoding="utf-8")):
            path = (page.parent / match[2]).resolve()
            if ":" not in match[2] and path.is_file() and not path.is_relative_to(ROOT / "docs"):
                found.add(path.relative_to(ROOT).as_posix())
    return sorted(found - {"README.md"})


def on_files(files: Files, config: Any) -> Files:
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    files.append(File.generated(config, "api.md", content=API))
    for path in linked_sources():
        files.append(File.generated(config, f"{SOURCES}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    place = PurePosixPath(page.file.src_uri)
    if place.name == "api.md":
        return markdown
    if place.name == "index.md":
        origin = PurePosixPath("README.md")
    else:
        origin = place.relative_to(SOURCES) if place.is_relative_to(SOURCES) else "docs" / place
    return relinked(markdown, origin, place)
