"""Threads that wait for calls of a cluster, on a driver that does what the test says."""

from __future__ import annotations

import threading
from collections import deque

import pytest

from taskloom._wire.remote_errors import system_failure
from taskloom._wire.serialization import pack_plain
from taskloom.backends.cluster_driver import Place, Receipt
from taskloom.backends.cluster_objects import Objects, State
from taskloom.exceptions import RaySystemError

DONE = Receipt((pack_plain(None),))
BROKEN = system_failure(RaySystemError("it broke"))


class Driver:
    """Calls are over when the test puts their receipts into ``over``."""

    waits_at_cluster = True
    waits_for_any = True
    shows_waiting = False

    def __init__(self):
        self.over = {}
        self.changed = threading.Condition()
        self.asked = []

    def end(self, *handles, told=DONE):
        with self.changed:
            self.over.update(dict.fromkeys(handles, told))
            self.changed.notify_all()

    def collect(self, handles, count, timeout_s):
        self.asked.append((len(handles), count))

        def found():
            return {one: self.over[one] for one in handles if one in self.over}

        with self.changed:
            self.changed.wait_for(lambda: len(found()) >= count, timeout_s)
            return found()


class Home:
    """What ``ClusterBackend`` does for its objects."""

    def __init__(self):
        self.driver = Driver()
        self.objects = Objects(self.driver, deque())
        self.objects.tell = self._tell
        self.objects.let_go = lambda records: self.let_go.extend(records)
        self.objects.arm = lambda record: self.armed.append(record)
        self.let_go = []
        self.armed = []

    def _tell(self, record, told):
        self.objects.on_told(record.key, record.place.output, told)

    def calls(self, count):
        return [self.objects.new(key, Place(receipt=f"call {key}")) for key in range(count)]

    def wait(self, records, count, timeout_s=30.0, *, all_well=False):
        return self.objects.wait(records, count, timeout_s, all_well=all_well)


@pytest.fixture
def home():
    return Home()


def test_all_that_is_done_is_collected_without_a_callback(home):
    records = home.calls(3)
    home.driver.end("call 0", "call 1", "call 2")
    assert home.wait(records, 3)
    assert {record.state for record in records} == {State.HERE}
    assert home.armed == []


def test_many_are_collected_in_portions(home):
    records = home.calls(1000)
    home.driver.end(*(f"call {key}" for key in range(1000)))
    assert home.wait(records, 1000, all_well=True)
    assert all(record.state == State.HERE for record in records)
    assert max(asked for asked, _ in home.driver.asked) < 1000


def test_one_that_is_done_is_enough_when_one_is_wanted(home):
    records = home.calls(3)
    home.driver.end("call 1")
    assert home.wait(records, 1)
    assert [record.state for record in records] == [State.PENDING, State.HERE, State.PENDING]
    assert home.let_go == [records[0], records[2]]


def test_time_is_up_for_what_does_not_end(home):
    records = home.calls(2)
    home.driver.end("call 0")
    assert not home.wait(records, 2, 0.05)
    assert home.let_go == [records[1]]
    assert not records[1].is_collected


def test_without_any_time_what_is_done_is_seen_all_the_same(home):
    records = home.calls(2)
    home.driver.end("call 1")
    assert not home.wait(records, 2, 0)
    assert home.wait(records, 1, 0)


def test_a_failure_far_behind_ends_the_wait_for_all(home):
    records = home.calls(1000)
    home.driver.end("call 999", told=BROKEN)
    assert home.wait(records, 1000, all_well=True)
    assert records[999].failure is BROKEN
    assert records[0].state == State.PENDING


def test_outputs_of_one_call_come_together(home):
    both = [home.objects.new(key, Place(receipt="call", output=key)) for key in range(2)]
    home.driver.end("call", told=Receipt((pack_plain(1), pack_plain(2))))
    assert home.wait(both, 2)
    assert [record.outcome for record in both] == [pack_plain(1), pack_plain(2)]


def test_what_this_process_settles_itself_is_waited_for_here_and_the_rest_there(home):
    records = [*home.calls(2), home.objects.new(99)]
    home.driver.end("call 0", "call 1")
    settle = threading.Timer(0.05, home.objects.settle, ([(99, pack_plain(None))],))
    settle.start()
    try:
        assert home.wait(records, 3)
    finally:
        settle.join()
    assert all(record.state == State.HERE for record in records)


def test_where_the_cluster_does_not_wait_for_any_callbacks_tell(home):
    home.driver.waits_for_any = False
    records = home.calls(2)

    def arm(record):
        home.objects.settle([(record.key, pack_plain(None))])

    home.objects.arm = arm
    assert home.wait(records, 1)
    assert home.driver.asked == []
