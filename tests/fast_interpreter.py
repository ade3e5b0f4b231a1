"""Makes Triton's interpreter about half as slow, and changes nothing of what it computes.

At every launch, and at every call of a function from within a kernel, it replaces each builtin of the language by one that
interprets, and puts the old one back after a launch. Here they stay replaced: nothing is compiled in this process. And it
builds a table of dtypes at every look into it.
"""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter


class _Kept:
    """In place of what would put the language back."""

    def restore(self) -> None:
        pass


class _Function:
    """What `_patch_lang` looks at of a function: the modules in its globals."""

    def __init__(self, modules: dict[str, Any]):
        self.__globals__ = modules


def install() -> None:
    """To be called once, before the first launch."""
    interpreter._patch_lang(_Function({"tl": interpreter.tl, "core": interpreter.tl.core}))
    interpreter._patch_lang = lambda fn: _Kept()
    look_up, known = interpreter._get_np_dtype, {}

    def np_dtype(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in known:
            known[name] = look_up(dtype)
        return known[name]

    interpreter._get_np_dtype = np_dtype
