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

import pickle
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from taskloom._exception_parts import Parts, is_plain
from taskloom._task_error import INPUT_FAILED, LOCAL_IP, TaskReport, class_name
from taskloom._wire.careful import cut, line_of, name_of, weight
from taskloom._wire.error_text import MAX_TEXT_BYTES, describe
from taskloom._wire.unreadable import Misbehaved
from taskloom.exceptions import RayError, RayTaskError, TaskCancelledError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_PAYLOAD_BYTES: Final = 16 * 1024 * 1024
"""What an exception carries besides text: more is left behind, attribute by attribute."""


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
                why = f"(the exception could not be unpickled here: {line_of(error)})"
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


def cancelled_failure(task_id: str) -> Failure:
    """The failure of a task that was cancelled.

    Fast path: a hundred thousand calls are cancelled in half the time, because only the first
    error of a session is pickled; the others have their id put in its place.  Plain twin:
    ``system_failure(TaskCancelledError(task_id))``.
    """
    template = _cancelled.get(len(task_id))
    if template is None:
        sample = "?" * len(task_id)
        blob = system_failure(TaskCancelledError(sample)).blob
        template = _cancelled[len(task_id)] = (sample.encode(), blob)
    sample_id, blob = template
    return Failure(blob.replace(sample_id, task_id.encode()), cancelled=True)


_cancelled: Final[dict[int, tuple[bytes, bytes]]] = {}


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
        error: what user code raised, with its traceback; or a ``Misbehaved`` caused by it.
        function_name: the remote function.
        pid: this process.
        proctitle: how the worker is called in the text; ``taskloom::f()`` when empty.
        dumps, loads: the serializer of user values.
    """
    where = ""
    if type(error) is Misbehaved:
        where, error = error.where, error.__cause__ or error
        if where and type(error) is ModuleNotFoundError:
            where += (
                f": the module {error.name!r} is not on the sys.path that workers took over from "
                "the driver when the session began"
            )
    report = TaskReport(
        function_name=function_name,
        traceback_str="",
        proctitle=proctitle or f"taskloom::{function_name}()",
        pid=pid,
        ip=LOCAL_IP,
        actor_repr=None,
        cause_class=name_of(type(error)),
    )
    try:
        report, blob = _capture(error, report, where, dumps, loads)
    except BaseException as reason:
        # It is stranger than anything that was foreseen; the task has failed all the same.
        text = f"{report.cause_class}: <could not be described: {type(reason).__name__}>"
        report, blob = report._replace(traceback_str=text), None
    return Failure(pickle.dumps((tuple(report), blob)))


def _capture(
    error: BaseException,
    report: TaskReport,
    where: str,
    dumps: Callable[[object], bytes],
    loads: Callable[[bytes], object],
) -> tuple[TaskReport, bytes | None]:
    """The report with the text filled in, and the exception as bytes if it can travel."""
    cause: BaseException | None = error
    if issubclass(type(error), RayTaskError):
        # A get inside the task raised it: the type is kept, the text tells of both tasks.
        inner = cast("RayTaskError", error)
        cause = inner.cause
        report = report._replace(cause_class=inner._taskloom_report.cause_class)
    text = describe(error)
    packed = _Packed(None) if cause is None else _pack(cause, dumps, loads)
    remarks = [where] if where else []
    if packed.left_out:
        remarks.append(f"left behind in the worker: {', '.join(packed.left_out[:20])}")
    if remarks:
        text = "\n".join([cut(text, MAX_TEXT_BYTES - 4096), *(f"({r})" for r in remarks)])
    report = report._replace(traceback_str=cut(text, MAX_TEXT_BYTES), rebuilt=packed.rebuilt)
    return report, packed.blob


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
        return _Packed(None, left_out=[f"the exception itself: {line_of(reason)}"])


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
