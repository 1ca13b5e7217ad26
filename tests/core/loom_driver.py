"""Drives the loom by hand: no loop, no process, no clock.

``Core`` is a loom with a recording outbox, in which tests read like sentences.  After every step
all tables are compared (``invariants``), and beyond that the reasons to keep each object are
counted exactly, because here it is known which refs the driver has.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from taskloom._core import invariants
from taskloom._core.actor_invariants import held_objects
from taskloom._core.actor_record import ActorRecord
from taskloom._core.alarms import Alarm
from taskloom._core.node import (
    Node,
    ObjectRecord,
    PlainCall,
    WorkerKind,
    WorkerRecord,
    new_call,
)
from taskloom._core.reactor import Reactor
from taskloom._core.resources import Ledger
from taskloom._core.scopes import Scope
from taskloom._core.states import NodeState
from taskloom._core.streams import Stream
from taskloom._ids import Mint
from taskloom._options import UNITS_PER_RESOURCE
from taskloom._spec import Function, FunctionKey, Pace, TaskSpec

PROCESS, LOOP = WorkerKind.PROCESS, WorkerKind.LOOP
SHORT_S = 0.000_001
LONG_S = 1.0


class Trouble:
    """An outcome that is an error, as the core sees one."""

    def __init__(
        self, kind: str, origin: int = 0, *, cancelled: bool = False, inherited: bool = False
    ) -> None:
        self.kind = kind
        self.origin = origin  # key of the call that failed first
        self.cancelled = cancelled
        self.inherited = inherited
        self._twin: Trouble | None = None

    def inherit(self) -> Trouble:
        if self.inherited:
            return self
        if self._twin is None:
            self._twin = Trouble(self.kind, self.origin, cancelled=self.cancelled, inherited=True)
        return self._twin

    def __repr__(self) -> str:
        return f"<Trouble {self.kind} {self.origin:#x}>"


class Watch:
    """A waiter; ``told`` is filled with what is done."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.told: list[ObjectRecord] = []
        self._then = then

    def on_done(self, record: ObjectRecord) -> None:
        self.told.append(record)
        self._then()


