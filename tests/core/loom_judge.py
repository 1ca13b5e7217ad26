"""Looks on at a simulated session, and knows what must be true of it.

The tables of the loom are compared with one another by ``invariants``.  The judge compares them
with the world: what was asked for, what workers really began, what a sequential run of the same
program returns.  It has its own books and reads the loom's only to compare.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from taskloom._core.node import Node, ObjectRecord, WorkerKind, WorkerRecord
from taskloom._core.placement import LOOP_CAPACITY, MAX_BATCH
from taskloom._core.reactor import Reactor
from taskloom._core.scheduler import PATIENCE
from taskloom._core.scopes import Scope
from taskloom._core.states import TERMINAL, NodeState
from taskloom._wire import messages as m


class Judge:
    """What was asked for, what was done, and what must follow from it."""

    def __init__(self, loom: Reactor) -> None:
        self.expected: dict[int, bytes] = {}  # by object: what a sequential run makes
        self.settled: dict[int, object] = {}  # by object
        self.contained: dict[int, tuple[int, ...]] = {}  # by object: refs inside its value
        self.begun: Counter[int] = Counter()  # by task: attempts that count
        self.entered: Counter[int] = Counter()  # by task: how often the body was entered
        self._loom = loom
        self._deps: dict[int, tuple[int, ...]] = {}  # by task: the tasks it depends on
        self._parents: dict[int, int] = {}
        self._retries: dict[int, int] = {}
        self._cancels: dict[int, bool] = {}  # by task: whether recursively
        self._raised: set[int] = set()
        self._scopes: dict[int, Scope] = {}
        self._limited: set[int] = set()  # tasks that have only so much time
        self._lost: Counter[int] = Counter()  # by task: attempts that a worker died of
        self._live: dict[int, tuple[WorkerRecord, int]] = {}  # by task: where it was begun last
        self._producers: dict[int, int] = {}

    # -- what happens -------------------------------------------------------------------------

    def on_submitted(
        self, key: int, returns: int, deps: Sequence[ObjectRecord], parent: Node | None,
        retries: int, *, is_limited: bool, scope: Scope | None,
    ) -> None:  # fmt: skip
        deps = list(dict.fromkeys(deps))
        fills = [self.expected.get(dep.key, b"?") for dep in deps]
        for index in range(returns):
            name = key + 1 + index
            self.expected[name] = b"%x" % zlib.crc32(b"%x:" % name + b",".join(fills))
            self._producers[name] = key
        self._deps[key] = tuple(self._producers.get(dep.key, 0) for dep in deps)
        self._retries[key] = retries
        if is_limited:
            self._limited.add(key)
        if parent is not None:
            self._parents[key] = parent.key
            scope = parent.scope if scope is None else scope
        if scope is not None:
            self._scopes[key] = scope

    def on_cancel_asked(self, object_key: int, *, recursive: bool) -> list[Node]:
        """Returns: the calls that must be cancelled now."""
        key = self._producers.get(object_key, 0)
        self._cancels[key] = self._cancels.get(key, False) or recursive
        alive = self._loom.graph.nodes
        hit = [alive[key]] if key in alive else []
        if recursive and hit:
            under = {key}
            for child, node in alive.items():  # parents come before their children
                if self._parents.get(child) in under:
                    under.add(child)
                    hit.append(node)
        return hit

    def on_dropped(self, key: int) -> None:
        """Its stream is wanted no more: from now on it may be cancelled."""
        self._cancels[key] = True

    def on_raised(self, key: int) -> None:
        self._raised.add(key)

    def on_handed(self, worker: WorkerRecord, node: Node) -> None:
        """The loom has a call sent to a worker."""
        assert worker.ready, f"{worker!r} is not ready"
        assert self._loom.workers.get(worker.number) is worker, f"{worker!r} is gone"
        assert node.seq == worker.seq
        assert node.state not in TERMINAL, f"{node!r} had ended"
        coroutine = node.spec.function.is_coroutine
        assert coroutine == (worker.kind is WorkerKind.LOOP)
        share_of = self._loom.times.share
        shares = [share_of(other.spec.function.key) for other in worker.inflight.values()]
        assert min(shares) >= 1 / MAX_BATCH
        if coroutine:
            assert len(shares) <= LOOP_CAPACITY, f"{worker!r} has too much"
        elif len(shares) > 1:
            assert sum(shares) < 1.001, f"{worker!r} has too much"
        assert not any(dep.failed for dep in node.deps), f"{node!r}: a dependency has failed"
        missing = [dep for dep in node.deps if dep.outcome is None]
        if missing:  # it follows what it waits for
            (dep,) = missing
            before = worker.inflight.get(node.seq - 1)
            assert dep.producer is before is not None, f"{node!r} follows nothing"
            assert before.state is NodeState.ASSIGNED
            assert worker.kind is WorkerKind.PROCESS

    def on_begun(self, worker: WorkerRecord, node: Node, seq: int) -> None:
        """A worker begins a task."""
        key = node.key
        assert node.state is not NodeState.CANCELLED, f"{node!r} begins though it is over"
        before, as_seq = self._live.get(key, (worker, 0))
        assert before.inflight.get(as_seq) is not node, f"{node!r} runs twice at a time"
        self._live[key] = worker, seq
        self.begun[key] += 1
        self.entered[key] += 1
        retries = self._retries[key]
        assert retries < 0 or self.begun[key] <= retries + 1, f"{node!r}: one attempt too many"
        if retries == 0:
            assert self.entered[key] == 1, f"{node!r} may not run twice"

    def on_worker_died(
        self, worker: WorkerRecord, held: Iterable[tuple[Any, ...]], nodes: dict[int, Node],
        started: int,
    ) -> None:  # fmt: skip
        """``held`` is what it had said and not sent: lost with it."""
        inflight = worker.inflight
        for message in held:
            if message[0] in (m.DONE, m.FAILED) and message[1] in inflight:
                seq, ran = message[1], message[0] == m.DONE or message[2] is not None
                if worker.kind is WorkerKind.PROCESS and seq != started and ran:
                    self.begun[nodes[seq].key] -= 1  # it ran well: another run is free
        for seq, node in inflight.items():
            if seq == started or (seq < started and worker.kind is WorkerKind.LOOP):
                self._lost[node.key] += 1

    def on_resolved(self, record: ObjectRecord) -> None:
        """An object is done: for the first time, and with what it should be."""
        key, outcome = record.key, record.outcome
        assert key not in self.settled, f"object {key:#x} is settled twice"
        self.settled[key] = outcome
        if key not in self._producers and key not in self.expected:
            return  # the end of a group, or its alarm
        if not record.failed:
            assert outcome == self.expected[key], f"object {key:#x} has a wrong value"
            inner = tuple(member.key for member in record.contains)
            assert inner == self.contained.get(key, ()), f"object {key:#x} contains {inner}"
            task = self._producers.get(key)
            if task is not None:
                attempt = record.producer.attempt if record.producer is not None else 0
                assert attempt == self.begun[task], (
                    f"task {task:#x}: {attempt} attempts charged, {self.begun[task]} begun"
                )
            return
        task, origin = self._producers[key], outcome.origin
        if not origin:  # nobody's: it ends all that there is, or an object was lost
            assert outcome.kind == "broken" or self._parent_ended(task), outcome
            return
        if outcome.inherited:
            assert self._depends(task, origin), (
                f"task {task:#x} has the error of {origin:#x}, on which it does not depend"
            )
        else:
            assert origin == task, f"task {task:#x} has an error of {origin:#x}, not inherited"
        self._judge_error(outcome.kind, origin, first=key == origin + 1)

    def _parent_ended(self, task: int) -> bool:
        """It was submitted by a task that was ended while its worker still had it."""
        while task := self._parents.get(task, 0):
            if self._was_cancelled(task) or task in self._limited:
                return True
        return False

    def _judge_error(self, kind: str, origin: int, *, first: bool) -> None:
        retries = self._retries[origin]
        if kind == "raised":
            assert origin in self._raised or self.begun[origin] == retries + 1
        elif kind == "crash":
            assert self._lost[origin], f"task {origin:#x}: no worker died of it"
            assert self.begun[origin] == retries + 1, (
                f"task {origin:#x}: {self.begun[origin]} attempts of {retries + 1} were made"
            )
        elif kind == "cancelled":
            assert self._was_cancelled(origin), f"nobody cancelled {origin:#x}"
        elif kind == "too deep" and first:
            processes = [w for w in self._loom.workers.values() if w.kind is WorkerKind.PROCESS]
            assert all(worker.blocked for worker in processes)
        elif kind == "timed out":
            assert origin in self._limited
            assert self.begun[origin], f"task {origin:#x} timed out before it began"
        elif kind == "unschedulable":
            assert origin not in self.begun
        else:
            assert kind == "too deep", kind

    def _was_cancelled(self, key: int) -> bool:
        scope = self._scopes.get(key)
        while scope is not None and not scope.cancelled:
            scope = scope.outer
        if scope is not None or key in self._cancels:
            return True
        while parent := self._parents.get(key, 0):
            if self._cancels.get(parent, False):
                return True
            # What only an attempt that died would have used goes with it, and what an attempt
            # has submitted that ran out of time.
            if self._lost[parent] or parent in self._limited:
                return True
            key = parent
        return False

    def _depends(self, task: int, on: int) -> bool:
        todo, seen = [task], set()
        while todo:
            for before in self._deps.get(todo.pop(), ()):
                if before == on:
                    return True
                if before not in seen:
                    seen.add(before)
                    todo.append(before)
        return False

    # -- what must hold after each event ------------------------------------------------------

    def check(self) -> None:
        """What is settled stays as it is: nothing comes back."""
        for key, record in self._loom.graph.objects.items():
            if record.outcome is None:
                assert key not in self.settled, f"object {key:#x} is not settled any more"
            else:
                assert record.outcome is self.settled[key], f"object {key:#x} has changed"

    def check_busy(self) -> None:
        """After a pass: no work waits while somebody has room for it, and nothing is forgotten."""
        loom = self._loom
        buckets = loom.ready.in_order()
        if not buckets:
            return
        heads = [bucket.nodes[0] for bucket in buckets]
        if any(head.passed_over > PATIENCE for head in heads):
            return  # resources are kept for somebody who has waited too long
        workers = loom.workers.values()
        for bucket in buckets:
            if not loom.ledger.fits(bucket.request):
                continue
            same = [worker for worker in workers if worker.kind is bucket.kind]
            if bucket.kind is WorkerKind.LOOP:
                if any(not worker.ready for worker in workers):
                    continue  # what there is may be reserved for who comes
                able = [w for w in same if w.ready and not (w.stalled or w.deaf)]
                assert not able or all(len(w.inflight) >= LOOP_CAPACITY for w in able), (
                    f"{bucket.nodes[0]!r} waits, and {able} have room"
                )
                assert able or len(same) >= 64, f"no loop is started for {bucket.nodes[0]!r}"
                continue
            for worker in same:
                busy = not worker.ready or worker.inflight or worker.pending_requests
                assert busy, f"{bucket.nodes[0]!r} waits, and {worker!r} is idle"
            if all(worker.ready for worker in same):
                full = len(same) >= loom.scheduler._max_processes
                assert full, f"{bucket.nodes[0]!r} waits, and no worker is started for it"
                stuck = all(worker.blocked for worker in same)
                assert not stuck or loom.scheduler._coroutines_move(), (
                    f"{bucket.nodes[0]!r} waits for processes that all wait"
                )

    # -- what must hold at the end ------------------------------------------------------------

    def check_end(self, nodes: Iterable[Node]) -> None:
        """Every ref is settled, nothing is taken, nothing is left."""
        loom = self._loom
        left = [node for node in nodes if node.state not in TERMINAL]
        assert not left, f"never ended: {left}"
        assert not loom.graph.nodes, f"nodes are left: {loom.graph.nodes}"
        assert not loom.ready, "a line is left"
        assert loom.ledger.free == loom.ledger.total, "something is still taken"
        assert not loom._stopping
        for worker in loom.workers.values():
            assert not worker.inflight, f"{worker!r} has something"
            assert not worker.pending_requests, f"{worker!r} waits"
        unsettled = [key for key in self._producers if key not in self.settled]
        assert not unsettled, f"never settled: {unsettled}"

    def check_empty(self) -> None:
        """All refs are gone: so is everything else."""
        assert not self._loom.graph.objects, f"kept for nobody: {self._loom.graph.objects}"
