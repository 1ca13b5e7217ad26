"""The questions of workers: ``get``, ``wait`` and ``await`` from inside tasks."""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Sequence
from typing import Any

from taskloom._core.node import ObjectRecord
from taskloom._core.reactor import Reactor
from taskloom._core.states import NodeState
from taskloom._engine.waiters import Waiter, attach, detach
from taskloom._pool.process import WorkerProcess
from taskloom._wire import messages as m
from taskloom._wire.frames import Message
from taskloom._wire.remote_errors import system_failure
from taskloom.exceptions import ObjectLostError


class _Question(Waiter):
    """One open ``get``, ``wait`` or ``await``.

    Args:
        running: the ``seq`` of the task whose main thread asks; 0 for any other thread, -1 for
            one that keeps an event loop from turning.
        count: how many records must be done.
    """

    def __init__(
        self,
        worker: WorkerProcess,
        number: int,
        records: Sequence[ObjectRecord],
        count: int,
        running: int,
    ) -> None:
        super().__init__(dict.fromkeys(records))
        self.worker = worker
        self.number = number
        self.asked = records
        self.running = running
        self.left = count
        self.returned = 0
        self.seq = 0  # of the coroutine that waits
        self.timer: TimerHandle | None = None
        self.on_done_call: Callable[[_Question, ObjectRecord], None] = _ignore

    def on_done(self, record: ObjectRecord) -> None:
        self.on_done_call(self, record)


def _ignore(_question: _Question, _record: ObjectRecord) -> None:
    """A question that has been answered hears nothing more."""


