"""Errors as they travel: caught in a worker, stored as bytes, raised by whoever asks.

A :class:`Failure` is made where the error happened and opened by each ``get`` anew; in between
nobody looks inside.  Its blob has two layers.  The outer one holds nothing but text and numbers
and can always be read; the inner one is the user's exception and may fail to unpickle where its
module is missing, or for reasons of its own.

An exception travels without calling its ``__init__``: class, ``args`` and attributes go, and are
put together again on the other side (``_exception_parts``).  A class that says itself how it
wants to be pickled is asked first.  What cannot travel is left out and named in the text.
At worst there is only text.

What user code raised is hostile until proven otherwise: its ``__str__`` may raise or never
return, its args may hold a gigabyte, its chain of causes may be a ring or ten thousand long.
:func:`capture` never raises and its text is at most ``MAX_TEXT_BYTES``.
"""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from taskloom import exceptions
from taskloom._exception_parts import Parts, is_plain
from taskloom.exceptions import (
    INPUT_FAILED,
    LOCAL_IP,
    RayError,
    RayTaskError,
    TaskCancelledError,
    TaskReport,
    class_name,
)

if TYPE_CHECKING:
    import traceback
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

T = TypeVar("T")

MAX_TEXT_BYTES: Final = 512 * 1024
MAX_PAYLOAD_BYTES: Final = 16 * 1024 * 1024
"""What an exception carries besides text: more is left behind, attribute by attribute."""

_MAX_MESSAGE: Final = 128 * 1024  # characters of one exception's own text
_MAX_CHAIN: Final = 32  # exceptions of a chain or group that the standard library may format
_PATIENCE_S: Final = 0.3  # for one __str__
_ENGINE = os.path.dirname(os.path.abspath(exceptions.__file__)) + os.sep
_NOISE = ("<frozen importlib", "<frozen runpy>")


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """An outcome that is an error.

    Attributes:
        blob: the error, for :meth:`revive`.
        inherited: it came from a dependency.
        cancelled: the task was cancelled.
    """

    blob: bytes = field(repr=False)
    inherited: bool = False
    cancelled: bool = False
    _twin: Failure | None = field(default=None, init=False, repr=False)

    def inherit(self) -> Failure:
        """This failure as the dependents have it: one object for a whole chain."""
        if self.inherited:
            return self
        twin = self._twin
        if twin is None:
            twin = replace(self, inherited=True)
            object.__setattr__(self, "_twin", twin)
        return twin

    def revive(self) -> BaseException:
        """A fresh exception to raise: an instance of the class that was raised, if it can be."""
        report, inner = pickle.loads(self.blob)
        if report is None:
            return self._revive_system_error(inner)
        report = TaskReport(*report)._replace(inherited=self.inherited)
        cause: Any = None
        if inner is not None:
            try:
                cause = pickle.loads(inner)
                if isinstance(cause, Parts):
                    cause = cause.build()
            except KeyboardInterrupt:
                raise  # Ctrl-C, most probably
            except BaseException as error:
                # Nobody else will tell: the class is missing here, or does not like to be made.
                why = f"(the exception could not be unpickled here: {_short(error)})"
                report = report._replace(traceback_str=f"{report.traceback_str}\n{why}")
                cause = None
        return RayTaskError.from_report(report, cause).as_instanceof_cause()

    def _revive_system_error(self, inner: bytes) -> BaseException:
        error: BaseException = pickle.loads(inner)
        if self.inherited:
            error.add_note(f"({INPUT_FAILED.rstrip(':')})")
        return error


def system_failure(error: RayError) -> Failure:
    """The failure of a task whose error is the engine's own; revived as that very class."""
    cancelled = isinstance(error, TaskCancelledError)
    return Failure(pickle.dumps((None, pickle.dumps(error))), cancelled=cancelled)


