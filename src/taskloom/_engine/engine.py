"""The engine: owns the loom and the pool, listens to workers, carries out the loom's verbs.

Everything here runs in the engine's thread.  Callers come in through the portal, workers through
their streams; after each batch of events ``settle`` makes one scheduling pass and one write per
worker.  The loom decides, this module talks.
"""

from __future__ import annotations

import math
import sys
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any

from taskloom import _ids
from taskloom._config import Config
from taskloom._core.node import Node, ObjectRecord, WorkerKind, WorkerRecord
from taskloom._core.reactor import Reactor
from taskloom._core.resources import Ledger, describe, session_total
from taskloom._engine.backlog import Backlog
from taskloom._engine.printer import Printer
from taskloom._engine.requests import Requests
from taskloom._engine.submissions import node_from_worker, spec_from_worker
from taskloom._engine.waiters import Subscriber, Waiter, Wakeups, attach, detach
from taskloom._pool.pool import Pool
from taskloom._pool.process import WorkerProcess
from taskloom._pool.zygote_handle import Surroundings
from taskloom._wire import messages as m
from taskloom._wire.frames import Message
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom.exceptions import (
    NestedDepthError,
    SessionClosedError,
    TaskCancelledError,
    TaskUnschedulableError,
    WorkerCrashedError,
    WorkerStartupError,
)

FIRST_WORKERS = 2
"""Started before anybody asks; the others come with demand."""
_ANSWERS = frozenset({m.DONE, m.FAILED})
PROGRESS_CHECK_S = 0.005
"""How long a task may stand behind another one that turns out to be long."""


