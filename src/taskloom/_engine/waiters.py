"""Who waits for objects: threads of the driver, foreign event loops, callbacks."""

from __future__ import annotations

import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Sequence

from taskloom._core.node import ObjectRecord
from taskloom._engine.doorbells import Doorbell, doorbell_of
from taskloom._interruptible import acquire


class Waiter:
    """Watches some records; ``on_done`` runs in the engine's thread, once for each."""

    def __init__(self, records: Iterable[ObjectRecord]) -> None:
        self.records: Sequence[ObjectRecord] = list(records)

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
        return acquire(self._lock, timeout_s)

    def has_records_left(self) -> bool:
        """True when it has been told of enough, but not of all."""
        return self._told < len(self.records)


class Gatherer(Waiter):
    """A thread that is blocked in ``get`` of many: it wants all of them, or the first failure.

    Fast path: it stands at one record at a time, the first that is not done, so an object that
    is done costs it a step of a loop and not an entry of its own (of 10,000 small tasks
    that are fetched at once each costs the engine some 6 us, and 0.5 us more without this).
    Plain twin: :class:`ThreadWaiter`.

    Args:
        records: what it wants.
        wakeups: wakes the thread, and tells it of failures of what it does not stand at.
    """

    def __init__(self, records: Iterable[ObjectRecord], wakeups: Wakeups) -> None:
        super().__init__(records)
        self._at = 0
        self._wanted: set[ObjectRecord] | None = None  # made when something has failed
        self._wakeups = wakeups
        self._lock = threading.Lock()
        self._lock.acquire()

    def begin(self) -> None:
        """Stand at the first that is missing.  In the engine's thread, as all below."""
        self._wakeups.gatherers.add(self)
        for record in self.records:
            if record.failed:  # while this stood in the inbox
                self._wake()
                return
        self.on_done(self.records[0])

    def end(self) -> None:
        """Time was up: it leaves no trace."""
        self._wakeups.gatherers.discard(self)
        detach_one(self, self.records[self._at])

    def on_done(self, record: ObjectRecord) -> None:
        records = self.records
        for at in range(self._at, len(records)):
            record = records[at]
            if record.outcome is None:
                self._at = at
                attach_one(self, record)
                return
            if record.failed:
                break
        self._wake()

    def on_failed(self, record: ObjectRecord) -> None:
        """Some object, wanted or not, has failed."""
        if self._wanted is None:
            self._wanted = set(self.records)
        if record in self._wanted:
            detach_one(self, self.records[self._at])
            self._wake()

    def _wake(self) -> None:
        self._wakeups.gatherers.discard(self)
        self._wakeups.threads.append(self._lock)

    def wait(self, timeout_s: float | None) -> bool:
        """Block; False when time was up.  Signals interrupt it (Ctrl-C)."""
        return acquire(self._lock, timeout_s)


