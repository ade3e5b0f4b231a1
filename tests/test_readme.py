"""What the README shows is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_snippets() -> None:
    assert SNIPPETS


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet(snippet: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(snippet, "README.md", "exec"), {})
    assert "(32, 8)" in capsys.readouterr().out


def test_every_optimizer_is_listed() -> None:
    import onepass

    for name in onepass.__all__:
        if isinstance(getattr(onepass, name), type) and name not in ("LastStep", "Verdict"):
            assert f"| `{name}` |" in README
