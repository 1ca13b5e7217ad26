"""Do all tables of the loom agree?  Asked by tests after every step.

Each check is a plain ``if``: its text is made only when it is needed, because the simulation asks
some hundred thousand times.
"""

from __future__ import annotations

from collections import Counter

from taskloom._core import actor_invariants
from taskloom._core.alarms import AlarmKind
from taskloom._core.node import Node, WorkerKind, WorkerRecord
from taskloom._core.reactor import Reactor
from taskloom._core.states import TERMINAL, NodeState
from taskloom._core.streams import Stream
from taskloom._options import UNITS_PER_RESOURCE
from taskloom.exceptions import InternalError


def check(loom: Reactor) -> None:
    """Raise InternalError, naming the first table that disagrees with another."""
    _check_nodes(loom)
    _check_workers(loom)
    _check_scheduler(loom)
    _check_books(loom)
    _check_objects(loom)
    _check_scopes(loom)
    _check_streams(loom)
    actor_invariants.check(loom)


def _wrong(text: str) -> InternalError:
    return InternalError(text)


# -- the graph ------------------------------------------------------------------------------------


def _check_nodes(loom: Reactor) -> None:
    queued = Counter([node.key for node in loom.ready])
    queued += actor_invariants.queued_calls(loom)
    graph = loom.graph
    for key, node in graph.nodes.items():
        state = node.state
        missing = 0
        for dep in node.deps:
            if dep.outcome is None:
                missing += 1
                if dep.dependents is None or dep.dependents.count(node) != 1:
                    raise _wrong(f"{node!r} waits for {dep.key:#x}, which does not know it")
        if node.unfinished != missing:
            raise _wrong(f"{node!r}: unfinished={node.unfinished}, not {missing}")
        if state in TERMINAL:
            raise _wrong(f"{node!r} has ended but is kept")
        follows = state in (NodeState.ASSIGNED, NodeState.BACKOFF) and missing == 1
        if (state is NodeState.WAITING) != (missing > 0) and not follows:
            raise _wrong(f"{node!r}: {missing} dependencies are missing")
        if queued.pop(key, 0) != (state is NodeState.READY):
            raise _wrong(f"{node!r}: the ready queue disagrees, or has it twice")
        if state is NodeState.ASSIGNED:
            _check_assigned(loom, node)
        if node.alarm is not None or node.spec.pace is not None:
            _check_alarm(node)
        parent = node.parent
        if parent is not None and (parent.submitted or {}).get(key) is not node:
            raise _wrong(f"{node!r} is not among the children of {parent!r}")
        for child in node.children:
            if graph.nodes.get(child.key) is not child:
                raise _wrong(f"{node!r} has a child that has ended: {child!r}")
        for record in node.outputs:
            early = record.outcome is not None and len(node.outputs) > 1  # a generator's
            if (record.producer is not node) != early or early == (record.outcome is None):
                raise _wrong(f"{node!r} makes {record.key:#x}, which is done or says otherwise")
    if queued:
        raise _wrong(f"the ready queue has nodes that are not there: {queued}")


def _check_assigned(loom: Reactor, node: Node) -> None:
    worker = node.worker
    if worker is None or worker.inflight.get(node.seq) is not node:
        raise _wrong(f"{node!r} is not with the worker it was handed to")
    if loom.workers.get(worker.number) is not worker:
        raise _wrong(f"{node!r} is with {worker!r}, which is gone")
    if node.attempt < 1:
        raise _wrong(f"{node!r}: attempt {node.attempt}")
    # A constructor is repeated by restarts of its actor, which have a budget of their own.
    if node.actor is None and 0 <= node.spec.max_retries < node.attempt - 1:
        raise _wrong(f"{node!r}: attempt {node.attempt} of {node.spec.max_retries} + 1")


def _check_alarm(node: Node) -> None:
    kind = node.alarm.kind if node.alarm is not None else None
    pace = node.spec.pace
    is_limited = pace is not None and pace.timeout_s is not None
    allowed: set[AlarmKind | None] = {None}
    if node.state is NodeState.BACKOFF:
        allowed = {AlarmKind.RETRY}
    elif node.state is NodeState.ASSIGNED and node.overdue:
        allowed = {AlarmKind.GRACE, AlarmKind.SILENCE, None}
    elif node.state is NodeState.ASSIGNED and is_limited:
        allowed = {AlarmKind.LIMIT}
    if kind not in allowed:
        raise _wrong(f"{node!r} (overdue: {node.overdue}) has the alarm {node.alarm!r}")


