"""Who waits for objects: threads of the driver, foreign event loops, callbacks."""

from __future__ import annotations

import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable

from taskloom._core.node import ObjectRecord


class Waiter:
    """Watches some records; ``on_done`` runs in the engine's thread, once for each."""

    def __init__(self, records: Iterable[ObjectRecord]) -> None:
        self.records = list(records)

    def on_done(self, record: ObjectRecord) -> None:
        raise NotImplementedError


class ThreadWaiter(Waiter):
    """A thread that is blocked in ``get`` or ``wait``.

    Args:
        records: what it waits for, each once.
        count: how many of them must be done.
        stop_at_failure: a failed one ends the wait (``get``).
        wakeups: wakes the thread at the end of the tick, when the engine is about to rest: before
            that the two would only fight for the interpreter.  None: at once.
    """

    def __init__(
        self,
        records: Iterable[ObjectRecord],
        count: int,
        *,
        stop_at_failure: bool,
        wakeups: Wakeups | None = None,
    ) -> None:
        super().__init__(records)
        self._wakeups = wakeups
        self._left = count
        self._told = 0
        self._stop_at_failure = stop_at_failure
        self._lock = threading.Lock()
        self._lock.acquire()
        self._released = False

    def on_done(self, record: ObjectRecord) -> None:
        self._left -= 1
        self._told += 1
        if not self._released and (self._left <= 0 or (self._stop_at_failure and record.failed)):
            self._released = True
            if self._wakeups is None:
                self._lock.release()
            else:
                self._wakeups.threads.append(self._lock)

    def wait(self, timeout_s: float | None) -> bool:
        """Block; False when time was up.  Signals interrupt it (Ctrl-C)."""
        return self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s)

    def has_records_left(self) -> bool:
        """True when it has been told of enough, but not of all."""
        return self._told < len(self.records)


class Subscriber(Waiter):
    """A callback for each record, in the engine's thread or in a foreign loop."""

    def __init__(
        self,
        records: Iterable[ObjectRecord],
        callback: Callable[[int], None],
        loop: AbstractEventLoop | None,
        wakeups: Wakeups,
    ) -> None:
        super().__init__(records)
        self._callback = callback
        self._loop = loop
        self._wakeups = wakeups
        self.stopped = False

    def on_done(self, record: ObjectRecord) -> None:
        if self.stopped:
            return
        if self._loop is None:
            self._callback(record.key)
        else:
            self._wakeups.add(self._loop, self, record.key)

    def call(self, key: int) -> None:
        """In the foreign loop."""
        if not self.stopped:
            self._callback(key)


class Wakeups:
    """What foreign loops are to be told at the end of this tick: one call for each loop."""

    def __init__(self) -> None:
        self._pending: dict[AbstractEventLoop, list[tuple[Subscriber, int]]] = {}
        self.threads: list[threading.Lock] = []  # to be released

    def add(self, loop: AbstractEventLoop, subscriber: Subscriber, key: int) -> None:
        self._pending.setdefault(loop, []).append((subscriber, key))

    def deliver(self) -> None:
        if self.threads:
            threads, self.threads = self.threads, []
            for lock in threads:
                lock.release()
        if not self._pending:
            return
        pending, self._pending = self._pending, {}
        for loop, calls in pending.items():
            try:
                loop.call_soon_threadsafe(_call_all, calls)
            except RuntimeError:
                pass  # the loop that waited is closed: nobody is left to tell


def _call_all(calls: list[tuple[Subscriber, int]]) -> None:
    for subscriber, key in calls:
        subscriber.call(key)


def attach(waiter: Waiter) -> None:
    """Have the waiter told; of what is done already, at once.  In the engine's thread."""
    for record in waiter.records:
        if record.outcome is not None:
            waiter.on_done(record)
        elif record.waiters is None:
            record.waiters = {waiter: None}
        else:
            record.waiters[waiter] = None


def detach(waiter: Waiter) -> None:
    """Leave no trace in records that are not done yet.  In the engine's thread."""
    for record in waiter.records:
        if record.waiters is not None:
            record.waiters.pop(waiter, None)
