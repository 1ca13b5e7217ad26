"""How event loops of the program are told that something is done: each has a doorbell.

Fast path: a loop that is woken through a descriptor of its own answers 3 us sooner than through
``call_soon_threadsafe`` on uvloop, and 9 us sooner on asyncio's own (22 and 33 us from coroutine to
thread and back, where it was 25 and 42).  Besides what a loop does for a call of its own, who
rings lets the interpreter go while he does.
Plain twin: :class:`_Caller`, also for loops that can watch no descriptor.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Iterable
from contextvars import Context
from typing import Final, Protocol

from taskloom._bell import Bell


class Told(Protocol):
    """Who is told of an object in a loop of the program."""

    stopped: bool

    def callback(self, key: int, /) -> object: ...


Calls = Iterable[tuple[Told, int]]


class Doorbell(Protocol):
    """Of one loop."""

    def ring(self, calls: Calls) -> None:
        """From any thread: have ``callback(key)`` called in the loop, for who has not stopped.

        A loop that is closed is passed over.
        """


class _Caller:
    """Tells a loop as anybody may."""

    def __init__(self, loop: weakref.ref[asyncio.AbstractEventLoop], *, may_change: bool) -> None:
        self._loop = loop
        self.may_change = may_change  # the loop may have a descriptor later

    def ring(self, calls: Calls) -> None:
        loop = self._loop()
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(_call_all, calls)
        except RuntimeError:
            pass  # it is closed: nobody is left to tell


def _call_all(calls: Calls) -> None:
    for told, key in calls:
        if not told.stopped:
            told.callback(key)


class _Ringer:
    """Tells a loop through a descriptor that it watches for as long as it lives."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._bell = Bell()
        self._calls: deque[tuple[Told, int]] = deque()
        self._interrupted: tuple[Told, int] | None = None  # who was first when it last was
        # Without the context of whoever happens to be the first: the loop would keep it.
        Context().run(loop.add_reader, self._bell.fileno(), self._on_ring)

    def ring(self, calls: Calls) -> None:
        self._calls.extend(calls)
        self._bell.ring()

    def _on_ring(self) -> None:
        calls = self._calls
        try:
            self._bell.hush()  # first: what comes from now on rings again
            for _ in range(len(calls)):
                told, key = calls[0]
                if not told.stopped:
                    told.callback(key)
                # Not before: a signal may raise anywhere, and to be told twice is harmless.
                del calls[0]
            self._interrupted = None
        except BaseException:
            # Ctrl-C, in here or in a task that went on: nobody is passed over for it.
            first = calls[0] if calls else None
            if first is not None and first is self._interrupted:
                del calls[0]  # it is what raises, each time
            self._interrupted = first
            if calls:
                self._bell.ring_again()
            raise


# One for each loop, whatever number of sessions it sees.  A doorbell does not know its loop, which
# knows it, so both go together.
_doorbells: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Doorbell]] = (
    weakref.WeakKeyDictionary()
)
# Weak references to the loop that was asked for last, and to its doorbell.
_latest: tuple[object, weakref.ref[Doorbell]] | None = None


def doorbell_of(loop: asyncio.AbstractEventLoop) -> Doorbell:
    """The doorbell of a loop.

    Only in the loop's own thread can it get a descriptor; asked for in another one first, it is
    rung as anybody may.
    """
    global _latest
    latest = _latest
    reference = weakref.ref(loop)  # the same one each time
    if latest is not None and latest[0] is reference and (known := latest[1]()) is not None:
        return known
    bell = _doorbells.get(loop)
    is_here = asyncio._get_running_loop() is loop
    if bell is None or (is_here and isinstance(bell, _Caller) and bell.may_change):
        forget_closed()
        bell = _doorbells[loop] = _made(loop, reference, is_here=is_here)
    if is_here:
        _latest = reference, weakref.ref(bell)
    return bell


def forget_closed() -> None:
    """Let go of the doorbells of loops that are closed, however long somebody keeps those."""
    for loop in list(_doorbells):
        if loop.is_closed():
            _doorbells.pop(loop, None)


def _made(
    loop: asyncio.AbstractEventLoop,
    reference: weakref.ref[asyncio.AbstractEventLoop],
    *,
    is_here: bool,
) -> Doorbell:
    if is_here:
        try:
            return _Ringer(loop)
        except (NotImplementedError, OSError):
            pass  # it cannot watch descriptors, or none is left
    return _Caller(reference, may_change=not is_here)