def _check_objects(loom: Reactor) -> None:
    holds: Counter[int] = Counter()
    objects = loom.graph.objects
    for node in loom.graph.nodes.values():
        for record in node.deps:
            holds[record.key] += 1
        for record in node.nested:
            holds[record.key] += 1
    for worker in loom.workers.values():
        for key, record in worker.borrowed.items():
            holds[key] += 1
            if objects.get(key) is not record:
                raise _wrong(f"{worker!r} borrows {key:#x}, which is forgotten")
    for key in actor_invariants.held_objects(loom):
        holds[key] += 1
    for record in objects.values():
        for member in record.contains:
            holds[member.key] += 1
    of_scopes = {r for scope in loom.scopes.open.values() for r in (scope.end, scope.alarm)}
    of_scopes.update(room for stream in _streams(loom) if (room := stream.room_record) is not None)
    for key, record in objects.items():
        if record.holds < holds[key]:
            raise _wrong(f"object {key:#x}: {record.holds} holds < {holds[key]}")
        if record.outcome is None:
            if record.producer is None and record not in of_scopes:
                raise _wrong(f"object {key:#x} is not done, and nobody makes it")
        else:
            if record.holds <= 0:
                raise _wrong(f"object {key:#x} is done and held by nobody")
            if record.producer is not None:
                raise _wrong(f"object {key:#x} is done and has a producer")
            if record.dependents or record.waiters:
                raise _wrong(f"object {key:#x} is done, and somebody still waits for it")


def _streams(loom: Reactor) -> list[Stream]:
    return [node.stream for node in loom.graph.nodes.values() if node.stream is not None]


def _check_streams(loom: Reactor) -> None:
    for stream in _streams(loom):
        ahead = stream.ahead
        if ahead.outcome is not None or loom.graph.objects.get(ahead.key) is not ahead:
            raise _wrong(f"{stream!r}: the record ahead is done, or gone")
        if ahead.key != stream.key_of(stream.count) and not stream.dropped:
            raise _wrong(f"{stream!r}: the record ahead is {ahead.key:#x}")
        before = [record for record in list(stream.items) if record is not ahead]
        if any(record.outcome is None or record.failed for record in before):
            raise _wrong(f"{stream!r} has items that are not there")
        if stream.dropped and stream.items:
            raise _wrong(f"{stream!r} was dropped, and has items")
        if stream.room is not None and stream.room[0] - stream.taken < stream.limit:
            raise _wrong(f"{stream!r}: there is room, and its producer waits")


# -- workers --------------------------------------------------------------------------------------


def _check_workers(loom: Reactor) -> None:
    for number, worker in loom.workers.items():
        if worker.number != number:
            raise _wrong(f"{worker!r} is listed as {number}")
        if worker.kind is WorkerKind.PROCESS:
            if (worker.lease is not None) != bool(worker.inflight):
                raise _wrong(f"{worker!r}: lease {worker.lease}")
            if worker.at_hand != Counter(n.spec.function.key for n in worker.inflight.values()):
                raise _wrong(f"{worker!r}: has {worker.at_hand} at hand")
            if worker.lease is not None and worker.lease.cpus_lent != worker.blocked:
                raise _wrong(
                    f"{worker!r}: blocked={worker.blocked}, cpus lent={worker.lease.cpus_lent}"
                )
        if worker.pending_requests < 0 or worker.stalled < 0:
            raise _wrong(f"{worker!r}: {worker.pending_requests} questions, {worker.stalled} stall")
        last = 0
        for seq, node in worker.inflight.items():
            if not last < seq <= worker.seq or node.seq != seq or node.worker is not worker:
                raise _wrong(f"{worker!r}: {node!r} is no. {node.seq} and stands as {seq}")
            last = seq
            ended = node.state in TERMINAL
            if not ended and node.state is not NodeState.ASSIGNED:
                raise _wrong(f"{worker!r} has {node!r}")
            if (node.allocation is not None) != (worker.kind is WorkerKind.LOOP):
                raise _wrong(f"{node!r}: allocation {node.allocation} on {worker!r}")
            stands = node.waits > 0 or worker.stalled > 0
            if node.allocation is not None and node.allocation.cpus_lent != stands:
                raise _wrong(f"{node!r}: waits={node.waits}, but its CPUs say otherwise")
    for key, node in loom._stopping.items():
        stops = node.overdue or node.state in TERMINAL
        if node.key != key or not stops or node.worker is None:
            raise _wrong(f"{node!r} is being stopped")
        if node.worker.inflight.get(node.seq) is not node:
            raise _wrong(f"{node!r} is being stopped, but {node.worker!r} has it no more")


