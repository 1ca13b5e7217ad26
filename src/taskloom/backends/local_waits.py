"""How threads of the driver wait for objects: for one, for all, for some."""

from __future__ import annotations

import threading

from taskloom._core.node import ObjectRecord
from taskloom._engine.engine import Engine
from taskloom._engine.portal import Portal
from taskloom._engine.waiters import Gatherer, ThreadWaiter
from taskloom._interruptible import acquire
from taskloom.exceptions import InternalError


class Waits:
    """Each method blocks the calling thread until it may go on, or time is up.

    What is there then is asked of the records.  Ctrl-C ends a wait, and the session goes on
    without it.
    """

    def __init__(self, portal: Portal, engine: Engine) -> None:
        self._portal = portal
        self._engine = engine

    def for_one(self, record: ObjectRecord, timeout_s: float | None) -> None:
        """Until it is done."""
        self._refuse_own_thread()
        sleepers = self._engine.sleepers
        lock = threading.Lock()
        lock.acquire()
        woken = False
        try:
            if sleepers.add(record, lock):
                woken = acquire(lock, timeout_s)
            else:
                woken = True
                self._portal.post_if_open(sleepers.wake, record)
        finally:
            if not woken:
                sleepers.remove(record, lock)

    def for_all(self, records: list[ObjectRecord], timeout_s: float | None) -> None:
        """Until all are done, or one has failed.  Each stands there once."""
        self._refuse_own_thread()
        gatherer = Gatherer(records, self._engine.wakeups)
        self._portal.post(self._engine.gather, gatherer)
        done = False
        try:
            done = gatherer.wait(timeout_s)
        finally:
            if not done:
                self._portal.post_if_open(self._engine.ungather, gatherer)

    def for_some(self, records: list[ObjectRecord], count: int, timeout_s: float | None) -> None:
        """Until ``count`` of them are done, well or not."""
        self._refuse_own_thread()
        wakeups = self._engine.wakeups
        waiter = ThreadWaiter(records, count, stop_at_failure=False, wakeups=wakeups)
        self._portal.post(self._engine.watch, waiter)
        done = False
        try:
            done = waiter.wait(timeout_s)
        finally:
            if not done or waiter.has_records_left():
                self._portal.post_if_open(self._engine.unwatch, waiter)

    def _refuse_own_thread(self) -> None:
        if threading.get_ident() == self._portal.thread_id:
            raise InternalError("the engine's own thread must not wait")
