"""The engine: owns the loom and the pool, listens to workers, carries out the loom's verbs.

Everything here runs in the engine's thread.  Callers come in through the portal, workers through
their streams; after each batch of events ``settle`` makes one scheduling pass and one write per
worker.  The loom decides, this module talks.
"""

from __future__ import annotations

import math
from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from taskloom import _ids
from taskloom._config import Config
from taskloom._core.alarms import Alarm
from taskloom._core.graph import node_from
from taskloom._core.node import Node, ObjectRecord, PlainCall, WorkerKind, WorkerRecord
from taskloom._core.reactor import Reactor
from taskloom._core.resources import Allocation, Ledger, session_total
from taskloom._engine import verdicts
from taskloom._engine.actor_desk import ActorDesk
from taskloom._engine.backlog import Backlog
from taskloom._engine.diagnosis import Diagnosis
from taskloom._engine.doorbells import forget_closed
from taskloom._engine.forced_cancels import ForcedCancels
from taskloom._engine.groups import Groups
from taskloom._engine.mail import Mail
from taskloom._engine.memory_monitor import MemoryMonitor
from taskloom._engine.memory_report import CreationSites, memory_report
from taskloom._engine.memory_usage import MemoryUsage
from taskloom._engine.printer import Printer, line_prefix
from taskloom._engine.requests import Requests
from taskloom._engine.short_cut import ShortCut
from taskloom._engine.storage import Storage
from taskloom._engine.stream_desk import StreamDesk
from taskloom._engine.timers import Timers
from taskloom._engine.waiters import Gatherer, Sleepers, Waiter, Wakeups, attach, detach
from taskloom._memory import MemoryReport
from taskloom._pool.pool import Pool
from taskloom._pool.process import WorkerProcess
from taskloom._pool.zygote_process import Surroundings, ZygoteProcess
from taskloom._spec import TaskSpec
from taskloom._wire import messages as m
from taskloom._wire.frames import Message
from taskloom._wire.remote_errors import Failure, cancelled_failure, system_failure
from taskloom.exceptions import SessionClosedError, WorkerStartupError