class Sleepers:
    """Who waits for one object and has entered himself, on a thread of his own.

    A blocked thread stands here as the lock that it waits for, and nothing more.

    Fast path: the usual wait costs the engine no item of its inbox, and no wake-up when it has
    gone to rest meanwhile (the caller executes a fifth less for a blocking call).
    Plain twin: :func:`attach` and :func:`detach`.

    No lock is needed: the engine sets the outcome and then takes those who wait, all at once;
    others enter themselves and then look for the outcome.  So one of the two sees the other.
    Each step on the table is one operation of a dict or list, which Python makes atomic.

    Args:
        wakeups: takes the locks of threads, to be released at the end of the tick.
    """

    __slots__ = ("_wakeups", "table")

    def __init__(self, wakeups: Wakeups) -> None:
        self._wakeups = wakeups
        self.table: dict[int, list[Waiter | threading.Lock]] = {}

    def add(self, record: ObjectRecord, waiter: Waiter | threading.Lock) -> bool:
        """Enter ``waiter``.

        Returns: False when the object is done.  Then the engine may have been here before;
        the caller must have ``wake`` called in the engine's thread.
        """
        self.table.setdefault(record.key, []).append(waiter)
        return record.outcome is None

    def remove(self, record: ObjectRecord, waiter: Waiter | threading.Lock) -> None:
        """He waits no more.  A list that is empty now stays: somebody may just enter himself."""
        waiting = self.table.get(record.key, [])
        if waiter in waiting:
            try:
                waiting.remove(waiter)
            except ValueError:
                pass  # another thread has taken it out in between

    def waiting(self, record: ObjectRecord) -> Sequence[Waiter | threading.Lock]:
        """Who waits for ``record`` now."""
        return self.table.get(record.key, ())

    def resolve(self, record: ObjectRecord) -> None:
        """The object is done: tell all who wait for it.  In the engine's thread, as all below."""
        waiters = record.waiters
        if waiters is not None:
            record.waiters = None
            for waiter in waiters:
                waiter.on_done(record)
        if self.table:
            self.wake(record)
        if record.failed and self._wakeups.gatherers:
            for gatherer in tuple(self._wakeups.gatherers):
                gatherer.on_failed(record)

    def resolve_all(self, records: Sequence[ObjectRecord]) -> None:
        """The same for each of some that are no failures, as a rule."""
        table = self.table
        for record in records:
            if table or record.waiters is not None:
                self.resolve(record)

    def wake(self, record: ObjectRecord) -> None:
        """Tell those who have entered themselves."""
        for waiter in self.table.pop(record.key, ()):
            if isinstance(waiter, Waiter):
                waiter.on_done(record)
            else:
                self._wakeups.threads.append(waiter)


class Subscriber(Waiter):
    """A callback for each record, in the engine's thread or in a foreign loop."""

    def __init__(
        self,
        records: Sequence[ObjectRecord],
        callback: Callable[[int], None],
        loop: AbstractEventLoop | None,
        wakeups: Wakeups,
    ) -> None:
        self.records = records  # not through super(): for each await, it is another call
        self.callback = callback
        self._bell = None if loop is None else doorbell_of(loop)
        self._wakeups = wakeups
        self.stopped = False

    def on_done(self, record: ObjectRecord) -> None:
        if self.stopped:
            return
        if self._bell is None:
            self.callback(record.key)
        else:
            self._wakeups.add(self._bell, self, record.key)


class Wakeups:
    """What foreign loops are to be told at the end of this tick: one call for each loop."""

    def __init__(self) -> None:
        self.loops: dict[Doorbell, list[tuple[Subscriber, int]]] = {}
        self.threads: list[threading.Lock] = []  # to be released
        self.gatherers: set[Gatherer] = set()  # to be told of failures

    def add(self, bell: Doorbell, subscriber: Subscriber, key: int) -> None:
        self.loops.setdefault(bell, []).append((subscriber, key))

    def deliver(self) -> None:
        if self.threads:
            threads, self.threads = self.threads, []
            for lock in threads:
                lock.release()
        if not self.loops:
            return
        pending, self.loops = self.loops, {}
        for bell, calls in pending.items():
            bell.ring(calls)


def attach(waiter: Waiter) -> None:
    """Have the waiter told; of what is done already, at once.  In the engine's thread."""
    for record in waiter.records:
        if record.outcome is not None:
            waiter.on_done(record)
        else:
            attach_one(waiter, record)


def attach_one(waiter: Waiter, record: ObjectRecord) -> None:
    """Have the waiter told of a record that is not done."""
    if record.waiters is None:
        record.waiters = {waiter: None}
    else:
        record.waiters[waiter] = None


def detach(waiter: Waiter) -> None:
    """Leave no trace in records that are not done yet.  In the engine's thread."""
    for record in waiter.records:
        detach_one(waiter, record)


def detach_one(waiter: Waiter, record: ObjectRecord) -> None:
    if record.waiters is not None:
        record.waiters.pop(waiter, None)
