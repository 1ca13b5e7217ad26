"""A thread that wants many objects stands at one at a time, and sees all a plain waiter sees."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskloom._core.node import ObjectRecord
from taskloom._engine.waiters import Gatherer, ThreadWaiter, Wakeups, attach


def records(count: int) -> list[ObjectRecord]:
    return [ObjectRecord(key) for key in range(1, count + 1)]


def resolve(record: ObjectRecord, wakeups: Wakeups, *, failed: bool = False) -> None:
    """As the engine does it."""
    record.outcome = b"value"
    record.failed = failed
    waiters, record.waiters = record.waiters, None
    for waiter in waiters or ():
        waiter.on_done(record)
    if failed:
        for gatherer in tuple(wakeups.gatherers):
            gatherer.on_failed(record)
    wakeups.deliver()


def is_released(waiter: ThreadWaiter | Gatherer) -> bool:
    released = waiter.wait(0)
    if released:
        waiter._lock.release()  # so that it can be asked again
    return released


def leaves_no_trace(some: list[ObjectRecord], wakeups: Wakeups) -> bool:
    return not wakeups.gatherers and not any(record.waiters for record in some)


@given(
    count=st.integers(1, 8),
    before=st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=3),
    after=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12),
)
def test_it_goes_on_exactly_when_its_plain_twin_does(count, before, after):
    """``before``: what happens while it stands in the inbox; 8 and 9 are nobody's."""
    wakeups, some = Wakeups(), records(10)
    wanted = some[:count]
    twin = ThreadWaiter(wanted, count, stop_at_failure=True)
    gatherer = Gatherer(wanted, wakeups)
    for at, failed in before:
        if some[at].outcome is None:
            resolve(some[at], wakeups, failed=failed)
    attach(twin)
    gatherer.begin()
    wakeups.deliver()
    assert is_released(gatherer) == is_released(twin)
    for at, failed in after:
        if some[at].outcome is None:
            resolve(some[at], wakeups, failed=failed)
        assert is_released(gatherer) == is_released(twin)
    if is_released(gatherer):
        for record in some:
            (record.waiters or {}).pop(twin, None)
        assert leaves_no_trace(some, wakeups)


def test_a_failure_far_from_where_it_stands_ends_the_wait_GET_2():
    wakeups, some = Wakeups(), records(5)
    gatherer = Gatherer(some, wakeups)
    gatherer.begin()
    resolve(some[4], wakeups, failed=True)
    assert is_released(gatherer)
    assert leaves_no_trace(some, wakeups)


def test_a_failure_of_something_else_is_no_concern_of_it():
    wakeups, some = Wakeups(), records(3)
    gatherer = Gatherer(some[:2], wakeups)
    gatherer.begin()
    resolve(some[2], wakeups, failed=True)
    assert not is_released(gatherer)


def test_who_gives_up_leaves_no_trace():
    wakeups, some = Wakeups(), records(3)
    gatherer = Gatherer(some, wakeups)
    gatherer.begin()
    resolve(some[0], wakeups)
    gatherer.end()
    assert leaves_no_trace(some, wakeups)
    resolve(some[1], wakeups)
    assert not is_released(gatherer)