def _check_scheduler(loom: Reactor) -> None:
    scheduler = loom.scheduler
    idle, loops = set(scheduler._idle), set(scheduler._loops)
    if len(idle) != len(scheduler._idle) or len(loops) != len(scheduler._loops):
        raise _wrong("a worker is listed twice")
    leased = 0
    for worker in loom.workers.values():
        if worker.kind is WorkerKind.LOOP:
            _must_be_listed(worker, loops, worker.ready and not worker.deaf)
            continue
        if worker.kind is WorkerKind.ACTOR:
            continue
        _must_be_listed(
            worker, idle, worker.ready and not worker.inflight and not worker.pending_requests
        )
        if worker.lease is not None:
            leased += 1
            if scheduler._leased[worker.lease.request].get(worker.number) is not worker:
                raise _wrong(f"{worker!r} is not listed under its lease")
    if idle or loops:
        raise _wrong(f"workers are listed that are gone: {idle | loops}")
    if leased != sum(map(len, scheduler._leased.values())):
        raise _wrong("a worker is listed under a lease that it has not")


def _must_be_listed(worker: WorkerRecord, where: set[WorkerRecord], listed: bool) -> None:
    if (worker in where) != listed:
        raise _wrong(f"{worker!r} is {'not ' if listed else ''}among those who take work")
    where.discard(worker)


# -- the books ------------------------------------------------------------------------------------


def _check_books(loom: Reactor) -> None:
    ledger = loom.ledger
    used: Counter[str] = Counter()
    devices = [UNITS_PER_RESOURCE] * len(ledger._gpu_free)
    for worker in loom.workers.values():
        # What the process of an actor holds is the actor's: it is counted there.
        held = [worker.lease] if worker.lease is not None and worker.actor is None else []
        held += [node.allocation for node in worker.inflight.values() if node.allocation]
        for allocation in held:
            for name, units in allocation.request:
                if not (name == "CPU" and allocation.cpus_lent):
                    used[name] += units
            for index, share in (allocation.devices or {}).get("GPU", ()):
                devices[index] -= share
    for allocation in actor_invariants.allocations(loom):
        for name, units in allocation.request:
            if not (name == "CPU" and allocation.cpus_lent):
                used[name] += units
        for index, share in (allocation.devices or {}).get("GPU", ()):
            devices[index] -= share
    for name, total in ledger.total.items():
        free = ledger.free[name]
        if total - used[name] != free:
            raise _wrong(f"{name}: {total} - {used[name]} used != {free} free")
        if free < 0 and name != "CPU":
            raise _wrong(f"{name}: {free} units free")
    if devices != ledger._gpu_free or any(share < 0 for share in devices):
        raise _wrong(f"GPUs: {ledger._gpu_free} free, should be {devices}")


# -- groups ---------------------------------------------------------------------------------------


def _check_scopes(loom: Reactor) -> None:
    with_workers = [node for w in loom.workers.values() for node in w.inflight.values()]
    for node in [*loom.graph.nodes.values(), *with_workers]:
        scope = node.scope
        if scope is not None and node.key not in scope.nodes:
            raise _wrong(f"{node!r} is not in {scope!r}")
    for scope in loom.scopes.open.values():
        for node in scope.nodes.values():
            with_worker = node.worker is not None and node.worker.inflight.get(node.seq) is node
            if node.state in TERMINAL and not with_worker:
                raise _wrong(f"{scope!r} still has {node!r}")
        active = len(scope.nodes) + sum(bool(inner.active) for inner in scope.inner.values())
        if scope.active != active:
            raise _wrong(f"{scope!r} has {active}")
        if not scope.members <= scope.nodes.keys():
            raise _wrong(f"{scope!r}: members that are gone")
        if scope.closed and not active:
            raise _wrong(f"{scope!r} is over, and not done")
        for inner in scope.inner.values():
            if inner.outer is not scope:
                raise _wrong(f"{inner!r} is not inside {scope!r}")