class RecordingOutbox:
    """Writes down what the loom asks of the world, and does nothing of it."""

    def __init__(self) -> None:
        self.verbs: list[tuple[Any, ...]] = []
        self.now = 0.0  # the clock of the world
        self.numbers = 0
        self.alarms: list[tuple[float, int, Alarm]] = []
        self.began: dict[tuple[int, int], float] = {}  # (worker, seq): when

    def run(self, worker: WorkerRecord, node: Node) -> None:
        self.verbs.append(("run", worker, node))

    def resolve(self, record: ObjectRecord) -> None:
        waiters, record.waiters = record.waiters, None
        self.verbs.append(("resolve", record))
        for waiter in waiters or ():
            waiter.on_done(record)

    def run_calls(
        self,
        worker: WorkerRecord,
        first: int,
        calls: Sequence[PlainCall],
        payloads: list[bytes | None],
    ) -> None:
        assert payloads == [b"args"] * len(calls) > []
        self.verbs.append(("run_calls", worker, first, list(calls)))

    def resolve_all(self, records: Sequence[ObjectRecord]) -> None:
        for record in records:
            self.resolve(record)

    def start_workers(self, kind: WorkerKind, count: int) -> None:
        self.verbs.append(("start_workers", kind, count))

    def take_back(self, worker: WorkerRecord) -> None:
        self.verbs.append(("take_back", worker))

    def warn(self, worker: WorkerRecord) -> None:
        self.verbs.append(("warn", worker))

    def interrupt(self, worker: WorkerRecord, seq: int, *, force: bool) -> None:
        self.verbs.append(("interrupt", worker, seq, force))

    def kill(self, worker: WorkerRecord, why: str) -> None:
        self.verbs.append(("kill", worker, why))

    def wake_later(self, alarm: Alarm, delay_s: float) -> None:
        self.verbs.append(("wake_later", alarm, delay_s))
        self.numbers += 1
        heapq.heappush(self.alarms, (self.now + delay_s, self.numbers, alarm))

    def forget_alarm(self, alarm: Alarm) -> None:
        self.verbs.append(("forget_alarm", alarm))

    def ran_s(self, worker: WorkerRecord, node: Node) -> float | None:
        began = self.began.get((worker.number, node.seq))
        return None if began is None else self.now - began

    def report_unseen(self, record: ObjectRecord, name: str) -> None:
        self.verbs.append(("report_unseen", record, name))

    def unschedulable(self, node: Node) -> object:
        return Trouble("unschedulable", node.key)

    def cancelled(self, node: Node) -> object:
        return Trouble("cancelled", node.key, cancelled=True)

    def timed_out(self, node: Node) -> object:
        return Trouble("timed out", node.key)

    def too_deep(self, node: Node) -> object:
        return Trouble("too deep", node.key)

    def contradicted(self, node: Node) -> object:
        return Trouble("contradicted", node.key)

    def stop_actor(self, worker: WorkerRecord) -> None:
        self.verbs.append(("stop_actor", worker))

    def expect_end(self, worker: WorkerRecord) -> None:
        self.verbs.append(("expect_end", worker))

    def actor_died(self, actor: ActorRecord, why: str) -> object:
        return Trouble(f"died: {why}", actor.key)

    def actor_unavailable(self, actor: ActorRecord, why: str) -> object:
        return Trouble(f"unavailable: {why}", actor.key)

    def actor_unschedulable(self, actor: ActorRecord) -> object:
        return Trouble("actor unschedulable", actor.key)

    def many_calls(self, actor: ActorRecord, count: int) -> None:
        self.verbs.append(("many_calls", actor, count))

    def self_wait(self, node: Node) -> object:
        return Trouble("waits for itself", node.key)

    def said(self, verb: str) -> list[tuple[Any, ...]]:
        """What was asked with this verb so far, without the verb."""
        return [entry[1:] for entry in self.verbs if entry[0] == verb]