class Engine:
    """One session's engine.

    Args:
        config: of the session.
        session_id: 12 random bytes.
        facts: what workers are told about the session.
        surroundings: what workers take over from the driver.
        printer: brings their output to the driver's streams.
    """

    def __init__(
        self,
        config: Config,
        session_id: bytes,
        facts: dict[str, Any],
        surroundings: Surroundings,
        printer: Printer,
    ) -> None:
        self._config = config
        self._session_id = session_id
        self._printer = printer
        self.loom = Reactor(
            Ledger(session_total(config), config.gpu_ids),
            self,
            max_processes=max(1, math.ceil(config.num_cpus)) + config.max_extra_workers,
        )
        self._pool = Pool(config, facts, surroundings, self)
        self.wakeups = Wakeups()
        self._dirty: set[WorkerProcess] = set()
        self._loop: AbstractEventLoop | None = None
        self._requests: Requests | None = None
        self._progress_timer = False
        self._closing = False
        self._collector = Backlog()
        self.count_inbox: Callable[[], int] = lambda: 0  # calls that are still on their way here
        self._broken: Failure | None = None  # workers cannot be started: why
        self._handlers: dict[int, Callable[[WorkerProcess, Message], None]] = {}

    # -- life ---------------------------------------------------------------------------------

    def start_processes(self) -> None:
        """Start the zygote and the first workers; needs no loop yet."""
        self._pool.start_zygote()
        self._pool.start_workers(WorkerKind.PROCESS, min(FIRST_WORKERS, int(self._config.num_cpus)))

    def attach(self, loop: AbstractEventLoop) -> None:
        """Start to listen on ``loop``."""
        self._loop = loop
        self._requests = requests = Requests(self.loom, loop, self.post, self.settle)
        self._handlers = {
            m.READY: self._on_ready,
            m.RETURNED: self._on_returned,
            m.FUNCTION: self._on_function,
            m.SPEC: self._on_spec,
            m.FORGET_FUNCTION: lambda w, msg: w.functions.pop(msg[1], None),  # type: ignore[dict-item]
            m.FORGET_SPEC: lambda w, msg: w.specs.pop(msg[1], None),  # type: ignore[dict-item]
            m.SUBMIT: self._on_submit,
            m.PUT: self._on_put,
            m.GET: requests.on_get,
            m.WAIT: requests.on_wait,
            m.WATCH: requests.on_watch,
            m.UNWATCH: requests.on_unwatch,
            m.BORROW: lambda w, msg: self.loom.on_borrow(w.record, msg[1]),
            m.RELEASE: lambda w, msg: self.loom.on_release(w.record, msg[1]),
            m.CANCEL: lambda _, msg: self.loom.on_cancel(msg[1], force=msg[2], recursive=msg[3]),
            m.PIN: self._on_pin,
            m.ABANDON: self._on_abandon,
            m.QUERY: self._on_query,
        }
        self._pool.attach(loop)
        self.settle()

    def close(self) -> None:
        """End everything: pending refs get SessionClosedError, processes are gone on return."""
        self._closing = True
        self._broken = system_failure(SessionClosedError("the session was shut down"))
        for node in list(self.loom.graph.nodes.values()):
            self.loom.graph.fail(node, self._broken, "shutdown")
        self.wakeups.deliver()
        self._collector.note(0)
        self._pool.close()

    def close_fds_after_fork(self) -> None:
        """In a forked child of the driver: its copies must not keep workers alive."""
        self._pool.close_fds_after_fork()

    # -- what callers post --------------------------------------------------------------------

    def submit(self, node: Node) -> None:
        if node.nested:
            node.nested = self._records_of(node.nested)
        self._submit(node)

    def put(self, entry: tuple[ObjectRecord, Any, tuple[int, ...]]) -> None:
        self.loom.on_put(*entry)

    def borrow(self, record: ObjectRecord) -> None:
        record.holds += 1

    def borrow_key(self, key: int) -> ObjectRecord | None:
        """One more reason to keep the object ``key``; None when it is not kept any more."""
        record = self.loom.graph.objects.get(key)
        if record is not None:
            record.holds += 1
        return record

    def release(self, record: ObjectRecord) -> None:
        self.loom.graph.release(record)

    def abandon(self, record: ObjectRecord) -> None:
        if self._config.await_cancels:
            record.abandoned = True

    def cancel(self, entry: tuple[int, bool, bool]) -> None:
        key, force, recursive = entry
        self.loom.on_cancel(key, force=force, recursive=recursive)

    def watch(self, waiter: Waiter) -> None:
        attach(waiter)

    def unwatch(self, waiter: Waiter) -> None:
        detach(waiter)

    def subscriber(
        self,
        records: list[ObjectRecord],
        callback: Callable[[int], None],
        loop: AbstractEventLoop | None,
    ) -> Subscriber:
        return Subscriber(records, callback, loop, self.wakeups)

    def _submit(self, node: Node) -> None:
        if self._broken is not None:
            self.loom.graph.add(node)
            self.loom.graph.fail(node, self._broken, "workers cannot be started")
        else:
            self.loom.on_submit(node)

    def _records_of(self, keys: Any) -> tuple[ObjectRecord, ...]:
        objects = self.loom.graph.objects
        return tuple(objects[key] for key in keys if key in objects)

    # -- after each batch of events -----------------------------------------------------------

    def settle(self) -> None:
        """One scheduling pass, one write per worker, one call per foreign loop."""
        self.note_backlog()
        if self._closing:  # the pool is gone: late callers only hear so
            self.wakeups.deliver()
            return
        try:
            self.loom.schedule()
        finally:  # whatever went wrong in there, what was decided before it goes out
            dirty, self._dirty = self._dirty, set()
            for worker in dirty:
                worker.flush()
                if not self._progress_timer and len(worker.record.inflight) > 1:
                    self._progress_timer = True
                    assert self._loop is not None
                    self._loop.call_later(PROGRESS_CHECK_S, self._check_progress)
            self.wakeups.deliver()

    def note_backlog(self) -> None:
        """Look how long the queue is; submitting threads do so, too, when they run ahead."""
        self._collector.note(len(self.loom.graph.nodes) + self.count_inbox())

    def post(self, worker: WorkerProcess, message: Message) -> None:
        """Have a message sent on the worker's data stream at the end of this tick."""
        worker.posted.append(message)
        self._dirty.add(worker)

    def _check_progress(self) -> None:
        self._progress_timer = False
        if self.loom.check_progress():
            self._progress_timer = True
            assert self._loop is not None
            self._loop.call_later(PROGRESS_CHECK_S, self._check_progress)

    # -- what workers say (the pool's Owner) --------------------------------------------------

    def on_batch(self, worker: WorkerProcess, batch: list[Message]) -> None:
        loom, record = self.loom, worker.record
        self._dirty.add(worker)
        drained = False
        for message in batch:
            op = message[0]
            if op in _ANSWERS:
                if not drained:
                    drained = True
                    worker.drain_output()
                if op == m.FAILED:
                    _, seq, error, retry, seconds = message
                    loom.on_failed(record, seq, error, retry=retry, seconds=seconds)
                    continue
                _, seq, outcome, contained, seconds = message
                if type(outcome) is list:
                    loom.on_done(record, seq, outcome, contained, seconds)
                else:
                    loom.on_done(record, seq, (outcome,), (contained,), seconds)
            else:
                self._handlers[op](worker, message)
        if not record.inflight:
            assert self._loop is not None
            worker.idle_since = self._loop.time()
        self.settle()

    def on_line(self, worker: WorkerProcess, stream: int, speaker: str, line: str) -> None:
        if self._config.log_to_driver:
            name = self._pool.speaker_name(worker, speaker)
            self._printer.push(stream, self._prefix(name, worker.pid, stream) + line)

    def _prefix(self, name: str, pid: int, stream: int) -> str:
        if not self._config.worker_log_prefix:
            return ""
        color = self._config.color_prefix
        if color is None:
            target = sys.stdout if stream == 1 else sys.stderr
            color = target is not None and not target.closed and target.isatty()
        return f"\x1b[36m({name} pid={pid})\x1b[0m " if color else f"({name} pid={pid}) "

    def on_worker_gone(self, worker: WorkerProcess) -> None:
        assert self._requests is not None
        self._dirty.discard(worker)
        self._requests.on_worker_gone(worker)
        started = self._pool.started_seq(worker)

        def crash(node: Node) -> Failure:
            return system_failure(WorkerCrashedError(_crash_text(worker, node)))

        if worker.record.number in self.loom.workers:
            self.loom.on_worker_lost(worker.record, started, crash)
        self._pool.on_gone(worker)
        self.settle()

    def on_cannot_start(self, text: str) -> None:
        """The pool gave up."""
        self.fail_everything(text)
        self.settle()

    def fail_everything(self, text: str) -> None:
        """Nothing can run in this session, now or later; ``text`` says why."""
        self._broken = system_failure(WorkerStartupError(text))
        for node in list(self.loom.graph.nodes.values()):
            self.loom.graph.fail(node, self._broken, "workers cannot be started")

    def _on_ready(self, worker: WorkerProcess, _message: Message) -> None:
        self._pool.on_ready(worker)
        self.loom.on_worker_ready(worker.record)

    def _on_returned(self, worker: WorkerProcess, message: Message) -> None:
        self.loom.on_returned(worker.record, message[1], message[2])

    def _on_function(self, worker: WorkerProcess, message: Message) -> None:
        worker.functions[message[1]] = message[2]

    def _on_spec(self, worker: WorkerProcess, message: Message) -> None:
        worker.specs[message[1]] = spec_from_worker(worker, message)

    def _on_submit(self, worker: WorkerProcess, message: Message) -> None:
        node = node_from_worker(worker, message, self.loom.graph.objects)
        for record in node.outputs:
            worker.record.borrowed[record.key] = record
        self._submit(node)

    def _on_put(self, worker: WorkerProcess, message: Message) -> None:
        _, key, payload, contained = message
        record = ObjectRecord(key)
        worker.record.borrowed[key] = record
        self.loom.on_put(record, payload, contained)

    def _on_pin(self, _worker: WorkerProcess, message: Message) -> None:
        self.borrow_key(message[1])

    def _on_abandon(self, _worker: WorkerProcess, message: Message) -> None:
        record = self.loom.graph.objects.get(message[1])
        if record is not None:
            self.abandon(record)

    def _on_query(self, worker: WorkerProcess, message: Message) -> None:
        _, number, name, key, running = message
        facts: object
        if name == "withdraw":
            facts = self.loom.on_withdraw(key)
        elif name == "cluster_resources":
            facts = self.loom.ledger.describe_total()
        else:
            facts = self.loom.ledger.describe_free()
        reply = (m.REPLY, number, 0, facts)
        if running > 0:
            self.post(worker, reply)
        else:
            worker.control.send([reply])

    # -- the loom's verbs (its Outbox) --------------------------------------------------------

    def run(self, worker: WorkerRecord, node: Node) -> None:
        process = self._pool.by_number[worker.number]
        spec = node.spec
        introductions = process.known.introduce_downwards(spec)
        if introductions:
            process.posted.extend(introductions)
        allocation = node.allocation or worker.lease
        devices = None
        if allocation is not None and allocation.devices:
            devices = self.loom.ledger.device_ids(allocation)
        self.post(
            process,
            (
                m.RUN, node.seq, node.key, node.attempt, spec.number, node.args, node.holes,
                _fills(node) if node.deps else None,
                node.context, devices,
            ),
        )  # fmt: skip

    def resolve(self, record: ObjectRecord) -> None:
        waiters = record.waiters
        if waiters is not None:
            record.waiters = None
            for waiter in waiters:
                waiter.on_done(record)

    def start_workers(self, kind: WorkerKind, count: int) -> None:
        self._pool.start_workers(kind, count)

    def take_back(self, worker: WorkerRecord) -> None:
        self._pool.by_number[worker.number].control.send([(m.TAKE_BACK, worker.seq)])

    def interrupt(self, worker: WorkerRecord, seq: int, *, force: bool) -> None:
        process = self._pool.by_number[worker.number]
        if force and worker.kind is WorkerKind.PROCESS and self._pool.started_seq(process) == seq:
            process.kill()
            return
        process.control.send([(m.INTERRUPT, seq)])
        assert self._requests is not None
        self._requests.on_interrupted(process, seq)

    def report_unseen(self, record: ObjectRecord, name: str) -> None:
        if self._config.ignore_unhandled_errors or self._closing:
            return
        failure = record.outcome
        self._printer.push(
            2,
            lambda: (
                "Unhandled error (suppress with 'TASKLOOM_IGNORE_UNHANDLED_ERRORS=1'): "
                f"{failure.revive()}"
            ),
        )

    def unschedulable(self, node: Node) -> Failure:
        return system_failure(
            TaskUnschedulableError(
                f"the task {node.spec.name} asks for {describe(node.spec.request)}, but this "
                f"session has only {self.loom.ledger.describe_total()}: it can never run"
            )
        )

    def cancelled(self, node: Node) -> Failure:
        task_id = self.task_id(node.key)
        return system_failure(TaskCancelledError(task_id))

    def too_deep(self, node: Node) -> Failure:
        limit = self._config.max_extra_workers
        return system_failure(
            NestedDepthError(
                f"the task {node.spec.name} cannot start: all worker processes, {limit} more than "
                "there are CPUs, belong to tasks that wait in get() for others; raise "
                "init(max_extra_workers=...) or return refs instead of waiting for them"
            )
        )

    def task_id(self, key: int) -> str:
        return _ids.task_bytes(self._session_id, key).hex()


def _fills(node: Node) -> list[Any]:
    """The values of the dependencies; a key for the one that the task before will make."""
    return [dep.key if dep.outcome is None else dep.outcome for dep in node.deps]


def _crash_text(worker: WorkerProcess, node: Node) -> str:
    budget = node.spec.max_retries
    text = (
        f"worker {worker.pid} {worker.how_it_ended()} while it ran {node.spec.name} "
        f"(attempt {node.attempt} of {'any number' if budget < 0 else budget + 1})"
    )
    lines = worker.last_error_lines()
    if lines:
        text += "; the last lines of its stderr:\n  " + "\n  ".join(lines)
    return text
