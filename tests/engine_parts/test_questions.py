"""``get``, ``wait`` and ``await`` of workers: asked by messages, answered by messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from taskloom._core.node import Node, ObjectRecord, WorkerKind, WorkerRecord
from taskloom._core.reactor import Reactor
from taskloom._core.resources import Ledger
from taskloom._engine.requests import Requests
from taskloom._ids import Mint
from taskloom._spec import Function, FunctionKey, TaskSpec
from taskloom._wire import messages as m
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom.exceptions import ObjectLostError, TaskCancelledError

ERROR = system_failure(ObjectLostError("some error"))
SPEC = TaskSpec(
    function=Function(key=FunctionKey(b"f"), blob=b"", name="f", module="m", is_coroutine=False),
    name="f",
    num_returns=1,
    request=(("CPU", 10_000),),
    max_retries=0,
    retry_exceptions=False,
    priority=0,
)


class Process:
    """A worker as the driver knows it; what it is sent on either stream is written down."""

    def __init__(self, number: int, kind: WorkerKind) -> None:
        self.record = WorkerRecord(number, kind)
        self.control = self
        self.data: list[tuple[Any, ...]] = []
        self.controls: list[tuple[Any, ...]] = []

    def send(self, messages: list[tuple[Any, ...]]) -> None:
        self.controls += messages

    def heard(self) -> list[tuple[Any, ...]]:
        heard = self.data + self.controls
        self.data, self.controls = [], []
        return heard


class Timer:
    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        self.seconds = seconds
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Desk:
    """A loom without a world, and somebody who answers questions about it."""

    def __init__(self) -> None:
        self.loom = Reactor(Ledger({"CPU": 100}), self, max_processes=100)  # type: ignore[arg-type]
        self.timers: list[Timer] = []
        self.settled = 0
        self.requests = Requests(self.loom, self, self._post, self._settle)  # type: ignore[arg-type]
        self._mint = Mint(0)

    def worker(self, kind: WorkerKind = WorkerKind.PROCESS) -> Process:
        process = Process(len(self.loom.workers) + 1, kind)
        self.loom.on_worker_started(process.record)
        self.loom.on_worker_ready(process.record)
        return process

    def busy(self) -> tuple[Process, int]:
        """A worker that runs a task, and the seq of that."""
        worker = self.worker()
        self.pending()
        self.loom.schedule()
        (seq,) = worker.record.inflight
        return worker, seq

    def pending(self) -> ObjectRecord:
        key = self._mint.next_task()
        record = ObjectRecord(key + 1)
        self.loom.on_submit(Node(key, SPEC, b"", None, (), (record,)))
        return record

    def done(self, outcome: object = b"value") -> ObjectRecord:
        record = ObjectRecord(self._mint.next_task() + 1)
        record.failed = isinstance(outcome, Failure)
        self.loom.on_put(record, outcome, ())
        return record

    def finish(self, record: ObjectRecord, *, error: Failure | None = None) -> None:
        """The object is there, whoever made it."""
        assert record.producer is not None
        if error is not None:
            self.loom.graph.fail(record.producer, error, "test")
        else:
            node = record.producer
            while node.worker is None:
                self.worker()
                self.loom.schedule()
            self.loom.on_done(node.worker, node.seq, [b"value"], [()], 1.0)

    # -- the loop, as far as it is asked for ---------------------------------------------------

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(seconds, call))
        return self.timers[-1]

    def _post(self, worker: Process, message: tuple[Any, ...]) -> None:
        worker.data.append(message)

    def _settle(self) -> None:
        self.settled += 1

    # -- the loom's verbs ----------------------------------------------------------------------

    def resolve(self, record: ObjectRecord) -> None:
        waiters, record.waiters = record.waiters, None
        for waiter in waiters or ():
            waiter.on_done(record)

    def resolve_all(self, records: list[ObjectRecord]) -> None:
        for record in records:
            self.resolve(record)

    def cancelled(self, _node: Node) -> Failure:
        return system_failure(TaskCancelledError())

    def run(self, *_: object) -> None: ...

    def run_calls(self, *_: object) -> None: ...
    def start_workers(self, *_: object) -> None: ...
    def take_back(self, *_: object) -> None: ...
    def warn(self, *_: object) -> None: ...
    def interrupt(self, *_: object, force: bool) -> None: ...
    def report_unseen(self, *_: object) -> None: ...


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_get_of_what_is_done_is_answered_at_once(desk: Desk) -> None:
    worker, seq = desk.busy()
    one, two = desk.done(b"1"), desk.done(b"2")
    desk.requests.on_get(worker, (m.GET, 7, [two.key, one.key, two.key], None, seq))  # type: ignore[arg-type]
    assert worker.data == [(m.REPLY, 7, 0, [b"2", b"1", b"2"])]
    assert not worker.record.blocked


def test_a_get_is_answered_when_the_last_is_done(desk: Desk) -> None:
    worker, seq = desk.busy()
    one, two = desk.pending(), desk.pending()
    desk.requests.on_get(worker, (m.GET, 7, [one.key, two.key, one.key], None, seq))  # type: ignore[arg-type]
    assert worker.record.blocked
    desk.finish(two)
    assert worker.heard() == []
    desk.finish(one)
    assert not worker.record.blocked
    ((op, number, _returned, answer),) = worker.heard()
    assert (op, number, answer) == (m.REPLY, 7, [b"value"] * 3)


def test_a_get_is_answered_by_the_first_failure(desk: Desk) -> None:
    worker, seq = desk.busy()
    slow, bad = desk.pending(), desk.pending()
    desk.requests.on_get(worker, (m.GET, 7, [slow.key, bad.key], None, seq))  # type: ignore[arg-type]
    desk.finish(bad, error=ERROR)
    ((*_, answer),) = worker.heard()
    assert answer == [None, ERROR]
    assert bad.seen
    assert not slow.waiters
    desk.finish(slow)
    assert worker.heard() == []


def test_an_answer_goes_to_the_thread_that_asked(desk: Desk) -> None:
    worker, seq = desk.busy()
    record = desk.pending()
    desk.requests.on_get(worker, (m.GET, 1, [record.key], None, seq))  # type: ignore[arg-type]
    desk.requests.on_get(worker, (m.GET, 2, [record.key], None, 0))  # type: ignore[arg-type]
    desk.finish(record)
    assert [message[1] for message in worker.data] == [1]
    assert [message[1] for message in worker.controls] == [2]
    assert worker.record.pending_requests == 0


def test_time_is_up_for_a_get(desk: Desk) -> None:
    worker, seq = desk.busy()
    record = desk.pending()
    desk.requests.on_get(worker, (m.GET, 7, [record.key, desk.done().key], 0.5, seq))  # type: ignore[arg-type]
    (timer,) = desk.timers
    assert timer.seconds == 0.5
    timer.call()
    ((*_, answer),) = worker.heard()
    assert answer == [None, b"value"]
    assert not worker.record.blocked
    assert not record.waiters
    assert desk.settled == 1


def test_a_timer_is_cancelled_when_the_answer_comes_first(desk: Desk) -> None:
    worker, seq = desk.busy()
    record = desk.pending()
    desk.requests.on_get(worker, (m.GET, 7, [record.key], 0.5, seq))  # type: ignore[arg-type]
    desk.finish(record)
    assert desk.timers[0].cancelled


def test_a_get_without_time_polls(desk: Desk) -> None:
    worker, seq = desk.busy()
    record = desk.pending()
    desk.requests.on_get(worker, (m.GET, 7, [record.key], 0, seq))  # type: ignore[arg-type]
    assert worker.data == [(m.REPLY, 7, 0, [None])]
    assert not worker.record.blocked
    assert not record.waiters


def test_an_object_that_is_gone_is_an_error(desk: Desk) -> None:
    worker, seq = desk.busy()
    desk.requests.on_get(worker, (m.GET, 7, [12345], None, seq))  # type: ignore[arg-type]
    ((*_, (answer,)),) = worker.heard()
    assert isinstance(answer.revive(), ObjectLostError)


def test_a_wait_is_answered_when_enough_are_done(desk: Desk) -> None:
    worker, seq = desk.busy()
    records = [desk.pending() for _ in range(3)] + [desk.done()]
    keys = [record.key for record in records]
    desk.requests.on_wait(worker, (m.WAIT, 7, keys, 2, None, seq))  # type: ignore[arg-type]
    assert worker.record.blocked
    desk.finish(records[2])
    ((*_, answer),) = worker.heard()
    assert answer == [records[2].key, records[3].key]
    assert not any(record.waiters for record in records)


def test_a_wait_for_what_is_done_is_answered_at_once(desk: Desk) -> None:
    worker, seq = desk.busy()
    keys = [desk.done().key, desk.pending().key]
    desk.requests.on_wait(worker, (m.WAIT, 7, keys, 1, None, seq))  # type: ignore[arg-type]
    assert worker.data == [(m.REPLY, 7, 0, keys[:1])]


def test_each_object_that_is_awaited_is_told_once_done_or_not(desk: Desk) -> None:
    worker = desk.worker(WorkerKind.LOOP)
    early, late, later = desk.done(), desk.pending(), desk.pending()
    keys = (early.key, late.key, later.key)
    desk.requests.on_watch(worker, (m.WATCH, 7, keys, 0))  # type: ignore[arg-type]
    assert worker.heard() == [(m.NOTICE, 7, early.key, b"value")]
    desk.finish(later)
    desk.finish(late)
    assert worker.heard() == [
        (m.NOTICE, 7, later.key, b"value"),
        (m.NOTICE, 7, late.key, b"value"),
    ]
    assert worker.record.pending_requests == 0


def test_who_awaits_no_longer_is_told_nothing(desk: Desk) -> None:
    worker = desk.worker(WorkerKind.LOOP)
    record = desk.pending()
    desk.requests.on_watch(worker, (m.WATCH, 7, (record.key,), 0))  # type: ignore[arg-type]
    desk.requests.on_unwatch(worker, (m.UNWATCH, 7))  # type: ignore[arg-type]
    desk.requests.on_unwatch(worker, (m.UNWATCH, 7))  # type: ignore[arg-type]
    desk.finish(record)
    assert worker.heard() == []
    assert worker.record.pending_requests == 0


def test_a_task_that_is_cancelled_while_it_waits_hears_none(desk: Desk) -> None:
    worker, seq = desk.busy()
    record = desk.pending()
    desk.requests.on_get(worker, (m.GET, 7, [record.key], None, seq))  # type: ignore[arg-type]
    desk.requests.on_get(worker, (m.GET, 8, [record.key], None, 0))  # type: ignore[arg-type]
    (running,) = worker.record.inflight.values()
    desk.loom.on_cancel(running.outputs[0].key, force=False, recursive=True)
    desk.requests.on_interrupted(worker, seq)  # type: ignore[arg-type]
    ((op, number, _, answer),) = worker.heard()
    assert (op, number, answer) == (m.REPLY, 7, None)
    assert worker.record.pending_requests == 1
    desk.finish(record)
    assert [message[1] for message in worker.heard()] == [8]


@pytest.mark.parametrize("op", [m.GET, m.WAIT])
def test_a_task_that_is_cancelled_hears_that_before_what_its_children_came_to(
    desk: Desk, op: int
) -> None:
    worker, seq = desk.busy()
    record = desk.pending()
    (running,) = worker.record.inflight.values()
    desk.loom.on_cancel(running.outputs[0].key, force=False, recursive=True)
    desk.finish(record, error=system_failure(TaskCancelledError()))
    for number, answer in ((7, True), (8, False)):  # once: then it is cleaning up
        if op == m.GET:
            desk.requests.on_get(worker, (op, number, [record.key], None, seq))  # type: ignore[arg-type]
        else:
            desk.requests.on_wait(worker, (op, number, [record.key], 1, None, seq))  # type: ignore[arg-type]
        ((_, heard, _, content),) = worker.heard()
        assert heard == number
        assert (content is None) is answer


def test_a_worker_that_is_gone_is_not_answered(desk: Desk) -> None:
    worker, seq = desk.busy()
    record = desk.pending()
    desk.requests.on_get(worker, (m.GET, 7, [record.key], 1.0, seq))  # type: ignore[arg-type]
    desk.requests.on_worker_gone(worker)  # type: ignore[arg-type]
    assert desk.timers[0].cancelled
    assert not record.waiters
    desk.finish(record, error=system_failure(TaskCancelledError()))
    assert worker.heard() == []
