"""A whole session in one thread: workers that keep the protocol, and streams that take their time.

``World`` is a ``Core`` with workers that behave as real ones do, and with the engine's own
``Requests``.  What is sent lies in a stream until somebody has it delivered: streams of different
workers, and the two streams down to one worker, are independent of each other.  So every race that
the real thing can have can be had here, and all of them on purpose.

Who drives it decides what happens next: ``test_loom_machine`` picks steps one by one,
``loom_simulation`` lets a virtual clock run.  ``loom_judge`` looks on.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from loom_driver import PROCESS, SHORT_S, Core, RecordingOutbox, Trouble, record_of
from loom_judge import Judge
from loom_worker import Message, Stream, Worker, value_of

from taskloom._core.alarms import Alarm
from taskloom._core.node import Node, ObjectRecord, WorkerKind, WorkerRecord
from taskloom._core.states import TERMINAL
from taskloom._engine.requests import Requests
from taskloom._ids import INDEX_BITS
from taskloom._wire import messages as m


class Timer:
    """What ``Clock.call_later`` returns, as a loop does."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call: Callable[..., object] | None = call

    def cancel(self) -> None:
        self._call = None

    def fire(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


class Clock:
    """Virtual time: it jumps to the next timer."""

    def __init__(self, tie: Callable[[], float] = lambda: 0.0) -> None:
        self.now = 0.0
        self._tie = tie  # the order of what happens at the same time
        self._timers: list[tuple[float, float, int, Timer]] = []
        self._count = 0

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> Timer:
        self._count += 1
        timer = Timer((lambda: call(*args)) if args else call)
        heapq.heappush(self._timers, (self.now + delay, self._tie(), self._count, timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Time goes by; what is due meanwhile happens, each at its moment."""
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.step()
        self.now = until

    def step(self) -> bool:
        """Fire the next timer; False when there is none."""
        if not self._timers:
            return False
        self.now, _, _, timer = heapq.heappop(self._timers)
        timer.fire()
        return True


class _Wires(RecordingOutbox):
    """Carries out what the loom asks for, by putting it into streams."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._rings: dict[int, tuple[Alarm, Timer]] = {}

    def run(self, worker: WorkerRecord, node: Node) -> None:
        self._world.judge.on_handed(worker, node)
        fills = [dep.key if dep.outcome is None else dep.outcome for dep in node.deps]
        self._world.by_number[worker.number].data.append((m.RUN, node.seq, node, fills))

    def take_back(self, worker: WorkerRecord) -> None:
        process = self._world.by_number[worker.number]
        process.told += 1
        process.control.append((m.TAKE_BACK, worker.seq, process.told))

    def warn(self, worker: WorkerRecord) -> None:
        self._world.by_number[worker.number].told += 1

    def interrupt(self, worker: WorkerRecord, seq: int, *, force: bool) -> None:
        process = self._world.by_number[worker.number]
        if force and worker.kind is PROCESS and process.noted == seq:
            self._world.on_kill_order(process)
            return
        process.told += 1
        process.control.append((m.INTERRUPT, seq, process.told))
        self._world.requests.on_interrupted(process, seq)  # type: ignore[arg-type]

    def kill(self, worker: WorkerRecord, why: str) -> None:
        self._world.on_kill_order(self._world.by_number[worker.number])

    def wake_later(self, alarm: Alarm, delay_s: float) -> None:
        def ring() -> None:
            self._world.loom.on_alarm(alarm)
            self._world.settle()

        timer = self._world.clock.call_later(delay_s, ring)
        self._rings[id(alarm)] = alarm, timer

    def forget_alarm(self, alarm: Alarm) -> None:
        self._rings.pop(id(alarm))[1].cancel()

    def ran_s(self, worker: WorkerRecord, node: Node) -> float | None:
        one, now = self._world.by_number[worker.number], self._world.clock.now
        if one.is_loop:
            began = node.alarm.began if node.alarm is not None else None
        else:
            began = one.began if one.noted == node.seq else None
        return None if began is None else now - began

    def start_workers(self, kind: WorkerKind, count: int) -> None:
        workers = self._world.workers
        starting = sum(w.record.kind is kind and not w.record.ready for w in workers)
        for _ in range(count - starting):
            self._world.spawn(kind)

    def resolve(self, record: ObjectRecord) -> None:
        self._world.judge.on_resolved(record)
        waiters, record.waiters = record.waiters, None
        for waiter in waiters or ():
            waiter.on_done(record)

    def report_unseen(self, record: ObjectRecord, name: str) -> None:
        assert record.failed or not record.producer


class World(Core):
    """A session of simulated workers; steps are taken by whoever drives it."""

    def __init__(
        self,
        *,
        cpus: float,
        max_processes: int,
        resources: dict[str, float],
        gpus: int = 0,
        clock: Clock | None = None,
        checks: bool = True,
        grace_s: float | None = None,
    ) -> None:
        self.workers: list[Worker] = []
        self.by_number: dict[int, Worker] = {}
        self.doomed: list[Worker] = []  # to be killed when the step is over
        self.clock = clock or Clock()
        super().__init__(
            cpus=cpus,
            max_processes=max_processes,
            resources=resources,
            gpus=gpus,
            outbox=_Wires(self),
            checks=checks,
            grace_s=grace_s,
        )
        self.judge = Judge(self.loom)
        self.requests = Requests(
            self.loom,
            self.clock,  # type: ignore[arg-type]  # has what is needed of a loop
            lambda worker, message: worker.data.append(message),  # type: ignore[attr-defined]
            self.settle,
        )
        requests = self.requests
        self._handlers: dict[int, Callable[[Any, Message], Any]] = {
            m.READY: lambda w, _: self.loom.on_worker_ready(w.record),
            m.DONE: self._on_done,
            m.FAILED: lambda w, msg: self.loom.on_failed(
                w.record, msg[1], msg[2], retry=msg[3], seconds=msg[4]
            ),
            m.BEGAN: lambda w, msg: self.loom.on_began(w.record, *msg[1:]),
            m.RETURNED: lambda w, msg: self.loom.on_returned(w.record, *msg[1:]),
            m.GET: requests.on_get,
            m.WAIT: requests.on_wait,
            m.WATCH: requests.on_watch,
            m.UNWATCH: requests.on_unwatch,
            m.BORROW: lambda w, msg: self.loom.on_borrow(w.record, msg[1]),
            m.RELEASE: lambda w, msg: self.loom.on_release(w.record, msg[1]),
            m.CANCEL: lambda _, msg: self.cancel_key(*msg[1:]),
            m.SUBMIT: lambda _, msg: msg[1](),
            m.ITEM: lambda w, msg: self.loom.streams.on_item(w.record, *msg[1:]),
            m.ITEM_ROOM: lambda w, msg: self.loom.streams.on_room(
                w.record, msg[1], msg[2], ObjectRecord(msg[3])
            ),
            m.PUT: lambda w, msg: self._put_by(w.record, *msg[1:]),
        }

    def spawn(self, kind: WorkerKind) -> Worker:
        self._numbers += 1
        worker = Worker(WorkerRecord(self._numbers, kind), self)
        self.workers.append(worker)
        self.by_number[self._numbers] = worker
        self.loom.on_worker_started(worker.record)
        self.on_spawned(worker)
        return worker

    def submit(self, deps: Iterable[Node | ObjectRecord] = (), **how: Any) -> Node:
        """As ``Core.submit``; whoever looks on is told first."""
        key = how.setdefault("key", 0) or self._mint.next_task()
        how["key"] = key
        deps = [record_of(dep) for dep in deps]
        parent = how.get("parent")
        returns = how.get("num_returns", 1)
        pace = how.get("pace")
        limited = pace is not None and pace.timeout_s is not None
        self.judge.on_submitted(
            key,
            returns,
            deps,
            parent,
            how.get("retries", 0),
            is_limited=limited,
            scope=how.get("scope"),
        )
        return super().submit(deps, **how)

    def enter(self, node: Node) -> None:
        """A new call; every second one that could is handed over by its caller."""
        spec, scheduler = node.spec, self.loom.scheduler
        worker = scheduler.idle_worker()
        if (
            worker is None
            or node.parent is not None
            or node.deps
            or node.nested
            or node.scope is not None
            or node.stream is not None
            or spec.pace is not None
            or spec.function.is_coroutine
            or len(node.outputs) != 1
            or any(name != "CPU" for name, _ in spec.request)
            or not self.loom.ledger.fits(spec.request)
            or node.key >> INDEX_BITS & 1
        ):
            super().enter(node)
        else:
            scheduler.on_handed_over(node, worker, worker.seq + 1)

    def put(self, *, contains: Iterable[Node | ObjectRecord] = ()) -> ObjectRecord:
        record = ObjectRecord(self._mint.next_task() + 1)
        self.refs[record] += 1
        self._put(record, [record_of(inner).key for inner in contains])
        return record

    def _on_done(self, worker: Worker, message: Message) -> None:
        _, seq, values, contained, seconds = message
        node = worker.nodes[seq]
        for record, keys in zip(node.outputs, contained, strict=True):
            if not is_over(node):
                self.judge.contained[record.key] = keys
        self.loom.on_done(worker.record, seq, values, contained, seconds)

    def _put_by(self, worker: WorkerRecord, key: int, contains: Sequence[int]) -> None:
        record = ObjectRecord(key)
        worker.borrowed[key] = record
        # A task that was ended while it ran does not keep what it was given any more.
        self._put(record, [inner for inner in contains if inner in self.loom.graph.objects])

    def _put(self, record: ObjectRecord, contains: Sequence[int]) -> None:
        value = value_of(record.key, ())
        self.judge.expected[record.key] = value
        self.judge.contained[record.key] = tuple(contains)
        self.loom.on_put(record, value, contains)
        self.check()

    def cancel(
        self, of: Node | ObjectRecord, *, force: bool = False, recursive: bool = True
    ) -> None:
        self.cancel_key(record_of(of).key, force, recursive)
        self.check()

    def cancel_key(self, key: int, force: bool, recursive: bool) -> None:
        hit = self.judge.on_cancel_asked(key, recursive=recursive)
        self.loom.on_cancel(key, force=force, recursive=recursive)
        for node in hit:
            assert is_over(node), f"{node!r} goes on though its parent was cancelled"

    def abandon(self, record: ObjectRecord) -> None:
        """An await of it was cancelled."""
        self.loom.graph.abandoned.add(record)
        self.judge.on_cancel_asked(record.key, recursive=True)

    # -- for those who drive ------------------------------------------------------------------

    def on_spawned(self, worker: Worker) -> None:
        """A worker is on its way; it says so when it is ready."""
        worker.up.append((m.READY, 0))

    def on_sent(self, worker: Worker, stream: Stream) -> None:
        """A message was put into a stream."""

    def on_begun(self, worker: Worker, seq: int) -> None:
        """A worker begins a task."""
        self.judge.on_begun(worker.record, worker.nodes[seq], seq)

    def on_interrupted(self, worker: Worker, seq: int) -> None:
        """The body of a task that was cancelled is interrupted, here."""
        worker.fail(seq, cancelled=True)

    def on_reply(self, worker: Worker, number: int, answer: Any) -> None:
        """A question is answered."""

    def on_notice(self, worker: Worker, number: int, key: int, outcome: Any) -> None:
        """An object that a coroutine awaits is done."""

    def on_kill_order(self, worker: Worker) -> None:
        """The driver sends SIGKILL."""
        self.doomed.append(worker)

    # -- steps --------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Time goes by."""
        self.clock.advance(seconds)

    def settle(self) -> None:
        """The end of each batch of events: a pass of the scheduler, and what was put off."""
        while self.doomed:
            worker = self.doomed.pop()
            if worker.alive:
                self.kill(worker)
        self.loom.schedule()
        self.check()

    def check_all(self) -> None:
        super().check_all()
        self.judge.check()

    def deliver_up(self, worker: Worker) -> None:
        """The driver hears what a worker has said first."""
        message = worker.up.popleft()
        self._handlers[message[0]](worker, message)

    def submit_child(self, worker: Worker, seq: int, deps: list[ObjectRecord], **kw: Any) -> int:
        """A task submits a call; the driver hears of it when the message is delivered."""
        key = self._mint.next_task()
        nested = kw.pop("nested", ())

        def submit() -> None:
            objects = self.loom.graph.objects
            alive = [dep for dep in deps if dep.key in objects]
            inner = [record for record in nested if record.key in objects]
            parent = worker.record.inflight.get(seq)
            self.submit(alive, parent=parent, by=worker.record, nested=inner, key=key, **kw)

        worker.post((m.SUBMIT, submit))
        worker.flush()
        return key

    def kill(self, worker: Worker) -> None:
        """A worker dies; what it had sent before is heard, the rest is lost."""
        worker.alive = False
        while worker.up:
            self.deliver_up(worker)
        record = worker.record
        self.judge.on_worker_died(record, worker.held, worker.nodes, worker.noted)
        self.requests.on_worker_gone(worker)  # type: ignore[arg-type]
        self.workers.remove(worker)
        if record.number in self.loom.workers:
            self.loom.on_worker_lost(record, worker.noted, lambda node: Trouble("crash", node.key))
        del self.by_number[record.number]

    # -- a kind world -------------------------------------------------------------------------

    def take_a_kind_step(self) -> bool:
        """Let one thing happen that has to happen sooner or later; False when there is none."""
        for worker in self.workers:
            if worker.up:
                self.deliver_up(worker)
            elif worker.control:
                worker.hear_control()
            elif worker.data and worker.reads_data():
                worker.hear_data()
            elif worker.can_end():
                worker.finish(worker.running[0], seconds=SHORT_S, hold=True)
            elif worker.can_start():
                worker.start()
            elif worker.held:
                worker.flush()
            else:
                continue
            self.settle()
            return True
        return False

    def run_kindly(self, most: int = 20_000) -> None:
        """From now on nothing bad happens: everything must come to an end by itself."""
        self.settle()
        for _ in range(most):
            if not self.take_a_kind_step() and not self.clock.step():
                return
        raise AssertionError(f"still going on after {most} steps")


def is_over(node: Node) -> bool:
    return node.state in TERMINAL