class Core:
    """A loom, and somebody who plays all of the world around it.

    Args:
        cpus: of the session.
        resources: of the session, besides CPUs.
        gpus: how many; their ids are "g0", "g1", ...
        max_processes: how many PROCESS workers there may be.
        starts_workers: workers that the loom asks for are there at once.
        checks: compare all tables after every step.
        grace_s: how long a task may take to end after it was told to.
    """

    def __init__(
        self,
        *,
        cpus: float = 1000,
        resources: Mapping[str, float] | None = None,
        gpus: int = 0,
        max_processes: int = 1000,
        starts_workers: bool = True,
        checks: bool = True,
        outbox: RecordingOutbox | None = None,
        grace_s: float | None = None,
    ) -> None:
        total: dict[str, float] = {"CPU": cpus, **(resources or {})}
        if gpus:
            total["GPU"] = gpus
        self.outbox = outbox or RecordingOutbox()
        self.ledger = Ledger(total, [f"g{index}" for index in range(gpus)])
        self.loom = Reactor(self.ledger, self.outbox, max_processes, grace_s)
        self.refs: Counter[ObjectRecord] = Counter()
        self.streams: list[Stream] = []
        self._starts_workers = starts_workers
        self._checks = checks
        self._mint = Mint(0)
        self._functions: dict[tuple[str, bool], Function] = {}
        self._specs: dict[tuple[Any, ...], TaskSpec] = {}
        self._numbers = 0
        self._idle: WorkerRecord | None = None  # has what is submitted now
        self._last_verb = 0  # up to where the verbs have been looked through
        self._last_order = 0

    # -- callers ------------------------------------------------------------------------------

    def submit(
        self,
        deps: Iterable[Node | ObjectRecord] = (),
        *,
        nested: Iterable[Node | ObjectRecord] = (),
        cpus: float = 1,
        needs: Mapping[str, float] | None = None,
        function: str = "f",
        coroutine: bool = False,
        priority: int = 0,
        retries: int = 0,
        num_returns: int = 1,
        pace: Pace | None = None,
        parent: Node | None = None,
        by: WorkerRecord | None = None,
        scope: Scope | None = None,
        key: int = 0,
        stream: int | None = None,
    ) -> Node:
        """One call; of the driver, or of a task that runs on the worker ``by``."""
        key = key or self._mint.next_task()
        spec = self._spec(
            function, coroutine, num_returns, cpus, tuple((needs or {}).items()), retries, priority,
            pace, stream,
        )  # fmt: skip
        outputs = tuple(ObjectRecord(key + 1 + index) for index in range(num_returns))
        # As the API does it: a ref that is given many times is one dependency.
        records = tuple(dict.fromkeys(record_of(dep) for dep in deps))
        node = Node(key, spec, b"args", None, records, outputs)
        node.nested = tuple(record_of(inner) for inner in nested)
        node.parent = parent
        node.scope = parent.scope if scope is None and parent is not None else scope
        node.depth = parent.depth + 1 if parent is not None else int(by is not None)
        if stream is not None:
            node.stream = Stream(outputs[0], stream)
            self.streams.append(node.stream)
        for record in outputs:
            if by is None:
                self.refs[record] += 1
            else:
                by.borrowed[record.key] = record
        self.enter(node)
        self.check()
        return node

    def _spec(self, *options: Any) -> TaskSpec:
        spec = self._specs.get(options)
        if spec is None:
            function, coroutine, num_returns, cpus, needs, retries, priority, pace, stream = options
            spec = self._specs[options] = TaskSpec(
                function=self._function(function, coroutine),
                name=function,
                num_returns=num_returns,
                request=request_of(cpus, dict(needs)),
                max_retries=retries,
                retry_exceptions=False,
                priority=priority,
                pace=pace,
                stream=stream,
            )
        return spec

    def call(self, *, cpus: float = 1, function: str = "f", retries: int = 0) -> PlainCall:
        """One call of the driver that is not a node."""
        (call,) = self.call_many(1, cpus=cpus, function=function, retries=retries)
        return call

    def call_many(
        self, count: int, *, cpus: float = 1, function: str = "f", retries: int = 0
    ) -> list[PlainCall]:
        """The same for several, which come together.  Nothing is checked: that unfolds them."""
        spec = self._spec(function, False, 1, cpus, (), retries, 0, None, None)
        calls = []
        for _ in range(count):
            call = new_call(PlainCall, self._mint.next_task() + 1, spec, b"args")
            self.refs[call] += 1
            calls.append(call)
        self.loom.calls.on_submit(calls)
        return calls

    def hand_call_over(self, worker: WorkerRecord, *, function: str = "f") -> PlainCall:
        """One call of the driver, which the idle worker has already."""
        spec = self._spec(function, False, 1, 1, (), -1, 0, None, None)
        call = new_call(PlainCall, self._mint.next_task() + 1, spec, b"args")
        self.refs[call] += 1
        self.loom.scheduler.on_call_handed_over(call, worker, worker.seq + 1)
        return call

    # -- streams ------------------------------------------------------------------------------

    def emit(self, node: Node, index: int, *, contains: Iterable[Node | ObjectRecord] = ()) -> None:
        """The call yields its item ``index``; it is started first if need be."""
        if node.state is NodeState.READY:
            self.start(node)
        assert node.worker is not None
        value = f"item {index} of {node.key:#x}".encode()
        inner = [record_of(of).key for of in contains]
        self.loom.streams.on_item(node.worker, node.seq, index, value, inner)
        self.check()

    def ask_for_room(self, node: Node, count: int) -> ObjectRecord:
        """The call waits for room behind so many items."""
        assert node.worker is not None
        room = ObjectRecord(self._mint.next_task() + 1)
        self.loom.streams.on_room(node.worker, node.seq, count, room)
        self.check()
        return room

    def take(self, node: Node) -> ObjectRecord:
        """The driver takes the first in line, done or not."""
        assert node.stream is not None
        record = node.stream.items.popleft()
        self.refs[record] += 1
        self.loom.streams.on_taken(node.stream)
        self.check()
        return record

    def line(self, node: Node) -> list[Any]:
        """What stands in the line of a stream: values, errors, None for what is ahead."""
        assert node.stream is not None
        return [record.outcome for record in node.stream.items]

    def drop_stream(self, node: Node) -> None:
        """The generator of the driver is collected, with its ref to the end."""
        assert node.stream is not None
        self.loom.streams.on_drop(node.stream)
        self.drop(node)

    def enter(self, node: Node) -> None:
        if self._idle is None:
            self.loom.on_submit(node)
        else:
            self.loom.scheduler.on_handed_over(node, self._idle, self._idle.seq + 1)

    def hand_over(self, worker: WorkerRecord, **how: Any) -> Node:
        """As ``submit``, but the idle worker has the call already."""
        self._idle = worker
        try:
            return self.submit(**how)
        finally:
            self._idle = None

    def open_scope(self, outer: Scope | None = None, *, owner: Node | None = None) -> Scope:
        """A group of the driver, or of a task (``owner``) where it runs."""
        key = self._mint.next_task()
        end, alarm = ObjectRecord(key + 1), ObjectRecord(key + 2)
        scope = Scope(key, outer, end, alarm, lambda errors: ("errors", *errors))
        self.refs.update([end, alarm])
        self.loom.scopes.on_open(scope, owner, owner.worker if owner is not None else None)
        self.check()
        return scope

    def close_scope(self, scope: Scope) -> None:
        if scope.key in self.loom.scopes.open:
            self.loom.scopes.on_close(scope)
        self.check()

    def cancel_scope(self, scope: Scope) -> None:
        if scope.key in self.loom.scopes.open:
            self.loom.scopes.on_cancel(scope)
        self.check()

    def release_from(self, scope: Scope, node: Node) -> None:
        if scope.key in self.loom.scopes.open:
            self.loom.scopes.on_release(scope, node.key + 1)
        self.check()

    def put(self, *, contains: Iterable[Node | ObjectRecord] = ()) -> ObjectRecord:
        record = ObjectRecord(self._mint.next_task() + 1)
        self.refs[record] += 1
        self.loom.on_put(record, b"put", [record_of(inner).key for inner in contains])
        self.check()
        return record

    def copy_ref(self, of: Node | ObjectRecord) -> None:
        """One more ref in the driver."""
        record = record_of(of)
        record.holds += 1
        self.refs[record] += 1
        self.check()

    def drop(self, *those: Node | ObjectRecord) -> None:
        """A ref of the driver is collected."""
        for of in those:
            record = record_of(of)
            self.refs[record] -= 1
            self.loom.graph.release(record)
        self.check()

    def cancel(
        self, of: Node | ObjectRecord, *, force: bool = False, recursive: bool = True
    ) -> None:
        self.loom.on_cancel(record_of(of).key, force=force, recursive=recursive)
        self.check()

    def watch(
        self, of: Node | ObjectRecord, then: Callable[[], None] = lambda: None
    ) -> list[ObjectRecord]:
        """A waiter; the list it returns is filled when the object is done."""
        watch = Watch(then)
        record = record_of(of)
        if record.outcome is not None:
            watch.on_done(record)
        else:
            record.waiters = {**(record.waiters or {}), watch: None}
        return watch.told

    # -- workers ------------------------------------------------------------------------------

    def worker(self, kind: WorkerKind = PROCESS) -> WorkerRecord:
        """A new worker, ready for work."""
        worker = self.starting_worker(kind)
        self.loom.on_worker_ready(worker)
        self.check()
        return worker

    def starting_worker(self, kind: WorkerKind = PROCESS) -> WorkerRecord:
        self._numbers += 1
        worker = WorkerRecord(self._numbers, kind)
        self.loom.on_worker_started(worker)
        self.check()
        return worker

    def schedule(self) -> None:
        """Passes of the scheduler, until it has no use for what is there."""
        self.loom.schedule()
        while self._starts_workers and (asked := self._take_start_orders()):
            for kind, count in asked:
                for _ in range(count):
                    self.loom.on_worker_ready(self.starting_worker(kind))
            self.loom.schedule()
        self.check()

    def start(self, *nodes: Node) -> None:
        """Have these calls handed to workers, together with whatever else can run."""
        self.schedule()
        for node in nodes:
            assert node.state is NodeState.ASSIGNED, f"{node!r} cannot be started"

    def finish(
        self,
        *nodes: Node,
        contains: Sequence[Iterable[Node | ObjectRecord]] | None = None,
        seconds: float = LONG_S,
    ) -> None:
        """These calls return, one after the other; they are started first if need be."""
        for node in nodes:
            if node.state is NodeState.READY:
                self.start(node)
            worker = node.worker
            assert worker is not None, f"{node!r} is not with a worker"
            count = node.spec.num_returns
            inner = [[record_of(of).key for of in those] for those in contains or [()] * count]
            outcomes = [f"value of {node.key:#x}".encode()] * count
            self.loom.on_done(worker, node.seq, outcomes, inner, seconds)
            self.check()

    def fail(self, node: Node, *, retry: bool = False) -> Trouble:
        """The call raises."""
        if node.state is NodeState.READY:
            self.start(node)
        assert node.worker is not None
        error = Trouble("raised", node.key)
        self.loom.on_failed(node.worker, node.seq, error, retry=retry, seconds=LONG_S)
        self.check()
        return error

    def lose(self, worker: WorkerRecord, *, started: Node | int | None = None) -> None:
        """A worker is gone; the last task it had begun was ``started`` (None: the first)."""
        if started is None:
            started = next(iter(worker.inflight.values()), 0)
        seq = started.seq if isinstance(started, Node) else started
        self.loom.on_worker_lost(worker, seq, lambda node: Trouble("crash", node.key))
        self.check()

    def block(self, worker: WorkerRecord, running: Node | None = None) -> int:
        """A task of the worker waits; ``running``: in the worker's main thread."""
        high = self.loom.on_blocked(worker, running.seq if running is not None else 0)
        self.check()
        return high

    def unblock(self, worker: WorkerRecord) -> None:
        self.loom.on_unblocked(worker)
        self.check()

    def give_back(self, worker: WorkerRecord, low: Node | int, high: Node | int) -> None:
        """The worker gives back what comes after ``low``, up to and with ``high``."""
        self.loom.on_returned(worker, seq_of(low), seq_of(high))
        self.check()

    def begin(self, node: Node) -> None:
        """The worker that has the call begins it now."""
        assert node.worker is not None
        self.outbox.began[node.worker.number, node.seq] = self.outbox.now

    def wait(self, seconds: float) -> None:
        """Time goes by; what rings meanwhile is heard, each at its moment."""
        until = self.outbox.now + seconds
        while self.outbox.alarms and self.outbox.alarms[0][0] <= until:
            self.outbox.now, _, alarm = heapq.heappop(self.outbox.alarms)
            self.loom.on_alarm(alarm)
            self.check()
        self.outbox.now = until

    def alarms(self) -> list[tuple[Alarm, float]]:
        """What is set, and when it rings."""
        return [(alarm, when) for when, _, alarm in sorted(self.outbox.alarms) if alarm.is_set]

    def borrow(self, worker: WorkerRecord, of: Node | ObjectRecord) -> None:
        self.loom.on_borrow(worker, [record_of(of).key])
        self.check()

    def release(self, worker: WorkerRecord, of: Node | ObjectRecord) -> None:
        self.loom.on_release(worker, [record_of(of).key])
        self.check()

    def learn(self, function: str = "f", seconds: float = SHORT_S, times: int = 20) -> None:
        """Let the loom know how long calls of a function take."""
        for _ in range(times):
            self.loom.times.note(self._function(function, False).key, seconds)

    # -- looking ------------------------------------------------------------------------------

    @property
    def late_messages(self) -> int:
        return self.loom.late_messages

    def state(self, node: Node) -> NodeState:
        return node.state

    def outcome(self, of: Node | ObjectRecord) -> Any:
        return record_of(of).outcome

    def is_kept(self, of: Node | ObjectRecord) -> bool:
        return record_of(of).key in self.loom.graph.objects

    def with_worker(self, worker: WorkerRecord) -> list[Node]:
        """What a worker has in flight, in the order in which it runs them."""
        return list(worker.inflight.values())

    def started_now(self) -> list[Node]:
        """What was handed out since this was asked last, in order."""
        seen, self._last_verb = self._last_verb, len(self.outbox.verbs)
        return [entry[2] for entry in self.outbox.verbs[seen:] if entry[0] == "run"]

    def free(self, name: str = "CPU") -> float:
        return self.ledger.free[name] / UNITS_PER_RESOURCE

    def is_at_rest(self) -> bool:
        """Nothing is going on and nothing is taken."""
        return (
            not self.loom.graph.nodes
            and not self.loom.ready
            and self.ledger.free == self.ledger.total
            and not any(worker.inflight for worker in self.loom.workers.values())
        )

    def check(self) -> None:
        if self._checks:
            self.check_all()

    def check_all(self) -> None:
        """All tables agree, and every object is kept for exactly the reasons there are."""
        invariants.check(self.loom)
        reasons: Counter[ObjectRecord] = Counter(self.refs)
        for node in self.loom.graph.nodes.values():
            reasons.update(node.deps)
            reasons.update(node.nested)
        for worker in self.loom.workers.values():
            reasons.update(worker.borrowed.values())
        objects = self.loom.graph.objects
        for stream in self.streams:
            reasons.update(stream.items)
        reasons.update(objects[key] for key in held_objects(self.loom) if key in objects)
        kept = objects.values()
        for record in kept:
            reasons.update(record.contains)
        for record in kept:
            assert record.holds == reasons[record], (
                f"object {record.key:#x}: {record.holds} holds, {reasons[record]} reasons"
            )
        for record, count in reasons.items():
            assert count >= 0
            assert not count or record.key in self.loom.graph.objects, (
                f"object {record.key:#x} is gone, and there are {count} reasons to keep it"
            )

    # -- shared steps -------------------------------------------------------------------------

    def _function(self, name: str, coroutine: bool) -> Function:
        known = self._functions.get((name, coroutine))
        if known is None:
            key = FunctionKey(f"{name} {coroutine}".encode())
            known = self._functions[name, coroutine] = Function(
                key=key, blob=b"", name=name, module="m", is_coroutine=coroutine
            )
        return known

    def _take_start_orders(self) -> list[tuple[WorkerKind, int]]:
        seen, self._last_order = self._last_order, len(self.outbox.verbs)
        return [entry[1:] for entry in self.outbox.verbs[seen:] if entry[0] == "start_workers"]


def record_of(of: Node | ObjectRecord) -> ObjectRecord:
    return of.outputs[0] if isinstance(of, Node) else of


def seq_of(of: Node | int) -> int:
    return of.seq if isinstance(of, Node) else of


def request_of(
    cpus: float, needs: Mapping[str, float] | None = None
) -> tuple[tuple[str, int], ...]:
    amounts = {"CPU": cpus, **(needs or {})}
    units = {name: round(amount * UNITS_PER_RESOURCE) for name, amount in amounts.items()}
    return tuple(sorted((name, amount) for name, amount in units.items() if amount))
