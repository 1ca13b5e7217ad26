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
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from taskloom._interruptible import nap_s
from taskloom._wire.remote_errors import Failure
from taskloom.backends.cluster_driver import Driver, Outcome, Place, Receipt

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


LOOK_S: Final = 0.2
"""How late ``get`` of many may learn that one of them has failed, when the others go on."""
_AT_ONCE: Final = 256
"""So many are waited for in one go when all are wanted: what is done is opened while the rest
runs."""


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
        is_collected: a thread waits for it at the cluster, and tells of its end.
        heard: somebody has asked for its error, or will be told of it.
        keeps: what lives as long as it: the handle of an actor, say.
    """

    __slots__ = (
        "__weakref__", "heard", "is_armed", "is_collected", "keeps", "key", "outcome", "place",
        "refs", "state", "unheard", "waiters",
    )  # fmt: skip

    def __init__(self, key: int, place: Place | None, unheard: deque[Failure] | None) -> None:
        self.key = key
        self.state = State.PENDING
        self.place = place
        self.outcome: Outcome | None = None
        self.refs = 0
        self.is_armed = False
        self.is_collected = False
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
        self.arm: Callable[[Record], None] = lambda record: None
        """Has the end of a record told."""
        self.tell: Callable[[Record, Receipt | Failure], None] = lambda record, told: None
        """Hears of the end of a record that was collected."""
        self.let_go: Callable[[Sequence[Record]], None] = lambda records: None
        """Hears of those for which nobody waits any more."""

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

    def settle(
        self, ended: Iterable[tuple[int, Outcome | None]], *, is_heard: bool = False
    ) -> None:
        """These objects are done; an outcome of None: the value is at the cluster.

        Args:
            ended: the keys with their outcomes.
            is_heard: somebody is told of an error also when no ref is left.
        """
        told: list[tuple[Subscription, int]] = []
        with self._lock:
            for key, outcome in ended:
                record = self.by_key.get(key)
                if record is None:
                    if isinstance(outcome, Failure) and not is_heard:
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
            records: each once.
            count: how many to wait for.
            timeout_s: seconds; None: for ever.
            all_well: end as soon as one has failed, too.
        """
        until = None if timeout_s is None else monotonic() + timeout_s
        if all_well and _has_failure(records):
            return True
        pending = [record for record in records if record.state == State.PENDING]
        missing = count - (len(records) - len(pending))
        look = _Look()
        try:
            while missing > 0:
                left_s = None if until is None else max(until - monotonic(), 0.0)
                some = self._wait_for_some(pending, missing, left_s, look, all_well=all_well)
                if all_well and _has_failure(some):
                    return True
                still = [record for record in some if record.state == State.PENDING]
                missing -= len(some) - len(still)
                pending = still + pending[len(some) :]
                if missing > 0 and until is not None and left_s is not None and monotonic() > until:
                    return False
        finally:
            if pending and self._driver.waits_at_cluster:
                for record in pending:
                    record.is_collected = False
                self.let_go(pending)
        return True

    def _wait_for_some(
        self,
        pending: Sequence[Record],
        count: int,
        left_s: float | None,
        look: _Look,
        *,
        all_well: bool,
    ) -> Sequence[Record]:
        """Block until some of those that are pending are done, or time is up.

        At the cluster if they are there: it learns that somebody waits, and what is done is
        collected in one go, without a call back for each.

        Returns:
            The first of them: those among which some may be done now.
        """
        if not self._driver.waits_at_cluster:
            self._wait_here(pending, count, left_s, None, all_well=all_well)
            return pending
        strange = look.find_strange(pending)
        if strange is not None or (count < len(pending) and not self._driver.waits_for_any):
            self._wait_here(pending, count, left_s, strange, all_well=all_well)
            return pending
        some, at_most_s = pending, left_s
        if not self._driver.shows_waiting:
            at_most_s = nap_s(left_s)
            if len(pending) > 1 and all_well:
                at_most_s = LOOK_S if at_most_s is None else min(at_most_s, LOOK_S)
        if len(pending) > 1 and all_well and look.is_due():
            at_most_s = 0.0
        if count == len(pending) and at_most_s != 0:
            some = pending[:_AT_ONCE]
        handles: dict[Any, None] = {}
        for record in some:
            assert record.place is not None
            handles[record.place.receipt] = None
        count = min(count, len(handles)) if len(handles) == len(some) else 1
        told = self._driver.collect(list(handles), count, at_most_s)
        for record in some:
            assert record.place is not None
            if (one := told.get(record.place.receipt)) is not None:
                self.tell(record, one)
        look.is_over()
        return some

    def _wait_here(
        self,
        pending: Sequence[Record],
        count: int,
        left_s: float | None,
        strange: Record | None,
        *,
        all_well: bool,
    ) -> None:
        """The same by callbacks; until ``strange`` is done, too: the cluster may have the rest."""
        for record in pending:
            if not record.is_armed and record.state == State.PENDING:
                self.arm(record)
        tally = _Tally(self.by_key, count, all_well=all_well)
        stop = self.subscribe(pending, tally.on_done, None)
        try:
            until = None if left_s is None else monotonic() + left_s
            while not tally.is_enough.is_set():
                left_s = None if until is None else until - monotonic()
                if left_s is not None and left_s <= 0:
                    return
                tally.is_enough.wait(nap_s(left_s))
                if strange is not None and strange.state != State.PENDING:
                    return
        finally:
            stop()

    def on_told(self, key: int, output: int, told: Receipt | Failure) -> None:
        """The receipt of the call that makes an object."""
        self.settle([(key, told if isinstance(told, Failure) else told.outcomes[output])])


def _has_failure(records: Sequence[Record]) -> bool:
    return any(isinstance(record.outcome, Failure) for record in records)


class _Look:
    """What one wait has seen: where its objects are, and when it looks at all of them."""

    __slots__ = ("_at", "_began", "_strange")

    def __init__(self) -> None:
        self._at = monotonic() + LOOK_S
        self._began = 0.0
        self._strange: list[Record] | None = None

    def find_strange(self, pending: Sequence[Record]) -> Record | None:
        """One of those that the cluster does not know of: somebody in this process settles it."""
        if self._strange is None:
            self._strange = [
                record for record in pending if record.place is None or record.place.receipt is None
            ]
            for record in pending:
                record.is_collected = not self._strange
        while self._strange:
            record = self._strange[-1]  # the last is done last, mostly
            if record.state == State.PENDING and (
                record.place is None or record.place.receipt is None
            ):
                return record
            self._strange.pop()
        return None

    def is_due(self) -> bool:
        """Whether to look at all, if one has failed: not all the time."""
        now = monotonic()
        self._began = now if now >= self._at else 0.0
        return now >= self._at

    def is_over(self) -> None:
        if self._began:
            now = monotonic()
            self._at = now + max(LOOK_S, 10 * (now - self._began))
            self._began = 0.0


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
