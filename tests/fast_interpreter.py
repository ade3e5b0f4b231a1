"""Makes Triton's interpreter about a third as slow, and changes nothing of what it computes.

At every launch, and at every call of a function from within a kernel, it replaces each builtin of the language by one that
interprets, and puts the old one back after a launch. Here they stay replaced: nothing is compiled in this process. And it
spends most of its time on types: it makes the type of a block anew, checks and name included, for every result. Here each
is made once, so that operands of one type are seen to be so at a glance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triton.language import core
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
    _patch_the_language_once()
    _look_dtypes_up_once()
    _make_each_block_type_once()
    _make_each_shape_once()
    _broadcast_only_what_differs()


def _patch_the_language_once() -> None:
    def patch_attr(obj: Any, name: str, member: Callable[..., Any], *_: Any) -> None:
        function, semantic = getattr(member, "__wrapped__", member), interpreter.interpreter_semantic

        def interpreted(*arguments: Any, **named: Any) -> Any:
            named["_semantic"] = semantic
            return function(*arguments, **named)

        setattr(obj, name, interpreted)

    interpreter._patch_attr = patch_attr
    interpreter._patch_lang(_Function({"tl": interpreter.tl, "core": core}))
    interpreter._patch_lang = lambda fn: _Kept()


def _look_dtypes_up_once() -> None:
    look_up, known = interpreter._get_np_dtype, {}

    def np_dtype(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in known:
            known[name] = look_up(dtype)
        return known[name]

    interpreter._get_np_dtype = np_dtype


def _make_each_block_type_once() -> None:
    make, known = core.block_type.__init__, {}

    def new(cls: type, element_ty: Any, shape: Any) -> Any:
        key = element_ty.name, getattr(element_ty, "address_space", 0), tuple(map(int, shape))
        if key not in known:
            known[key] = object.__new__(cls)
        return known[key]

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        if "name" not in self.__dict__:
            make(self, element_ty, shape)

    core.block_type.__new__, core.block_type.__init__ = new, init

    equal = core.dtype.__eq__
    core.dtype.__eq__ = lambda self, other: self is other or equal(self, other)


def _make_each_shape_once() -> None:
    """The shape and number of elements of a tensor, which are objects of the language, one pair for each block type."""
    make, known = core.tensor.__init__, {}

    def init(self: Any, handle: Any, type: Any) -> None:
        key = id(type) if type.is_block() else None
        if key not in known:
            make(self, handle, type)
            known[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known[key]

    core.tensor.__init__ = init


def _broadcast_only_what_differs() -> None:
    semantic = type(interpreter.interpreter_semantic)
    broadcast = semantic.broadcast_impl_value

    def broadcast_impl_value(self: Any, lhs: Any, rhs: Any) -> Any:
        return (lhs, rhs) if lhs.type is rhs.type else broadcast(self, lhs, rhs)

    semantic.broadcast_impl_value = broadcast_impl_value
