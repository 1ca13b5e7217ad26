"""The objects of a session on a cluster, as one process knows them, and who waits for them.

A record is one of three: *pending*; *here*, with its outcome at hand; or *there*: done, and the
value is at the cluster, where it stays until somebody asks for it.  It lives as long as a ref, or
a call that needs it, refers to it; with it goes the handle, and the cluster's library counts that.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from taskloom._interruptible import nap_s
from taskloom._wire.remote_errors import Failure
from taskloom.backends.cluster_driver import Driver, Outcome, Place, Receipt

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class State(IntEnum):
    PENDING, HERE, THERE = range(3)


class Record:
    """One object.

    Attributes:
        key: its name.
        state: see the top of the module.
        place: where it is, for others; None: nobody but this process can know yet.
        outcome: of one that is here.
        refs: how many refs there are in this process.
        is_armed: the end of its call will be told.
        heard: somebody has asked for its error, or will be told of it.
        keeps: what lives as long as it: the handle of an actor, say.
    """

    __slots__ = (
        "__weakref__", "heard", "is_armed", "keeps", "key", "outcome", "place", "refs", "state",
        "unheard", "waiters",
    )  # fmt: skip

    def __init__(self, key: int, place: Place | None, unheard: deque[Failure] | None) -> None:
        self.key = key
        self.state = State.PENDING
        self.place = place
        self.outcome: Outcome | None = None
        self.refs = 0
        self.is_armed = False
        self.heard = False
        self.keeps: Any = None
        self.unheard = unheard
        self.waiters: list[Subscription] | None = None

    @property
    def failure(self) -> Failure | None:
        """Its error, if that is known here."""
        return self.outcome if isinstance(self.outcome, Failure) else None

    def __del__(self) -> None:
        # No user code here, where anybody's code may be running: only leave a note.
        if not self.heard and isinstance(self.outcome, Failure) and self.unheard is not None:
            self.unheard.append(self.outcome)


class Subscription:
    """Somebody who wants to be told of the end of some objects, once for each."""

    __slots__ = ("callback", "is_over", "loop")

    def __init__(self, callback: Callable[[int], None], loop: AbstractEventLoop | None) -> None:
        self.callback = callback
        self.loop = loop
        self.is_over = False

    def stop(self) -> None:
        self.is_over = True


class Objects:
    """All records of a process.

    Args:
        driver: waits where the cluster sees it.
        unheard: where failures are left that nobody has asked for.
    """

    def __init__(self, driver: Driver, unheard: deque[Failure]) -> None:
        self._driver = driver
        self._unheard = unheard
        self._lock = threading.Lock()
        self.by_key: WeakValueDictionary[int, Record] = WeakValueDictionary()
        self._turns: dict[AbstractEventLoop, deque[tuple[Subscription, int]]] = {}

    def new(self, key: int, place: Place | None = None) -> Record:
        """A record that is pending."""
        record = self.by_key[key] = Record(key, place, self._unheard)
        return record

    def new_here(self, key: int, outcome: Outcome) -> Record:
        """A record that is done."""
        record = self.new(key)
        record.state, record.outcome = State.HERE, outcome
        return record

    def new_there(self, key: int, place: Place) -> Record:
        """A record of a value that the cluster has."""
        record = self.new(key, place)
        record.state = State.THERE
        return record

    def arrived(self, key: int, place: Place) -> Record:
        """The record of a ref that came with a value from another process."""
        record = self.by_key.get(key)
        if record is not None:
            return record
        if place.outcome is not None:
            record = self.new_here(key, place.outcome)
            record.place = place
        elif place.receipt is None:
            record = self.new_there(key, place)
        else:
            record = self.new(key, place)
        record.heard = True  # its error is told where the call was made
        return record

    # -- the end ------------------------------------------------------------------------------

    def settle(self, ended: Iterable[tuple[int, Outcome | None]]) -> None:
        """These objects are done; an outcome of None: the value is at the cluster."""
        told: list[tuple[Subscription, int]] = []
        with self._lock:
            for key, outcome in ended:
                record = self.by_key.get(key)
                if record is None:
                    if isinstance(outcome, Failure):
                        self._unheard.append(outcome)
                    continue
                if record.state != State.PENDING:
                    continue
                record.outcome = outcome
                record.state = State.THERE if outcome is None else State.HERE
                waiters, record.waiters = record.waiters, None
                if waiters:
                    told += [(waiter, key) for waiter in waiters]
        self._tell(told)

    def _tell(self, told: list[tuple[Subscription, int]]) -> None:
        for waiter, key in told:
            loop = waiter.loop
            if waiter.is_over:
                continue
            if loop is None:
                waiter.callback(key)
                continue
            with self._lock:
                turn = self._turns.get(loop)
                if turn is not None:  # those that come together are told together
                    turn.append((waiter, key))
                    continue
                self._turns[loop] = deque([(waiter, key)])
            try:
                loop.call_soon_threadsafe(self._take_turn, loop)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                with self._lock:
                    self._turns.pop(loop, None)

    def _take_turn(self, loop: AbstractEventLoop) -> None:
        with self._lock:
            turn = self._turns.pop(loop, None)
        for waiter, key in turn or ():
            if not waiter.is_over:
                waiter.callback(key)

    # -- waiting ------------------------------------------------------------------------------

    def subscribe(
        self,
        records: Sequence[Record],
        callback: Callable[[int], None],
        loop: AbstractEventLoop | None,
    ) -> Callable[[], None]:
        """As ``Backend.subscribe``; the records are armed."""
        waiter = Subscription(callback, loop)
        done: list[tuple[Subscription, int]] = []
        with self._lock:
            for record in records:
                if record.state != State.PENDING:
                    done.append((waiter, record.key))
                elif record.waiters is None:
                    record.waiters = [waiter]
                else:
                    record.waiters.append(waiter)
        self._tell(done)

        def stop() -> None:
            waiter.stop()
            with self._lock:
                for record in records:
                    if record.waiters is not None and waiter in record.waiters:
                        record.waiters.remove(waiter)

        return stop

    def wait(
        self, records: Sequence[Record], count: int, timeout_s: float | None, *, all_well: bool
    ) -> bool:
        """Block until ``count`` are done, or time is up; whether they are.

        Args:
            records: each once, armed.
            count: how many to wait for.
            timeout_s: seconds; None: for ever.
            all_well: end as soon as one has failed, too.
        """
        tally = _Tally(self.by_key, count, all_well=all_well)
        stop = self.subscribe(records, tally.on_done, None)
        try:
            if timeout_s == 0:
                return tally.is_enough.is_set()
            until = None if timeout_s is None else monotonic() + timeout_s
            while not tally.is_enough.is_set():
                left_s = None if until is None else until - monotonic()
                if left_s is not None and left_s <= 0:
                    return False
                if self._driver.shows_waiting:
                    left_s = self._wait_visibly(records, left_s)
                tally.is_enough.wait(nap_s(left_s))
        finally:
            stop()
        return True

    def _wait_visibly(self, records: Sequence[Record], left_s: float | None) -> float | None:
        """Block until one more is done, where the cluster sees it; how long to wait here then."""
        pending = [record for record in records if record.state == State.PENDING]
        places = [record.place for record in pending if record.place is not None]
        handles = {place.receipt: None for place in places if place.receipt is not None}
        if not handles or len(places) < len(pending):
            return left_s
        # Not left to the callback, which may be late: a task that waits holds what others need.
        ready = self._driver.wait(list(handles), left_s)
        told = {handle: self._driver.receipt(handle) for handle in ready}
        for record in pending:
            if record.place is not None and record.place.receipt in told:
                self.on_told(record.key, record.place.output, told[record.place.receipt])
        return 0.0

    def on_told(self, key: int, output: int, told: Receipt | Failure) -> None:
        """The receipt of the call that makes an object."""
        self.settle([(key, told if isinstance(told, Failure) else told.outcomes[output])])


class _Tally:
    """Counts what is done."""

    def __init__(self, by_key: Mapping[int, Record], count: int, *, all_well: bool) -> None:
        self.is_enough = threading.Event()
        self._by_key = by_key
        self._left = count
        self._all_well = all_well
        self._lock = threading.Lock()

    def on_done(self, key: int) -> None:
        with self._lock:
            self._left -= 1
            if self._left <= 0 or (self._all_well and self._has_failed(key)):
                self.is_enough.set()

    def _has_failed(self, key: int) -> bool:
        record = self._by_key.get(key)
        return record is not None and record.failure is not None
