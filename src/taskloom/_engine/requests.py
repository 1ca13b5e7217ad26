"""The questions of workers: ``get``, ``wait`` and ``await`` from inside tasks."""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Sequence
from typing import Any

from taskloom._core.deadlock import Wait
from taskloom._core.node import ObjectRecord, WorkerKind
from taskloom._core.reactor import Reactor
from taskloom._core.self_waits import fail_what_waits_for_itself
from taskloom._core.states import NodeState
from taskloom._engine.verdicts import lost
from taskloom._engine.waiters import Waiter, attach, detach
from taskloom._pool.process import WorkerProcess
from taskloom._wire import messages as m
from taskloom._wire.frames import Message
from taskloom._wire.remote_errors import Failure


class _Question(Waiter):
    """One open ``get``, ``wait`` or ``await``.

    Args:
        running: the ``seq`` of the task whose main thread asks; 0 for any other thread, -1 for
            one that keeps an event loop from turning, -1 - ``seq`` for the thread that an actor
            runs that call in.
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
        self.seq = 0  # of the coroutine that waits; -1: it only wants to be told
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
        self.open: dict[tuple[WorkerProcess, int], _Question] = {}

    # -- get and wait -------------------------------------------------------------------------

    def on_get(self, worker: WorkerProcess, message: Message) -> None:
        _, number, keys, timeout_s, running = message
        records = self._records(keys)
        if worker.record.actor is not None and running > 0 and timeout_s is None:
            needed = sum(record.outcome is None for record in records)
            fail_what_waits_for_itself(self._loom, worker.record, records, needed)
        missing = sum(record.outcome is None for record in dict.fromkeys(records))
        question = _Question(worker, number, records, missing, running)
        failed = any(record.failed for record in records)
        if failed and self._is_news(question):
            # What it asks for was cancelled together with it: it hears the latter.
            self._send(question, None)
            return
        if failed or not missing:
            self._send(question, self._outcomes(question))
            return
        self._ask(question, timeout_s, self._get_progress, self._outcomes)

    def on_wait(self, worker: WorkerProcess, message: Message) -> None:
        _, number, keys, num_returns, timeout_s, running = message
        records = self._records(keys)
        done = sum(record.outcome is not None for record in records)
        if worker.record.actor is not None and running > 0 and timeout_s is None:
            needed = num_returns - done
            fail_what_waits_for_itself(self._loom, worker.record, records, needed)
            done = sum(record.outcome is not None for record in records)
        question = _Question(worker, number, records, num_returns - done, running)
        if question.left <= 0:
            failed = any(record.failed for record in records)
            news = failed and self._is_news(question)  # as in ``on_get``
            self._send(question, None if news else self._done_keys(question))
            return
        self._ask(question, timeout_s, self._wait_progress, self._done_keys)

    def _is_news(self, question: _Question) -> bool:
        """True when the task that asks is to stop, and no answer has told it so."""
        node = question.worker.record.node_at(max(question.running, 0))
        if node is None or node.cancel_told:
            return False
        if node.state is NodeState.ASSIGNED and not node.overdue:
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
        self.open[question.worker, question.number] = question
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
        if question.seq >= 0:
            self._loom.on_unblocked(question.worker.record, question.running, question.seq)

    def _close(self, question: _Question) -> None:
        question.on_done_call = _ignore
        self.open.pop((question.worker, question.number), None)
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
            question.on_done_call = self._notice
            self.open[worker, number] = question
            if seq >= 0:  # a coroutine waits: its task is blocked as if it had called get
                self._loom.on_blocked(worker.record, 0, seq)
            attach(question)

    def on_unwatch(self, worker: WorkerProcess, message: Message) -> None:
        question = self.open.get((worker, message[1]))
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

    # -- who waits ----------------------------------------------------------------------------

    def waits(self) -> list[Wait]:
        """The tasks that wait, and for what."""
        found: list[Wait] = []
        for question in self.open.values():
            worker = question.worker.record
            running = question.running
            seq = question.seq if running in (0, -1) else max(running, -1 - running)
            final = running != 0 and question.timer is None
            if running < 0 and worker.kind is WorkerKind.LOOP:
                nodes = list(worker.inflight.values())  # none of them moves while one blocks
            elif seq in worker.inflight:
                nodes = [worker.inflight[seq]]
            else:
                continue
            found += [
                Wait(node=node, records=question.asked, final=final, question=question)
                for node in nodes
            ]
        # A final wait is all that its task does, whatever its other threads wait for.
        return sorted(found, key=lambda wait: wait.final)

    def fail(self, question: object, failure: Failure) -> None:
        """Have a wait end with an error, which concerns that wait only."""
        assert isinstance(question, _Question)
        self._answer(question, failure)

    # -- the end of those who ask -------------------------------------------------------------

    def on_interrupted(self, worker: WorkerProcess, seq: int) -> None:
        """A task was told to stop while its main thread waits: None tells it so."""
        for question in [q for (w, _), q in self.open.items() if w is worker]:
            if question.running == seq and self._is_news(question):
                self._answer(question, None)

    def on_forced(self, worker: WorkerProcess, seq: int) -> None:
        """A task is about to be ended with its process: it goes on waiting until then."""
        for question in [q for (w, _), q in self.open.items() if w is worker]:
            if question.running == seq:
                self._unblock(question)

    def on_worker_gone(self, worker: WorkerProcess) -> None:
        for question in [q for (w, _), q in self.open.items() if w is worker]:
            self._close(question)

    def _records(self, keys: Sequence[int]) -> list[ObjectRecord]:
        objects = self._loom.graph.objects
        return [objects.get(key) or lost(key) for key in keys]