class Requests:
    """All open questions, and their answers.

    Args:
        loom: asked for objects, told who is blocked.
        loop: for timeouts.
        post: has a message sent on a worker's data stream at the end of this tick.
        settle: to be called after an event that comes from a timer.
    """

    def __init__(
        self,
        loom: Reactor,
        loop: AbstractEventLoop,
        post: Callable[[WorkerProcess, Message], None],
        settle: Callable[[], None],
    ) -> None:
        self._loom = loom
        self._loop = loop
        self._post = post
        self._settle = settle
        self._open: dict[tuple[WorkerProcess, int], _Question] = {}

    # -- get and wait -------------------------------------------------------------------------

    def on_get(self, worker: WorkerProcess, message: Message) -> None:
        _, number, keys, timeout_s, running = message
        records = self._records(keys)
        missing = sum(record.outcome is None for record in dict.fromkeys(records))
        question = _Question(worker, number, records, missing, running)
        if not missing or any(record.failed for record in records):
            self._send(question, self._outcomes(question))
            return
        self._ask(question, timeout_s, self._get_progress, self._outcomes)

    def on_wait(self, worker: WorkerProcess, message: Message) -> None:
        _, number, keys, num_returns, timeout_s, running = message
        records = self._records(keys)
        done = sum(record.outcome is not None for record in records)
        question = _Question(worker, number, records, num_returns - done, running)
        if question.left <= 0:
            self._send(question, self._done_keys(question))
            return
        self._ask(question, timeout_s, self._wait_progress, self._done_keys)

    def _is_news(self, question: _Question) -> bool:
        """True when the task that asks was cancelled, and no answer has told it so."""
        node = question.worker.record.inflight.get(max(question.running, 0))
        if node is None or node.state != NodeState.CANCELLED or node.cancel_told:
            return False
        node.cancel_told = True
        return True

    def _get_progress(self, question: _Question, record: ObjectRecord) -> None:
        question.left -= 1
        if question.left <= 0 or record.failed:
            self._answer(question, self._outcomes(question))

    def _wait_progress(self, question: _Question, _record: ObjectRecord) -> None:
        question.left -= 1
        if question.left <= 0:
            self._answer(question, self._done_keys(question))

    def _outcomes(self, question: _Question) -> list[Any]:
        for record in question.asked:
            record.seen = record.seen or record.failed
        return [record.outcome for record in question.asked]

    def _done_keys(self, question: _Question) -> list[Any]:
        return [record.key for record in question.asked if record.outcome is not None]

    def _ask(
        self,
        question: _Question,
        timeout_s: float | None,
        progress: Callable[[_Question, ObjectRecord], None],
        answer: Callable[[_Question], list[Any]],
    ) -> None:
        """Leave a question open: its task is blocked until it is answered."""
        if timeout_s is not None and timeout_s <= 0:
            self._send(question, answer(question))
            return
        if self._is_news(question):
            self._send(question, None)
            return
        question.on_done_call = progress
        self._open[question.worker, question.number] = question
        question.records = [record for record in question.records if record.outcome is None]
        attach(question)
        question.returned = self._loom.on_blocked(question.worker.record, question.running)
        if timeout_s is not None:

            def time_is_up() -> None:
                self._answer(question, answer(question))
                self._settle()

            question.timer = self._loop.call_later(timeout_s, time_is_up)

    def _answer(self, question: _Question, answer: Any) -> None:
        self._unblock(question)
        self._send(question, answer)

    def _unblock(self, question: _Question) -> None:
        self._close(question)
        self._loom.on_unblocked(question.worker.record, question.running, question.seq)

    def _close(self, question: _Question) -> None:
        question.on_done_call = _ignore
        self._open.pop((question.worker, question.number), None)
        detach(question)
        if question.timer is not None:
            question.timer.cancel()

    def _send(self, question: _Question, answer: Any) -> None:
        message = (m.REPLY, question.number, question.returned, answer)
        if question.running > 0:
            self._post(question.worker, message)
        else:
            question.worker.control.send([message])

    # -- await --------------------------------------------------------------------------------

    def on_watch(self, worker: WorkerProcess, message: Message) -> None:
        _, number, keys, seq = message
        question = _Question(worker, number, self._records(keys), 0, 0)
        done = [record for record in question.records if record.outcome is not None]
        question.records = [record for record in question.records if record.outcome is None]
        question.left = len(question.records)
        question.seq = seq
        if done:
            worker.control.send([self._notice_of(question, record) for record in done])
        if question.left:
            # A coroutine waits: its task is blocked as if it had called get.
            question.on_done_call = self._notice
            self._open[worker, number] = question
            self._loom.on_blocked(worker.record, 0, seq)
            attach(question)

    def on_unwatch(self, worker: WorkerProcess, message: Message) -> None:
        question = self._open.get((worker, message[1]))
        if question is not None:
            self._unblock(question)

    def _notice(self, question: _Question, record: ObjectRecord) -> None:
        question.worker.control.send([self._notice_of(question, record)])
        question.left -= 1
        if not question.left:
            self._unblock(question)

    def _notice_of(self, question: _Question, record: ObjectRecord) -> Message:
        record.seen = record.seen or record.failed
        return (m.NOTICE, question.number, record.key, record.outcome)

    # -- the end of those who ask -------------------------------------------------------------

    def on_interrupted(self, worker: WorkerProcess, seq: int) -> None:
        """A task was cancelled while its main thread waits: None tells it so."""
        for question in [q for (w, _), q in self._open.items() if w is worker]:
            if question.running == seq and self._is_news(question):
                self._answer(question, None)

    def on_worker_gone(self, worker: WorkerProcess) -> None:
        for question in [q for (w, _), q in self._open.items() if w is worker]:
            self._close(question)

    def _records(self, keys: Sequence[int]) -> list[ObjectRecord]:
        objects = self._loom.graph.objects
        return [objects.get(key) or _lost(key) for key in keys]


def _lost(key: int) -> ObjectRecord:
    """Stands for an object that is gone although somebody asks for it."""
    record = ObjectRecord(key)
    record.outcome = system_failure(ObjectLostError(f"the object {key:#x} is no longer kept"))
    record.failed = record.seen = True
    return record
