"""Looking at what strangers made, without coming to harm: bounded in time and in size.

A ``__str__`` or ``__repr__`` of the user's may raise anything, never come to an end, give a
hundred megabytes or something that only pretends to be a str.  The functions here never raise
and give plain, short ``str`` objects.
"""

from __future__ import annotations

import sys
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any, Final, TypeGuard, TypeVar

from taskloom._exception_parts import is_plain
from taskloom._task_error import class_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

T = TypeVar("T")

MAX_MESSAGE: Final = 128 * 1024  # characters of one exception's own text
_PATIENCE_S: Final = 0.3  # for one __str__ or __repr__
_HARMLESS: Final = frozenset({str, int, float, bool, type(None), bytes})
_CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset})


def weight(value: object, limit: int) -> int:
    """About how many bytes ``value`` has; stops counting once past ``limit``.

    Looks into builtin containers only and calls no code of the user's but ``__sizeof__``.
    """
    total = 0
    stack: list[object] = [value]
    seen: set[int] = set()
    while stack and total <= limit:
        item = stack.pop()
        kind = type(item)
        if kind in _CONTAINERS:
            if id(item) in seen:
                continue
            seen.add(id(item))
            total += 32 * len(item)  # type: ignore[arg-type]
            if total <= limit:
                if kind is dict:
                    stack.extend(item.keys())  # type: ignore[attr-defined]
                    stack.extend(item.values())  # type: ignore[attr-defined]
                else:
                    stack.extend(item)  # type: ignore[arg-type]
        elif kind is memoryview:
            total += item.nbytes  # type: ignore[attr-defined]
        else:
            try:
                total += sys.getsizeof(item, 64)
            except BaseException:
                total += 64  # a __sizeof__ of the user's that raises
    return total


def is_group(error: BaseException) -> TypeGuard[BaseExceptionGroup[BaseException]]:
    """True for an exception group, whatever its class says of itself."""
    return issubclass(type(error), BaseExceptionGroup)


def args_of(error: BaseException) -> tuple[Any, ...]:
    """The ``args`` that every exception has, past what a class may have put in front of them."""
    args: tuple[Any, ...] = BaseException.args.__get__(error)  # type: ignore[attr-defined]
    return args


def text_of(error: BaseException) -> tuple[str, bool]:
    """``str(error)``, bounded in time and size; and whether that was any trouble."""
    args: tuple[Any, ...] = ()
    try:
        args = args_of(error)
        if is_group(error):
            args = args[:1]  # the members are none of its text
        if weight(args, MAX_MESSAGE) > MAX_MESSAGE:
            return _short_args(args), True
        if is_plain(error) and _HARMLESS.issuperset(map(type, args)):
            text = str(error)
        else:
            text = _exact(within(_PATIENCE_S, lambda: str(error)))
    except BaseException as reason:
        failed = f"<exception str() failed: {type(reason).__name__}>"
        return f"{failed} {_short_args(args)}".rstrip(), True
    if len(text) > MAX_MESSAGE:
        return f"{text[:MAX_MESSAGE]}... <{len(text)} characters>", True
    return text, False


def line_of(error: BaseException) -> str:
    """One short line about an error: its class and the beginning of its text."""
    text = text_of(error)[0]
    text = text if len(text) <= 300 else f"{text[:300]}..."
    name = name_of(type(error)).rpartition(".")[2]
    return f"{name}: {text}" if text else name


def repr_of(value: object, limit: int = 100) -> str:
    """``repr(value)``, cut to ``limit`` characters."""
    try:
        text = _exact(within(_PATIENCE_S, lambda: repr(value)))
    except BaseException:
        text = object.__repr__(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def name_of(cls: type) -> str:
    """``module.Class``, whatever its metaclass does."""
    try:
        return class_name(cls)
    except BaseException:
        return "<unknown class>"  # one that hides even the name


def cut(text: str, limit: int) -> str:
    """``text`` with its middle left out where its UTF-8 is longer than ``limit``."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > limit:
        note = f"\n... <{len(data) - limit} bytes left out> ...\n".encode()
        tail = limit // 4
        data = data[: limit - tail - len(note)] + note + data[-tail:]
    return data.decode("utf-8", "ignore")


def _exact(text: str) -> str:
    """The characters of ``text`` alone: a subclass may do anything when it is used."""
    return text if type(text) is str else str.__str__(text)


def _short_args(args: tuple[object, ...]) -> str:
    shown = []
    for arg in args[:10]:
        if type(arg) is str or type(arg) is bytes:
            shown.append(f"{arg[:1000]!r}{'...' if len(arg) > 1000 else ''}")
        else:
            shown.append(f"<{name_of(type(arg))}>")
    if len(args) > 10:
        shown.append(f"... {len(args)} in all")
    return ", ".join(shown)


class Patience:
    """A limit for work that must come to an end.

    It counts what this thread has worked, because on a busy machine little work takes long; and
    ten times as much of real time, for what sleeps.

    Args:
        seconds: of work.
    """

    __slots__ = ("_real_s", "_work_s")

    def __init__(self, seconds: float) -> None:
        self._work_s = thread_time() + seconds
        self._real_s = monotonic() + 10 * seconds

    def is_over(self) -> bool:
        return thread_time() > self._work_s or monotonic() > self._real_s


class _TookTooLong(BaseException):
    """Raised inside a ``__str__`` that does not come to an end."""


def within(seconds: float, function: Callable[[], T]) -> T:
    """``function()``, interrupted when it runs Python code for longer than ``seconds``.

    Works in any thread and needs neither signals nor another thread.  Where a debugger or a
    coverage tool traces the thread already, the call is made without a limit.
    """
    if sys.gettrace() is not None:
        return function()
    patience = Patience(seconds)

    def check(frame: FrameType, event: str, arg: object) -> Any:
        if patience.is_over():
            raise _TookTooLong
        return check

    sys.settrace(check)
    try:
        return function()
    finally:
        sys.settrace(None)