def capture(
    error: BaseException,
    *,
    function_name: str,
    pid: int,
    proctitle: str = "",
    dumps: Callable[[object], bytes],
    loads: Callable[[bytes], object],
) -> Failure:
    """The failure of a task that raised ``error``; never raises.

    Args:
        error: what user code raised, with its traceback.
        function_name: the remote function.
        pid: this process.
        proctitle: how the worker is called in the text; ``taskloom::f()`` when empty.
        dumps, loads: the serializer of user values.
    """
    cause: BaseException | None = error
    name = _class_name(error)
    if isinstance(error, RayTaskError):
        # A get inside the task raised it: the type is kept, the text tells of both tasks.
        cause, name = error.cause, error._taskloom_report.cause_class
    text = _describe(error)
    packed = _Packed(None)
    if cause is not None:
        packed = _pack(cause, dumps, loads)
    if packed.left_out:
        names = ", ".join(packed.left_out[:20])
        text = _cut(text, MAX_TEXT_BYTES - 4096) + f"\n(left behind in the worker: {names})"
    report = TaskReport(
        function_name=function_name,
        traceback_str=_cut(text, MAX_TEXT_BYTES),
        proctitle=proctitle or f"taskloom::{function_name}()",
        pid=pid,
        ip=LOCAL_IP,
        actor_repr=None,
        cause_class=name,
        rebuilt=packed.rebuilt,
    )
    return Failure(pickle.dumps((tuple(report), packed.blob)))


# -- the exception as bytes -------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Packed:
    """What of an exception can travel."""

    blob: bytes | None
    rebuilt: bool = False
    left_out: list[str] = field(default_factory=list)


def _pack(
    error: BaseException, dumps: Callable[[object], bytes], loads: Callable[[bytes], object]
) -> _Packed:
    try:
        light = weight(_state(error), MAX_PAYLOAD_BYTES) <= MAX_PAYLOAD_BYTES
        if light and _has_own_way(error):
            blob = _round_trip(error, dumps, loads, type(error))
            if blob is not None:
                return _Packed(blob)
        parts = Parts.of(error)
        if light:
            blob = _round_trip(parts, dumps, loads, Parts)
            if blob is not None:
                return _Packed(blob, rebuilt=True)
        return _pack_what_can(parts, dumps, loads)
    except BaseException as reason:
        return _Packed(None, left_out=[f"the exception itself: {_short(reason)}"])


def _state(error: BaseException) -> list[object]:
    return [error.args, getattr(error, "__dict__", None)]


def _has_own_way(error: BaseException) -> bool:
    """True when plain pickle is the better judge of how the exception travels."""
    if is_plain(error):
        return True
    protocol = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
    for base in type(error).__mro__:
        if base.__module__ == "builtins":
            return False
        if any(name in vars(base) for name in protocol):
            return True
    return False


def _round_trip(
    value: object,
    dumps: Callable[[object], bytes],
    loads: Callable[[bytes], object],
    expected: type | None = None,
) -> bytes | None:
    """The pickle of ``value`` if it is not too large and can be read again, else None."""
    try:
        blob = dumps(value)
        if len(blob) > MAX_PAYLOAD_BYTES:
            return None
        back = loads(blob)
        if expected is not None and type(back) is not expected:
            return None
        if isinstance(back, Parts):
            back.build()
        return blob
    except BaseException:
        # SystemExit too: whatever an exception does while it is pickled is no reason to die.
        return None