FIRST_WORKERS = 2
"""Started before anybody asks; the others come with demand."""
PROGRESS_CHECK_S = 0.002
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
        self.wakeups = Wakeups()
        self.sleepers = sleepers = Sleepers(self.wakeups)
        self.resolve, self.resolve_all = sleepers.resolve, sleepers.resolve_all
        self.loom = Reactor(
            Ledger(session_total(config), config.gpu_ids),
            self,
            max_processes=max(1, math.ceil(config.num_cpus)) + config.max_extra_workers,
            grace_s=config.cancel_grace,
        )
        self.storage = Storage(config, self.loom.graph.objects, self.post, session_id)
        try:
            self._pool = Pool(config, facts, surroundings, self.storage.store.arena, self)
        except OSError:
            self.storage.close()
            raise
        self.groups = Groups(self.loom)
        self.streams = StreamDesk(self.loom, self.storage)
        self._memory = MemoryMonitor(
            config.memory_monitor, self.loom, self._pool, MemoryUsage(), self._tell
        )
        self.actors = desk = ActorDesk(
            self.loom, self._pool, self.groups, session_id, self.post, self._warn
        )
        # The loom's verbs for actors (see ``_core/outbox``): the desk carries them out.
        self.stop_actor, self.expect_end = desk.stop_actor, desk.expect_end
        self.actor_died, self.actor_unavailable = desk.died, desk.unavailable
        self.actor_unschedulable, self.self_wait = desk.unschedulable, desk.self_wait
        self.many_calls = desk.many_calls
        self.sites = CreationSites()
        self._dirty: set[WorkerProcess] = set()
        self._loop: AbstractEventLoop | None = None
        self._requests: Requests | None = None
        self._forced: ForcedCancels | None = None
        self._timers: Timers | None = None
        self._diagnosis: Diagnosis | None = None
        self._progress_timer = False
        self._closing = False
        self._collector = Backlog()
        self.count_inbox: Callable[[], int] = lambda: 0  # calls that are still on their way here
        self.short_cut = ShortCut(
            self.loom, self._pool, self.submit, self.take_calls, desk.call, self._on_handed_over
        )
        self.recall = self.short_cut.recall
        self._broken: Failure | None = None  # workers cannot be started: why
        self._mail: Mail | None = None

    # -- life ---------------------------------------------------------------------------------

    def start_processes(self, zygote: ZygoteProcess) -> None:
        """Start the first workers from a new zygote; needs no loop yet."""
        self._pool.start_zygote(zygote)
        self._pool.start_workers(WorkerKind.PROCESS, min(FIRST_WORKERS, int(self._config.num_cpus)))

    def attach(self, loop: AbstractEventLoop) -> None:
        """Start to listen on ``loop``."""
        self._loop = loop
        self._forced = ForcedCancels(loop, self._pool.started_seq)
        self._requests = requests = Requests(self.loom, loop, self.post, self.settle)
        self._timers = Timers(loop, self.loom.on_alarm, self.settle)
        self._diagnosis = Diagnosis(self.loom, requests, self._pool, loop, self._warn, self.settle)
        self._mail = Mail(self, self._pool, requests)
        self.storage.attach(loop)
        self._memory.attach(loop)
        self.actors.attach(loop)
        self._pool.attach(loop)
        self.settle()

    def close(self) -> None:
        """End everything: pending refs get SessionClosedError, processes are gone on return."""
        self._closing = True
        if self._diagnosis is not None:
            self._diagnosis.close()
        self._broken = system_failure(SessionClosedError("the session was shut down"))
        self.actors.broken = self._broken
        self.loom.fail_everything(self._broken, "shutdown")
        if self._timers is not None:
            self._timers.close()
        self.loom.scopes.fail_all(self._broken)
        self.wakeups.deliver()
        forget_closed()
        self._collector.note(0)
        self._pool.close()
        self.storage.close()

    def close_fds_after_fork(self) -> None:
        """In a forked child of the driver: its copies must not keep workers alive."""
        self._pool.close_fds_after_fork()
        self.storage.close_fds_after_fork()

    def memory(self) -> MemoryReport:
        """All objects, and who keeps them."""
        pids = {number: worker.pid for number, worker in self._pool.by_number.items()}
        return memory_report(self.loom, self.storage, self._session_id, pids, self.sites)

    # -- what callers post --------------------------------------------------------------------

    def submit(self, node: Node) -> None:
        if node.nested:
            node.nested = self._records_of(node.nested)
        self.enter(node)

    def take_bare(self, records: Sequence[ObjectRecord]) -> None:
        """Calls that need not be nodes are new, and small objects have lost a ref.

        Which is which can be seen: a call is its own producer until it is done.
        """
        if len(records) == 1:  # as the rest: a call on its own
            if records[0].producer is records[0]:
                self.take_calls(records)
            else:
                self.loom.graph.release_done(records)
            return
        calls = [record for record in records if record.producer is record]
        if len(calls) < len(records):
            self.loom.graph.release_done([r for r in records if r.producer is not r])
        if calls:
            self.take_calls(calls)

    def take_calls(self, calls: Sequence[Any]) -> None:
        """Take in calls that need not be nodes; they have the same parent, or none."""
        if self._broken is None:
            self.loom.calls.on_submit(calls)
            return
        for call in calls:
            self.enter(node_from(call))

    def enter(self, node: Node) -> None:
        """Take in a node of the driver or of a worker; in a session that is broken it fails."""
        if self._broken is None:
            self.loom.on_submit(node)
            return
        self.loom.graph.add(node)
        if node.scope is not None:
            node.scope.enter(node)
        self.loom.graph.fail(node, self._broken, "workers cannot be started")

    def put(self, entry: tuple[ObjectRecord, Any, tuple[int, ...]]) -> None:
        self.loom.on_put(*entry)

    def spread(self, entry: tuple[str, bytes, bool]) -> None:
        """Tell all workers of a registration; those that start later, too, if it is to be kept."""
        name, blob, keep = entry
        message = (m.SERIALIZER, blob)
        self._pool.greetings.pop(name, None)
        if keep:
            self._pool.greetings[name] = message
        for worker in self._pool.by_number.values():
            self.post(worker, message)

    def borrow(self, record: ObjectRecord) -> None:
        record.holds += 1
        if record.holds == 1:  # its last ref's release stood before this in the inbox: it is back
            self.loom.graph.objects[record.key] = record

    def borrow_key(self, key: int) -> ObjectRecord | None:
        """One more reason to keep the object ``key``; None when it is not kept any more."""
        record = self.loom.graph.objects.get(key)
        if record is not None:
            record.holds += 1
        return record

    def abandon(self, record: ObjectRecord) -> None:
        if self._config.await_cancels:
            self.loom.graph.abandoned.add(record)
            record.seen = True  # also an error that is just on its way

    def cancel(self, entry: tuple[int, bool, bool]) -> None:
        key, force, recursive = entry
        self.loom.on_cancel(key, force=force, recursive=recursive)

    def gather(self, gatherer: Gatherer) -> None:
        gatherer.begin()

    def ungather(self, gatherer: Gatherer) -> None:
        gatherer.end()

    def watch(self, waiter: Waiter) -> None:
        attach(waiter)

    def unwatch(self, waiter: Waiter) -> None:
        detach(waiter)

    def _records_of(self, keys: Any) -> tuple[ObjectRecord, ...]:
        objects = self.loom.graph.objects
        return tuple(objects[key] for key in keys if key in objects)

    # -- after each batch of events -----------------------------------------------------------

    def settle(self) -> None:
        """One scheduling pass, one write per worker, one call per foreign loop."""
        pending = self.loom.graph.count_pending() + self.count_inbox()
        if pending >= self._collector.limit or self._collector.frozen:
            self._collector.note(pending)
        if self._closing:  # the pool is gone: late callers only hear so
            self.wakeups.deliver()
            return
        self.recall()
        try:
            self.loom.schedule()
        finally:  # whatever went wrong in there, what was decided before it goes out
            dirty = self._dirty
            if dirty and self._memory.idle:
                self._memory.begin()
            while dirty:
                worker = dirty.pop()
                worker.flush()
                assert self._loop is not None
                worker.active_at = self._loop.time()
                if not self._progress_timer and worker.record.load > 1:
                    self._progress_timer = True
                    self._loop.call_later(PROGRESS_CHECK_S, self._check_progress)
            self.short_cut.offer()
            wakeups = self.wakeups
            if wakeups.threads or wakeups.loops:
                wakeups.deliver()

    def note_backlog(self) -> None:
        """Look how long the queue is; submitting threads do so, too, when they run ahead."""
        self._collector.note(self.loom.graph.count_pending() + self.count_inbox())

    def post(self, worker: WorkerProcess, message: Message) -> None:
        """Have a message sent on the worker's data stream at the end of this tick."""
        worker.posted.append(message)
        self._dirty.add(worker)

    def _on_handed_over(self, worker: WorkerProcess) -> None:
        """It was sent a call by the call's own caller."""
        assert self._loop is not None
        worker.active_at = self._loop.time()
        if self._memory.idle:
            self._memory.begin()

    def _check_progress(self) -> None:
        self._progress_timer = False
        if self.loom.check_progress():
            self._progress_timer = True
            assert self._loop is not None
            self._loop.call_later(PROGRESS_CHECK_S, self._check_progress)

    # -- what workers say (the pool's Owner) --------------------------------------------------

    def on_batch(self, worker: WorkerProcess, batch: list[Message]) -> None:
        assert self._mail is not None
        self.recall()
        self.short_cut.used = worker
        self._mail.read(worker, batch)
        if self._config.idle_worker_timeout is not None and not worker.record.load:
            assert self._loop is not None
            worker.idle_since = self._loop.time()
        if self._diagnosis is not None:
            self._diagnosis.note()
        self.settle()  # last of all: threads it wakes find the interpreter free

    def on_line(self, worker: WorkerProcess, stream: int, speaker: str, line: str) -> None:
        if self._config.log_to_driver:
            name = self._pool.speaker_name(worker, speaker)
            self._printer.push(stream, line_prefix(self._config, name, worker.pid, stream) + line)

    def on_worker_gone(self, worker: WorkerProcess) -> None:
        assert self._requests is not None
        self.recall()
        self.short_cut.forget(worker)
        self._dirty.discard(worker)
        self._requests.on_worker_gone(worker)
        self.streams.on_worker_gone(worker)
        started = self._pool.started_seq(worker)

        memory = self._memory
        cause = memory.cause_of_death(worker)

        def crash(node: Node) -> Failure:
            return verdicts.crashed(worker, node, cause, memory.retries)

        if worker.record.kind is WorkerKind.ACTOR and worker.record.number in self.loom.workers:
            self.actors.on_worker_gone(worker, started, cause.text)
        elif worker.record.number in self.loom.workers:
            retries = memory.retries if cause.is_memory else None
            self.loom.on_worker_lost(worker.record, started, crash, retries)
        self.storage.on_worker_gone(worker)
        self._pool.on_gone(worker)
        self.settle()
        if self._diagnosis is not None:
            self._diagnosis.note()

    def why(self, key: int, *, is_settled: bool = True) -> str:
        """What the object ``key`` waits for; not settled: something is going on just now."""
        if self._diagnosis is None:
            return "the session is starting"
        if is_settled and not self._closing:
            self.recall()
            self.loom.schedule()  # what only waits for the next pass waits for nothing
        return self._diagnosis.why(key)

    def on_cannot_start(self, text: str) -> None:
        """The pool gave up."""
        self.fail_everything(text)
        self.settle()

    def on_shortage(self, text: str) -> None:
        """The pool cannot start a worker for now, but there are others."""
        self._printer.push(
            2, f"taskloom: no further worker can be started, going on with those there are: {text}"
        )

    def fail_everything(self, text: str) -> None:
        """Nothing can run in this session, now or later; ``text`` says why."""
        self._broken = system_failure(WorkerStartupError(text))
        self.actors.broken = self._broken
        self.loom.fail_everything(self._broken, "workers cannot be started")

    # -- the loom's verbs (its Outbox) --------------------------------------------------------

    def run(self, worker: WorkerRecord, node: Node) -> None:
        process = self._pool.by_number[worker.number]
        spec = node.spec
        if node is self.short_cut.handed_over:
            self._dirty.add(process)
            return
        devices = self._introduce(process, spec, node.allocation or worker.lease)
        process.posted.append(
            (
                m.RUN, node.seq, node.key, node.attempt, spec.number, node.args, node.holes,
                node.fills() if node.deps else None, node.context, devices,
            ),
        )  # fmt: skip
        self._dirty.add(process)

    def run_calls(
        self,
        worker: WorkerRecord,
        first: int,
        calls: Sequence[PlainCall],
        payloads: list[bytes | None],
    ) -> None:
        process = self._pool.by_number[worker.number]
        spec = calls[0].spec
        devices = self._introduce(process, spec, worker.lease)
        keys = [call.key - 1 for call in calls]
        process.posted.append((m.RUN_MANY, first, keys, spec.number, payloads, devices))
        self._dirty.add(process)

    def _introduce(
        self, process: WorkerProcess, spec: TaskSpec, allocation: Allocation | None
    ) -> object:
        """Tell a worker of a spec if need be; the devices that its call is shown."""
        if spec is not process.known.latest:
            process.posted.extend(process.known.introduce_downwards(spec))
        if allocation is None or not allocation.devices:
            return None
        return self.loom.ledger.device_ids(allocation)

    def start_workers(self, kind: WorkerKind, count: int) -> None:
        self._pool.start_workers(kind, count)

    def take_back(self, worker: WorkerRecord) -> None:
        process = self._pool.by_number[worker.number]
        told = self._pool.note_told(process)
        process.control.send([(m.TAKE_BACK, worker.seq, told)])

    def warn(self, worker: WorkerRecord) -> None:
        self._pool.note_told(self._pool.by_number[worker.number])

    def interrupt(self, worker: WorkerRecord, seq: int, *, force: bool) -> None:
        process = self._pool.by_number[worker.number]
        assert self._requests is not None
        assert self._forced is not None
        force = force and worker.kind is WorkerKind.PROCESS
        process.control.send([(m.INTERRUPT, seq, force, self._pool.note_told(process))])
        if force:
            self._forced.add(process, seq)
            self._requests.on_forced(process, seq)
        elif worker.kind is not WorkerKind.ACTOR:  # calls of actors are told, not interrupted
            self._requests.on_interrupted(process, seq)

    def kill(self, worker: WorkerRecord, why: str) -> None:
        process = self._pool.by_number[worker.number]
        process.killed_because = why
        process.kill()

    def wake_later(self, alarm: Alarm, delay_s: float) -> None:
        assert self._timers is not None
        self._timers.set(alarm, delay_s)

    def forget_alarm(self, alarm: Alarm) -> None:
        assert self._timers is not None
        self._timers.forget()

    def ran_s(self, worker: WorkerRecord, node: Node) -> float | None:
        if worker.kind is WorkerKind.LOOP or (worker.actor and not worker.actor.facts.is_serial):
            began = node.alarm.began if node.alarm is not None else None
        else:
            began = self._pool.began(self._pool.by_number[worker.number], node.seq)
        return None if began is None else monotonic() - began

    def _warn(self, text: str) -> None:
        self._printer.push(2, f"taskloom: {text}")

    def _tell(self, line: str) -> None:
        """A line of the engine's own, on the driver's stderr."""
        if self._config.log_to_driver:
            self._printer.push(2, line)

    def report_unseen(self, record: ObjectRecord, name: str) -> None:
        if self._config.ignore_unhandled_errors or self._closing:
            return
        failure = record.outcome
        self._printer.push(2, lambda: verdicts.unseen(failure))

    def unschedulable(self, node: Node) -> Failure:
        return verdicts.unschedulable(node, self.loom.ledger.describe_total())

    def cancelled(self, node: Node) -> Failure:
        return cancelled_failure(self.task_id(node.key))

    timed_out = staticmethod(verdicts.timed_out)
    contradicted = staticmethod(verdicts.contradicted)

    def too_deep(self, node: Node) -> Failure:
        return verdicts.too_deep(node, self._config.max_extra_workers, self._pool.shortage)

    def task_id(self, key: int) -> str:
        return _ids.task_bytes(self._session_id, key).hex()
