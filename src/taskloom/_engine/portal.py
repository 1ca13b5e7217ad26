"""The door between callers and the engine: one thread, one loop, one inbox.

Callers on any thread and any loop put (method, argument) pairs into one deque; what comes by the
thousand stands there without a method.  The first one after a drain rings the loop through a
descriptor, the rest need not.  Nothing else is shared,
and no lock is taken: ``ObjectRef.__del__`` may post from inside a garbage collection.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from taskloom._bell import descriptors

MAX_DRAIN: Final = 2000
"""Items taken from the inbox in one turn of the loop, so that workers are heard in between."""

MAX_IDLE_BACKLOG: Final = 64
"""Items that nobody waits for may stand in the inbox of an engine at rest: no more than these."""

MANY_WAIT: Final = 200
"""So many items make it worth to let the engine's thread run."""
_NAP_S: Final = 0.000_01
"""As short as can be: long enough for a thread that waits for the interpreter to get it."""

LOOP_DESCRIPTORS: Final = 7
"""A loop takes so many, the first one in a process (counted)."""

_RING: Final = (1).to_bytes(8, "little")


class Portal:
    """The inbox of an engine's loop.

    Args:
        after_drain: called after each batch of items, in the loop's thread.
    """

    def __init__(self, after_drain: Callable[[], None]) -> None:
        self._inbox: deque[Any] = deque()  # pairs, and what is none: see :meth:`post_bare`
        self.count: Callable[[], int] = self._inbox.__len__  # how much stands in the inbox
        self._after_drain = after_drain
        self._loop: asyncio.AbstractEventLoop | None = None
        self.before_drain: Callable[[], None] = lambda: None
        self.take_bare: Callable[[list[Any]], None] = lambda _: None  # see :meth:`post_bare`
        self._rung = False
        self.closed: str | None = None  # why nothing can be posted any more
        self.thread_id = 0  # the loop's thread
        self._finished = False  # its engine has ended
        self._read_fd = self._write_fd = -1  # none, should there be none left
        self._read_fd, self._write_fd = descriptors()

    def post(self, method: Callable[[Any], None], argument: Any) -> None:
        """Have ``method(argument)`` called in the loop's thread, in the order of the posts.

        Raises:
            RuntimeError: the session is closed.
        """
        self.post_bare((method, argument))

    def post_bare(self, item: Any) -> None:
        """The same for a call of a program, which is no pair: see ``Engine.take_bare``.

        That gets all those at once that stand together.
        """
        if self.closed is not None:
            raise RuntimeError(self.closed)
        self._inbox.append(item)
        if not self._rung:
            self._rung = True
            os.write(self._write_fd, _RING)
        if self._finished:  # the engine has ended since the first line: nobody else will look
            self._serve_inbox()

    def post_if_open(self, method: Callable[[Any], None], argument: Any) -> None:
        """The same, and nothing at all when the session is closed."""
        if self.closed is None:
            self.post(method, argument)

    def post_along(self, item: Any) -> None:
        """As :meth:`post_bare` for what nobody waits for: it goes along with the next that rings.

        Fast path: a ref that is dropped does not wake an engine at rest.  With this and with
        ``Sleepers`` a blocking call is one drain of the inbox, and was 1.7 to 1.9, measured.
        Plain twin: :meth:`post_if_open`.
        """
        if self.closed is None:
            inbox = self._inbox
            inbox.append(item)
            if len(inbox) > MAX_IDLE_BACKLOG and not self._rung:
                self.ring()
            if self._finished:
                self._serve_inbox()

    def enter(self, method: Callable[[Any], None], argument: Any) -> None:
        """The same, but :meth:`ring` follows.

        Raises:
            RuntimeError: the session is closed.
        """
        if self.closed is not None:
            raise RuntimeError(self.closed)
        self._inbox.append((method, argument))

    @property
    def is_rung(self) -> bool:
        """True while something is on its way that was posted before."""
        return self._rung

    def ring(self) -> None:
        """Have the engine look into its inbox."""
        if not self._rung:
            self._rung = True
            os.write(self._write_fd, _RING)
        if self._finished:
            self._serve_inbox()

    def let_engine_in(self) -> None:
        """Let the engine's thread have the interpreter if much stands in the inbox.

        Python lets a thread that computes go on for 5 ms while others wait.  So whoever submits
        in a loop keeps the engine from handing out what there is already, and workers idle
        (10,000 small calls: 45 ms where 37 are enough).
        """
        if self._rung and len(self._inbox) >= MANY_WAIT:
            time.sleep(_NAP_S)

    def is_here(self) -> bool:
        """True in the loop's thread: user code that a garbage collection runs there.

        It stands in the middle of what the engine does.  It may look, but change nothing.
        """
        return threading.get_ident() == self.thread_id

    def call(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` in the loop's thread and wait for what it returns or raises."""
        if self.is_here():
            return function()
        answer: list[Any] = []
        done = threading.Lock()
        done.acquire()

        def run(_: Any) -> None:
            try:
                answer.append((function(), None))
            except BaseException as error:
                answer.append((None, error))
            done.release()

        self.post(run, None)
        done.acquire()
        value, error = answer[0]
        if error is not None:
            raise error
        return value

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start to serve the inbox on ``loop``."""
        self._loop = loop
        loop.add_reader(self._read_fd, self._on_ring)

    def close(self, reason: str, last: Callable[[Any], None]) -> None:
        """Take no more posts; ``last`` is called in the loop's thread after those before it."""
        self.closed = reason
        self._inbox.append((last, None))
        self._rung = True
        os.write(self._write_fd, _RING)

    def detach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop listening; what is in the inbox waits for :meth:`finish`."""
        loop.remove_reader(self._read_fd)
        self._loop = None

    def finish(self) -> None:
        """In the loop's thread, at its very end: serve those who were just about to post."""
        self._finished = True
        self._serve_inbox()

    def __del__(self) -> None:
        # Not earlier: a thread in the middle of a post may be about to write to it.
        for fd in {self._read_fd, self._write_fd} - {-1}:
            os.close(fd)

    def serve_until(self, finished: Callable[[], bool]) -> None:
        """Serve the inbox without a loop: for an engine that could not start."""
        while not finished():
            select.select([self._read_fd], [], [])
            self._on_ring()

    def _on_ring(self) -> None:
        self._hear()
        self.before_drain()
        # Before draining: a post that comes from now on must ring again.
        self._rung = False
        try:
            self._serve_inbox(MAX_DRAIN)
        finally:  # an error concerns the item it came from; the others are served
            if self._inbox and not self._rung:
                self._rung = True
                os.write(self._write_fd, _RING)

    def _hear(self) -> None:
        try:
            os.read(self._read_fd, 8)
        except BlockingIOError:
            pass  # it was heard before, or whoever rings is about to write

    def take_in(self) -> None:
        """In the loop's thread, in the middle of something else: do what stands in the inbox.

        Whoever calls it settles afterwards.
        """
        if self._rung:  # it is heard with this: the loop need not come back for it
            self._hear()
            self._rung = False
        inbox = self._inbox
        for _ in range(len(inbox)):
            if not inbox:
                return
            item = inbox.popleft()
            try:
                if type(item) is tuple:
                    item[0](item[1])
                else:
                    self.take_bare([item])
            except Exception as error:  # it concerns the item, not what is being done
                if self._loop is None:
                    raise
                context = {"message": f"Exception in {item!r}", "exception": error}
                self._loop.call_exception_handler(context)

    def _serve_inbox(self, most: int | None = None) -> None:
        inbox = self._inbox
        together: list[Any] = []  # what is no pair and stands together
        try:
            count = len(inbox)
            for _ in range(count if most is None or count < most else most):
                item = inbox.popleft()
                if type(item) is not tuple:
                    together.append(item)
                    continue
                if together:
                    bare, together = together, []
                    self.take_bare(bare)
                item[0](item[1])
        except IndexError:
            if inbox:
                raise
        finally:
            try:
                if together:
                    self.take_bare(together)
            finally:
                self._after_drain()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A uvloop loop where uvloop exists, else asyncio's own; no policy is changed."""
    try:
        import uvloop  # noqa: PLC0415  # optional: it does not exist on every platform
    except ImportError:
        return asyncio.new_event_loop()
    _check_descriptors()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _check_descriptors() -> None:
    """There is room for a loop's descriptors; libuv aborts the process when there is not.

    Raises:
        OSError: there is not.
    """
    opened: list[int] = []
    try:
        for _ in range(LOOP_DESCRIPTORS):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401
    finally:
        for fd in opened:
            os.close(fd)