def _pack_what_can(
    parts: Parts, dumps: Callable[[object], bytes], loads: Callable[[bytes], object]
) -> _Packed:
    """Try each member alone and leave out those that cannot travel."""
    left_out: list[str] = []

    def travels(value: object, name: str) -> bool:
        light = weight(value, MAX_PAYLOAD_BYTES) <= MAX_PAYLOAD_BYTES
        if light and _round_trip(value, dumps, loads) is not None:
            return True
        left_out.append(f"{name} ({'' if light else 'too large: '}{type(value).__name__})")
        return False

    def keep(state: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in state.items() if travels(v, k)}

    kept = parts._replace(
        args=tuple(
            value if travels(value, f"args[{i}]") else f"<{type(value).__name__} left behind>"
            for i, value in enumerate(parts.args)
        ),
        attributes=keep(parts.attributes),
        native=keep(parts.native),
    )
    if kept.members:
        members, lost = [], 0
        for member in kept.members[:1000]:
            packed = _pack_member(member, dumps, loads)
            lost += packed is None
            members.append(packed or Exception("<exception left behind>"))
        lost += len(kept.members) - len(members)
        if lost:
            left_out.append(f"{lost} exceptions of the group")
        kept = kept._replace(members=tuple(members))
    blob = _round_trip(kept, dumps, loads, Parts)
    if blob is None:
        left_out = [f"the exception itself: {class_name(parts.cls)} cannot be pickled"]
    return _Packed(blob, rebuilt=True, left_out=left_out)


def _pack_member(
    member: object, dumps: Callable[[object], bytes], loads: Callable[[bytes], object]
) -> object:
    """A member of a group that travels, or None.  Groups inside travel as a whole or not."""
    if _round_trip(member, dumps, loads) is not None:
        return member
    if isinstance(member, Parts) and not member.members:
        packed = _pack_what_can(member, dumps, loads)
        return pickle.loads(packed.blob) if packed.blob is not None else None
    return None


def weight(value: object, limit: int) -> int:
    """About how many bytes ``value`` has; stops counting once past ``limit``.

    Looks into builtin containers only and calls no code of the user's.
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


_CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset})


# -- the exception as text --------------------------------------------------------------------


def _describe(error: BaseException) -> str:
    """The traceback of ``error`` and all that led to it, without the engine's own frames."""
    try:
        if _is_tame(error):
            return _cut(_format_tame(error), MAX_TEXT_BYTES)
    except BaseException:
        pass  # not so tame: the careful way is next
    try:
        return _cut("".join(_format_carefully(error)), MAX_TEXT_BYTES)
    except BaseException as reason:
        return f"{_class_name(error)}: <could not be described: {type(reason).__name__}>"


def _is_tame(error: BaseException) -> bool:
    """True when the standard library can format it: all is finite, small and well-behaved."""
    stack: list[BaseException | None] = [error]
    seen: set[int] = set()
    while stack:
        item = stack.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        if len(seen) > _MAX_CHAIN:
            return False
        if _text(item)[1]:
            return False
        stack.append(item.__cause__)
        stack.append(item.__context__)
        if isinstance(item, BaseExceptionGroup):
            stack.extend(item.exceptions[: _MAX_CHAIN + 1])
    return True


def _format_tame(error: BaseException) -> str:
    # Loaded by the first error: it brings linecache and tokenize along.
    import traceback  # noqa: PLC0415

    formatted = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    formatted.__notes__ = None  # they travel with the exception
    queue: list[traceback.TracebackException | None] = [formatted]
    while queue:
        item = queue.pop()
        if item is not None:
            item.stack[:] = _of_the_user(item.stack)
            queue += [item.__cause__, item.__context__, *(item.exceptions or ())]
    return "".join(formatted.format())


def _of_the_user(
    frames: Iterable[traceback.FrameSummary],
) -> list[traceback.FrameSummary]:
    return [
        frame
        for frame in frames
        if not frame.filename.startswith(_ENGINE) and not frame.filename.startswith(_NOISE)
    ]


def _format_carefully(error: BaseException) -> Iterator[str]:
    """A plain traceback of a hostile exception: bounded in chain, group, frames and text."""
    chain: list[tuple[BaseException, str]] = [(error, "")]
    seen = {id(error)}
    while len(chain) < 100_000:
        last = chain[-1][0]
        if last.__cause__ is not None:
            before: BaseException | None = last.__cause__
            how = "The above exception was the direct cause of the following exception:"
        else:
            before = None if last.__suppress_context__ else last.__context__
            how = "During handling of the above exception, another exception occurred:"
        if before is None or id(before) in seen:
            break
        seen.add(id(before))
        chain.append((before, how))
    if len(chain) > 10:
        n = len(chain) - 10
        chain[5:-5] = [(exceptions.RayError(f"<{n} more exceptions of the chain left out>"), "")]
    for item, how in reversed(chain):
        yield from _format_one(item)
        if how:
            yield f"\n{how}\n\n"


