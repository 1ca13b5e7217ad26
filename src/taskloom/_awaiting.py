"""``await ref``: what a coroutine yields to its loop until an object is done.

Fast path: a task of asyncio takes anything for a Future that behaves like one.  With one that knows
what it waits for, the task goes on as soon as the loop hears of the object; a Future would
have the loop call once more.  With this, and with doorbells, an ``await`` takes as long as a
``get`` (1.00 of its time, where it was 1.11 in the same minutes).
Plain twin: ``asyncio.Future``, and :mod:`taskloom._waiting` for all other waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any

from taskloom._waiting import asyncio_loop, running_trio, wait_for_some

if TYPE_CHECKING:
    from taskloom.backends.base import Backend
    from taskloom.ref import ObjectRef


class Wait:
    """One wait of one task, as far as a task makes use of a Future.  In its loop's thread.

    Args:
        loop: of the task.
    """

    __slots__ = ("_asyncio_future_blocking", "_context", "_go_on", "_loop", "_message", "_state")

    _WAITING, _DONE, _CANCELLED = range(3)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = True  # by this a task tells it from a bare yield
        self._state = 0
        self._go_on: Callable[[Any], object] | None = None
        self._context: Context | None = None

    def wake(self, _key: int) -> None:
        """The object is done: the task goes on now."""
        if self._state:
            return
        self._state = Wait._DONE
        # Let go of the task: its error may know this, and nobody wants to wait for the collector.
        go_on, self._go_on = self._go_on, None
        if go_on is None:
            return
        if self._context is None:
            go_on(self)
        else:
            self._context.run(go_on, self)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def done(self) -> bool:
        return self._state != Wait._WAITING

    def cancelled(self) -> bool:
        return self._state == Wait._CANCELLED

    def add_done_callback(
        self, go_on: Callable[[Any], object], *, context: Context | None = None
    ) -> None:
        """The task waits now.

        Raises:
            RuntimeError: another one does: it is made for one task.
        """
        if self._go_on is not None:
            raise RuntimeError("an await of a ref takes one callback, that of its task")
        if self._state:
            self._loop.call_soon(go_on, self, context=context)
            return
        self._go_on = go_on
        self._context = context

    def result(self) -> None:
        """Nothing; raises what ends the wait.

        Raises:
            asyncio.CancelledError: the task was cancelled.
        """
        if self._state == Wait._CANCELLED:
            raise asyncio.CancelledError(*self._message)

    def cancel(self, msg: object = None) -> bool:
        """The task is cancelled; False when it goes on anyway."""
        if self._state:
            return False
        self._state = Wait._CANCELLED
        self._message = () if msg is None else (msg,)
        go_on, self._go_on = self._go_on, None
        if go_on is not None:
            self._loop.call_soon(go_on, self, context=self._context)
        return True


def until_done(ref: ObjectRef[Any], home: Backend) -> Generator[Any, None, None]:
    """Return when ``ref`` is done; for ``yield from`` in a task of asyncio (any loop) or trio."""
    trio = running_trio()
    if trio is not None:
        try:
            yield from wait_for_some((ref,), home, 1, None).__await__()
        except trio.Cancelled:
            home.abandon(ref)
            raise
        return
    loop = asyncio_loop()
    wait = Wait(loop)
    stop = home.subscribe((ref,), wait.wake, loop)
    try:
        yield wait
        if not wait._state:
            raise RuntimeError("the coroutine was sent on before the object is done")
    except BaseException as error:
        stop()
        if isinstance(error, asyncio.CancelledError):
            home.abandon(ref)
        raise


class UntilDone:
    """The same for ``await``."""

    __slots__ = ("_home", "_ref")

    def __init__(self, ref: ObjectRef[Any], home: Backend) -> None:
        self._ref = ref
        self._home = home

    def __await__(self) -> Generator[Any, None, None]:
        return until_done(self._ref, self._home)
