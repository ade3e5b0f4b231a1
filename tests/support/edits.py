"""Edits of source texts for the mutation tests: independent of line breaks, and with an error when the code has changed."""

from __future__ import annotations

import re
from collections.abc import Mapping


def pattern_of(code: str) -> re.Pattern[str]:
    """Matches `code` however its lines are broken."""
    return re.compile(r"\s+".join(map(re.escape, code.split())))


def home_of(code: str, texts: Mapping[str, str]) -> str:
    """The name of the only text that contains `code`, once."""
    found = [name for name, text in texts.items() for _ in pattern_of(code).finditer(text)]
    assert len(found) == 1, f"a mutation test has to follow a change: {code!r} is found in {found or 'no file'}"
    return found[0]


def edited(text: str, code: str, new: str) -> str:
    """`text` with `new` in place of its only `code`."""
    home_of(code, {"the source": text})
    return pattern_of(code).sub(lambda _: new, text)
