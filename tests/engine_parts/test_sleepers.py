"""Who waits for one object enters himself in a table, without asking the engine."""

from __future__ import annotations

import threading

from taskloom._core.node import ObjectRecord
from taskloom._engine.waiters import Sleepers, Subscriber, Wakeups

LIMIT_S = 30


def held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def finish(sleepers: Sleepers, record: ObjectRecord) -> None:
    """As the engine does it: the outcome first, then those who wait."""
    record.outcome = b"value"
    sleepers.wake(record)


def test_a_thread_is_woken_at_the_end_of_the_tick_and_not_before() -> None:
    wakeups = Wakeups()
    sleepers, record, lock = Sleepers(wakeups), ObjectRecord(1), held_lock()
    assert sleepers.add(record, lock)
    finish(sleepers, record)
    assert lock.locked()
    wakeups.deliver()
    assert not lock.locked()


def test_all_who_wait_for_an_object_are_woken_and_nobody_else() -> None:
    wakeups = Wakeups()
    sleepers, (first, second) = Sleepers(wakeups), (ObjectRecord(1), ObjectRecord(2))
    locks, other = [held_lock() for _ in range(3)], held_lock()
    for lock in locks:
        sleepers.add(first, lock)
    sleepers.add(second, other)
    finish(sleepers, first)
    wakeups.deliver()
    assert not any(lock.locked() for lock in locks)
    assert other.locked()


def test_who_comes_after_the_outcome_hears_so_and_takes_nobody_with_him() -> None:
    wakeups = Wakeups()
    sleepers, record = Sleepers(wakeups), ObjectRecord(1)
    early, late = held_lock(), held_lock()
    sleepers.add(record, early)
    record.outcome = b"value"  # the engine has not come to those who wait
    assert not sleepers.add(record, late)
    sleepers.wake(record)
    wakeups.deliver()
    assert not early.locked()
    assert not sleepers.table


def test_what_a_late_one_leaves_behind_goes_when_he_has_it_woken() -> None:
    wakeups = Wakeups()
    sleepers, record = Sleepers(wakeups), ObjectRecord(1)
    finish(sleepers, record)
    assert not sleepers.add(record, held_lock())
    sleepers.wake(record)
    assert not sleepers.table


def test_who_leaves_is_not_woken_and_takes_nobody_with_him() -> None:
    wakeups = Wakeups()
    sleepers, record = Sleepers(wakeups), ObjectRecord(1)
    staying, leaving = held_lock(), held_lock()
    sleepers.add(record, staying)
    sleepers.add(record, leaving)
    sleepers.remove(record, leaving)
    sleepers.remove(record, leaving)
    finish(sleepers, record)
    wakeups.deliver()
    assert leaving.locked()
    assert not staying.locked()
    sleepers.remove(record, staying)  # he was told already: nothing happens


def test_a_subscriber_is_told_once_as_one_of_many_records_is() -> None:
    told: list[int] = []
    sleepers, record = Sleepers(Wakeups()), ObjectRecord(7)
    assert sleepers.add(record, Subscriber([record], told.append, None, Wakeups()))
    finish(sleepers, record)
    sleepers.wake(record)
    assert told == [7]


def test_no_thread_sleeps_for_ever_whoever_comes_first() -> None:
    """Threads enter themselves at the same time as the outcome comes."""
    wakeups = Wakeups()
    sleepers = Sleepers(wakeups)
    records = [ObjectRecord(key) for key in range(2000)]
    late: list[ObjectRecord] = []
    stuck: list[int] = []

    def wait_for_all() -> None:
        for record in records:
            lock = held_lock()
            if not sleepers.add(record, lock):
                late.append(record)
            elif not lock.acquire(timeout=LIMIT_S):
                stuck.append(record.key)
                return

    threads = [threading.Thread(target=wait_for_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    for record in records:
        finish(sleepers, record)
        wakeups.deliver()
    for thread in threads:
        thread.join()
    assert not stuck
    for record in late:
        sleepers.wake(record)
    assert not sleepers.table
