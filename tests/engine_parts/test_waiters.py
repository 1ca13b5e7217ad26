"""Those who wait for objects: threads, callbacks, foreign loops."""

from __future__ import annotations

import asyncio
import threading

import pytest

from taskloom._core.node import ObjectRecord
from taskloom._engine.waiters import Subscriber, ThreadWaiter, Waiter, Wakeups, attach, detach


def records(count: int) -> list[ObjectRecord]:
    return [ObjectRecord(key) for key in range(1, count + 1)]


def resolve(record: ObjectRecord, *, failed: bool = False) -> None:
    """As the engine does it."""
    record.outcome = b"value"
    record.failed = failed
    waiters, record.waiters = record.waiters, None
    for waiter in waiters or ():
        waiter.on_done(record)


def is_released(waiter: ThreadWaiter) -> bool:
    return waiter.wait(0)


# -- threads -----------------------------------------------------------------------------------


def test_a_thread_goes_on_when_all_it_waits_for_are_done() -> None:
    waiter = ThreadWaiter(some := records(3), 3, stop_at_failure=True)
    attach(waiter)
    for record in some[:2]:
        resolve(record)
    assert not is_released(waiter)
    resolve(some[2])
    assert is_released(waiter)


def test_a_thread_goes_on_when_enough_are_done() -> None:
    waiter = ThreadWaiter(some := records(5), 2, stop_at_failure=False)
    attach(waiter)
    resolve(some[4])
    assert not is_released(waiter)
    resolve(some[1])
    assert is_released(waiter)
    assert waiter.has_records_left()
    resolve(some[0])  # nobody waits any more: nothing happens


def test_a_failure_ends_a_get_and_not_a_wait() -> None:
    for stops in (True, False):
        waiter = ThreadWaiter(some := records(2), 2, stop_at_failure=stops)
        attach(waiter)
        resolve(some[1], failed=True)
        assert is_released(waiter) is stops
        resolve(some[0], failed=True)
        assert stops or is_released(waiter)


def test_what_is_done_already_counts() -> None:
    some = records(2)
    resolve(some[0])
    waiter = ThreadWaiter(some, 2, stop_at_failure=True)
    attach(waiter)
    assert not is_released(waiter)
    resolve(some[1])
    assert is_released(waiter)
    assert not waiter.has_records_left()


def test_a_thread_that_comes_late_does_not_wait() -> None:
    some = records(3)
    for record in some:
        resolve(record)
    waiter = ThreadWaiter(some, 3, stop_at_failure=True)
    attach(waiter)
    assert waiter.wait(None)


def test_a_thread_that_has_no_more_time_goes_on_without() -> None:
    waiter = ThreadWaiter(some := records(1), 1, stop_at_failure=True)
    attach(waiter)
    assert not waiter.wait(0.01)
    detach(waiter)
    assert not some[0].waiters
    resolve(some[0])


def test_a_thread_is_woken_by_another_one() -> None:
    waiter = ThreadWaiter(some := records(1), 1, stop_at_failure=True)
    attach(waiter)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(waiter.wait(30)))
    thread.start()
    resolve(some[0])
    thread.join()
    assert answers == [True]


def test_who_leaves_leaves_no_trace_and_takes_nobody_with_him() -> None:
    some = records(100)
    staying, leaving = (ThreadWaiter(some, 100, stop_at_failure=True) for _ in range(2))
    attach(staying)
    attach(leaving)
    resolve(some[0])
    detach(leaving)
    for record in some[1:]:
        assert list(record.waiters or ()) == [staying]
        resolve(record)
    assert is_released(staying)
    assert not is_released(leaving)


def test_leaving_twice_does_nothing() -> None:
    waiter = ThreadWaiter(records(2), 2, stop_at_failure=True)
    detach(waiter)
    attach(waiter)
    detach(waiter)
    detach(waiter)


def test_waiters_are_told_in_the_order_of_their_coming() -> None:
    order: list[str] = []

    class Named(Waiter):
        def __init__(self, name: str, record: ObjectRecord) -> None:
            super().__init__([record])
            self.name = name

        def on_done(self, record: ObjectRecord) -> None:
            order.append(self.name)

    (record,) = records(1)
    for name in "abc":
        attach(Named(name, record))
    resolve(record)
    assert order == ["a", "b", "c"]


# -- callbacks ---------------------------------------------------------------------------------


def test_a_callback_is_told_each_key_once() -> None:
    told: list[int] = []
    some = records(3)
    resolve(some[0])
    attach(Subscriber(some, told.append, None, Wakeups()))
    resolve(some[2])
    resolve(some[1])
    assert told == [1, 3, 2]


def test_a_callback_that_was_stopped_is_told_nothing() -> None:
    told: list[int] = []
    subscriber = Subscriber(some := records(2), told.append, None, Wakeups())
    attach(subscriber)
    resolve(some[0])
    subscriber.stopped = True
    resolve(some[1])
    assert told == [1]


# -- foreign loops -----------------------------------------------------------------------------


class CountingLoop:
    """A loop that collects what it is to call."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, tuple[object, ...]]] = []

    def call_soon_threadsafe(self, function: object, *args: object) -> None:
        self.calls.append((function, args))

    def is_closed(self) -> bool:
        return False

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for function, args in calls:
            function(*args)  # type: ignore[operator]


def test_a_loop_is_rung_once_for_all_that_was_done_in_one_tick() -> None:
    wakeups, loop, told = Wakeups(), CountingLoop(), []
    some = records(100)
    for record in some:
        attach(Subscriber([record], told.append, loop, wakeups))  # type: ignore[arg-type]
    for record in some:
        resolve(record)
    assert not loop.calls
    wakeups.deliver()
    assert len(loop.calls) == 1
    loop.turn()
    assert told == list(range(1, 101))
    wakeups.deliver()
    assert not loop.calls


def test_each_loop_is_told_its_own() -> None:
    wakeups, loops = Wakeups(), [CountingLoop(), CountingLoop()]
    told: list[list[int]] = [[], []]
    some = records(4)
    for index, record in enumerate(some):
        which = index % 2
        attach(Subscriber([record], told[which].append, loops[which], wakeups))  # type: ignore[arg-type]
    for record in some:
        resolve(record)
    wakeups.deliver()
    for loop in loops:
        assert len(loop.calls) == 1
        loop.turn()
    assert told == [[1, 3], [2, 4]]


def test_who_stops_between_the_ring_and_the_turn_is_told_nothing() -> None:
    wakeups, loop, told = Wakeups(), CountingLoop(), []
    subscriber = Subscriber(some := records(1), told.append, loop, wakeups)  # type: ignore[arg-type]
    attach(subscriber)
    resolve(some[0])
    wakeups.deliver()
    subscriber.stopped = True
    loop.turn()
    assert told == []


def test_a_loop_that_is_closed_is_passed_over() -> None:
    wakeups, told = Wakeups(), []
    closed = asyncio.new_event_loop()
    closed.close()
    other = CountingLoop()
    first, second = records(2)
    attach(Subscriber([first], told.append, closed, wakeups))
    attach(Subscriber([second], told.append, other, wakeups))  # type: ignore[arg-type]
    resolve(first)
    resolve(second)
    wakeups.deliver()
    other.turn()
    assert told == [2]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_nothing_to_deliver_is_nothing_to_do(count: int) -> None:
    wakeups = Wakeups()
    for _ in range(count):
        wakeups.deliver()