def _format_one(error: BaseException, depth: int = 0) -> Iterator[str]:
    import traceback  # noqa: PLC0415  # as above

    margin = "    " * depth
    frames = _of_the_user(traceback.extract_tb(error.__traceback__, limit=-200))
    if frames:
        yield f"{margin}Traceback (most recent call last):\n"
        for line in traceback.format_list(frames):
            yield margin + line
    text, _ = _text(error)
    name = _class_name(error).removeprefix("__main__.")
    yield f"{margin}{name}{': ' if text else ''}{text}\n"
    if isinstance(error, BaseExceptionGroup) and depth < 4:
        for member in error.exceptions[:15]:
            yield from _format_one(member, depth + 1)
        if len(error.exceptions) > 15:
            yield f"{margin}    <{len(error.exceptions) - 15} more exceptions left out>\n"


_HARMLESS: Final = frozenset({str, int, float, bool, type(None), bytes})


def _text(error: BaseException) -> tuple[str, bool]:
    """``str(error)``, bounded in time and size; and whether that was any trouble."""
    args = error.args
    if isinstance(error, BaseExceptionGroup):
        args = (error.message,)  # the members are none of its text
    if weight(args, _MAX_MESSAGE) > _MAX_MESSAGE:
        return _short_args(args), True
    try:
        if is_plain(error) and _HARMLESS.issuperset(map(type, error.args)):
            text = str(error)
        else:
            text = _within(_PATIENCE_S, lambda: str(error))
    except BaseException as reason:
        return f"<exception str() failed: {type(reason).__name__}>", True
    if len(text) > _MAX_MESSAGE:
        return f"{text[:_MAX_MESSAGE]}... <{len(text)} characters>", True
    return text, False


def _short_args(args: tuple[object, ...]) -> str:
    shown = []
    for arg in args[:10]:
        if isinstance(arg, (str, bytes)):
            shown.append(f"{arg[:1000]!r}{'...' if len(arg) > 1000 else ''}")
        else:
            shown.append(f"<{type(arg).__name__}>")
    if len(args) > 10:
        shown.append(f"... {len(args)} in all")
    return ", ".join(shown)


class _TookTooLong(BaseException):
    """Raised inside a ``__str__`` that does not come to an end."""


def _within(seconds: float, function: Callable[[], T]) -> T:
    """``function()``, interrupted when it runs Python code for longer than ``seconds``.

    Works in any thread and needs neither signals nor another thread.  Where a debugger or a
    coverage tool traces the thread already, the call is made without a limit.
    """
    if sys.gettrace() is not None:
        return function()
    deadline = monotonic() + seconds

    def check(frame: FrameType, event: str, arg: object) -> Any:
        if monotonic() > deadline:
            raise _TookTooLong
        return check

    sys.settrace(check)
    try:
        return function()
    finally:
        sys.settrace(None)


def _class_name(error: BaseException) -> str:
    try:
        return class_name(type(error))
    except BaseException:
        return "<unknown class>"  # a metaclass that hides even the name


def _short(error: BaseException) -> str:
    """One line about an error met on the way."""
    text = _text(error)[0]
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _cut(text: str, limit: int) -> str:
    """``text`` with its middle left out where its UTF-8 is longer than ``limit``."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > limit:
        note = f"\n... <{len(data) - limit} bytes left out> ...\n".encode()
        tail = limit // 4
        data = data[: limit - tail - len(note)] + note + data[-tail:]
    return data.decode("utf-8", "ignore")
