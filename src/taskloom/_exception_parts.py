"""Exceptions taken apart and put together without calling their ``__init__``.

A user's exception class may want any arguments, so the only safe way to make another instance is
``__new__`` of the first base written in C, and the attributes set one by one.  A class that knows
how to pickle itself says ``travels_whole = True``.
"""

from __future__ import annotations

import types
from typing import Any, NamedTuple, cast

_NATIVE_ATTRIBUTES = (types.MemberDescriptorType, types.GetSetDescriptorType)


def bare(cls: type[BaseException], new_args: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    """An instance of ``cls`` with ``args`` on which no ``__init__`` was called.

    Raises:
        TypeError: no ``__new__`` written in C can make one.
    """
    reason: Exception | None = None
    for base in cls.__mro__:
        new = vars(base).get("__new__")
        if isinstance(new, types.BuiltinFunctionType):
            try:
                error = new(cls, *new_args)
            except TypeError as refused:
                # "KeyError.__new__(X) is not safe, use OSError.__new__()": X has both as bases.
                reason = refused
                continue
            BaseException.args.__set__(error, args)  # type: ignore[attr-defined]
            return error
    raise TypeError(f"cannot make an instance of {cls.__qualname__} without calling it") from reason


def native_state(error: BaseException) -> dict[str, Any]:
    """Attributes kept outside of ``__dict__``: ``OSError.errno``, ``__slots__`` and so on."""
    state: dict[str, Any] = {}
    for base in type(error).__mro__:
        # AttributeError.obj stays behind as in CPython's own pickles: it may be anything.
        if base in (AttributeError, BaseException, BaseExceptionGroup):
            continue
        for name, attribute in vars(base).items():
            if name in state or name.startswith("__"):
                continue
            if isinstance(attribute, _NATIVE_ATTRIBUTES):
                try:
                    state[name] = attribute.__get__(error, type(error))
                except AttributeError:
                    continue  # never set
    return state


def set_state(error: BaseException, native: dict[str, Any], attributes: dict[str, Any]) -> None:
    """Set attributes past any ``__setattr__`` of the class."""
    for name, value in native.items():
        for base in type(error).__mro__:
            attribute = vars(base).get(name)
            if isinstance(attribute, _NATIVE_ATTRIBUTES):
                try:
                    attribute.__set__(error, value)
                except (AttributeError, TypeError):
                    pass  # computed from what is set elsewhere
                break
    error.__dict__.update(attributes)


def is_plain(error: BaseException) -> bool:
    """True for an instance of one of Python's own classes, other than groups."""
    return type(error).__module__ == "builtins" and not isinstance(error, BaseExceptionGroup)


class Parts(NamedTuple):
    """An exception taken apart, to be put together again without calling its ``__init__``."""

    cls: type[BaseException]
    args: tuple[Any, ...]
    attributes: dict[str, Any]
    native: dict[str, Any]
    members: tuple[Any, ...] = ()  # of a group: exceptions, or Parts of them

    @classmethod
    def of(cls, error: BaseException) -> Parts:
        args = error.args
        members: tuple[Any, ...] = ()
        if isinstance(error, BaseExceptionGroup):
            args = (error.message,)
            members = tuple(map(_part, error.exceptions))
        return cls(type(error), args, dict(error.__dict__), native_state(error), members)

    def build(self) -> BaseException:
        """The exception again."""
        args: tuple[Any, ...] = self.args
        new_args: tuple[Any, ...] = ()
        if self.members:
            members = [m.build() if isinstance(m, Parts) else m for m in self.members]
            args = new_args = (*args, members)
        error = cast("BaseException", bare(self.cls, new_args, args))
        set_state(error, self.native, self.attributes)
        return error


def _part(error: BaseException) -> BaseException | Parts:
    whole = is_plain(error) or getattr(type(error), "travels_whole", False)
    return error if whole else Parts.of(error)
