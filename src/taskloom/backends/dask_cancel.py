"""Cancelling on Dask, which only takes back what has not begun: the rest is asked in its worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, Final

from taskloom.backends import dask_head
from taskloom.backends.dask_handles import Promise
from taskloom.backends.dask_interrupts import end_call, end_process
from taskloom.backends.dask_worker import homes

_MOST_PARENTS: Final = 10_000
_ON_ITS_WAY_S: Final = 30.0
"""How long a task may be on its way to the scheduler."""


class Canceller:
    """Asks for the end of calls, in a thread: those who want it may be in a loop.

    Args:
        client: Dask's.
        session: its name.
    """

    def __init__(self, client: Any, session: str) -> None:
        self._client = client
        self._session = session
        self._thread = ThreadPoolExecutor(1, "taskloom-cancel")
        self._children: dict[int, list[Promise]] = {}

    def cancel(self, promise: Promise, *, force: bool, recursive: bool) -> None:
        """Ask for the end of a call."""
        self._thread.submit(self._cancel, promise, force, recursive)

    def _cancel(self, promise: Promise, force: bool, recursive: bool) -> None:
        future, task = promise.future, promise.task
        if future is None or promise.is_done:
            return
        where = self._find(promise)
        found: dict[str, Any] = {}
        if where is not None and force:
            # In this order: what the scheduler still has when its worker dies is tried again, and
            # would hold the next worker for ever.  It hears of a cancel by another way than of what
            # it is asked, and on a busy machine later.
            self._client.cancel([future], force=True)
            self._client.run_on_scheduler(dask_head.let_go, promise.key)
            self._client.run(end_process, task, workers=[where], on_error="ignore")
            return
        if where is not None:
            found = self._client.run(
                interrupt, self._session, task, recursive, workers=[where], on_error="ignore"
            )
        if not any(found.values()):
            self._client.cancel([future], force=True)

    def _find(self, promise: Promise) -> str | None:
        """The worker that has a task to do; None: it is with none, or is over.

        On a busy machine the scheduler may hear of a task later than of the wish for its end, which
        would then end nothing but the future.
        """
        until = monotonic() + _ON_ITS_WAY_S
        where: str | None
        while True:
            is_known, where = self._client.run_on_scheduler(dask_head.whereabouts, promise.key)
            if is_known or promise.is_done or monotonic() > until:
                return where

    # -- what a task of this worker has submitted ----------------------------------------------

    def note_child(self, parent: int, promise: Promise) -> None:
        """It may be cancelled with its parent."""
        if len(self._children) > _MOST_PARENTS:
            self._children.clear()
        self._children.setdefault(parent, []).append(promise)

    def end_children(self, parent: int) -> None:
        """Ask for their end."""
        for promise in self._children.pop(parent, ()):
            self.cancel(promise, force=False, recursive=True)

    def forget_children(self, parent: int) -> None:
        """The parent is over."""
        self._children.pop(parent, None)

    def close(self) -> None:
        """What was asked for is done first."""
        self._thread.shutdown(wait=True)


def interrupt(session: str, task: int, recursive: bool) -> bool:
    """In a worker: ask for the end of a call, and of what it has submitted; whether it runs."""
    home: Any = homes.get(session)
    is_running = end_call(task)
    if recursive and home is not None:
        home.driver.canceller.end_children(task)
    return is_running
