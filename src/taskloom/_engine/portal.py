"""The door between callers and the engine: one thread, one loop, one inbox.

Callers on any thread and any loop put (method, argument) pairs into one deque.  The first one
after a drain rings the loop through a descriptor, the rest need not.  Nothing else is shared,
and no lock is taken: ``ObjectRef.__del__`` may post from inside a garbage collection.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

MAX_DRAIN: Final = 2000
"""Items taken from the inbox in one turn of the loop, so that workers are heard in between."""

_RING: Final = (1).to_bytes(8, "little")


class Portal:
    """The inbox of an engine's loop.

    Args:
        after_drain: called after each batch of items, in the loop's thread.
    """

    def __init__(self, after_drain: Callable[[], None]) -> None:
        self._inbox: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._after_drain = after_drain
        self._rung = False
        self.closed: str | None = None  # why nothing can be posted any more
        self.thread_id = 0  # the loop's thread
        self._finished = False  # its engine has ended
        if hasattr(os, "eventfd"):
            self._read_fd = self._write_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self._read_fd, self._write_fd = os.pipe()
            os.set_blocking(self._read_fd, False)
            os.set_blocking(self._write_fd, False)

    def __len__(self) -> int:
        """How much stands in the inbox."""
        return len(self._inbox)

    def post(self, method: Callable[[Any], None], argument: Any) -> None:
        """Have ``method(argument)`` called in the loop's thread, in the order of the posts.

        Raises:
            RuntimeError: the session is closed.
        """
        if self.closed is not None:
            raise RuntimeError(self.closed)
        self._inbox.append((method, argument))
        if not self._rung:
            self._rung = True
            os.write(self._write_fd, _RING)
        if self._finished:  # the engine has ended since the first line: nobody else will look
            self._serve_inbox()

    def post_if_open(self, method: Callable[[Any], None], argument: Any) -> None:
        """The same, and nothing at all when the session is closed."""
        if self.closed is None:
            self.post(method, argument)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` in the loop's thread and wait for what it returns or raises."""
        if threading.get_ident() == self.thread_id:
            return function()  # user code that a garbage collection runs there
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

    def finish(self) -> None:
        """In the loop's thread, at its very end: serve those who were just about to post."""
        self._finished = True
        self._serve_inbox()

    def __del__(self) -> None:
        # Not earlier: a thread in the middle of a post may be about to write to it.
        for fd in {self._read_fd, self._write_fd}:
            os.close(fd)

    def serve_until(self, finished: Callable[[], bool]) -> None:
        """Serve the inbox without a loop: for an engine that could not start."""
        while not finished():
            select.select([self._read_fd], [], [])
            self._on_ring()

    def _on_ring(self) -> None:
        os.read(self._read_fd, 8)
        # Before draining: a post that comes from now on must ring again.
        self._rung = False
        try:
            self._serve_inbox(MAX_DRAIN)
        finally:  # an error concerns the item it came from; the others are served
            if self._inbox and not self._rung:
                self._rung = True
                os.write(self._write_fd, _RING)

    def _serve_inbox(self, most: int | None = None) -> None:
        inbox = self._inbox
        try:
            for _ in range(min(len(inbox), most or len(inbox))):
                method, argument = inbox.popleft()
                method(argument)
        except IndexError:
            if inbox:
                raise
        finally:
            self._after_drain()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A uvloop loop where uvloop exists, else asyncio's own; no policy is changed."""
    try:
        import uvloop  # noqa: PLC0415  # optional: it does not exist on every platform
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
