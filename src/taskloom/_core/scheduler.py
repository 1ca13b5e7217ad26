"""The pass that hands out work: which ready node goes to which worker now.

A PROCESS worker that has tasks holds a lease of the resources of one task.  Tasks of the same
shape may follow on that lease without asking the books again; when the worker runs dry the
lease ends.  Coroutines share LOOP workers, each with an allocation of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from taskloom._core.node import Node, WorkerKind, WorkerRecord
from taskloom._core.placement import LOOP_CAPACITY, is_heavy
from taskloom._core.ready_queue import Bucket
from taskloom._core.resources import Allocation, Request
from taskloom._core.states import NodeState
from taskloom._options import UNITS_PER_RESOURCE

if TYPE_CHECKING:
    from taskloom._core.reactor import Reactor

MAX_LOOPS: Final = 64
EMPTY_KEPT: Final = 64
"""Shapes without a lease that are remembered: most come again at once."""
PATIENCE: Final = 100
"""How many later tasks may start before one that does not fit yet; then they wait for it."""


class Scheduler:
    def __init__(self, loom: Reactor, max_processes: int) -> None:
        self._loom = loom
        self._max_processes = max_processes
        self._idle: list[WorkerRecord] = []  # PROCESS workers; the last one used is the first
        self._loops: list[WorkerRecord] = []
        self._leased: dict[Request, dict[int, WorkerRecord]] = {}
        self._wave = max(2, loom.ledger.total.get("CPU", 0) // UNITS_PER_RESOURCE)
        self._started = 0  # nodes handed out in this pass

    # -- who is there -------------------------------------------------------------------------

    def add_idle(self, worker: WorkerRecord) -> None:
        if worker.kind is WorkerKind.LOOP:
            if worker not in self._loops:
                self._loops.append(worker)
        elif worker not in self._idle:
            self._idle.append(worker)

    def remove(self, worker: WorkerRecord) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
        if worker in self._loops:
            self._loops.remove(worker)

    def lease_ended(self, worker: WorkerRecord) -> None:
        assert worker.lease is not None
        leased = self._leased[worker.lease.request]
        del leased[worker.number]
        if not leased and len(self._leased) > EMPTY_KEPT:
            del self._leased[worker.lease.request]

    # -- the pass -----------------------------------------------------------------------------

    def run_pass(self) -> None:
        buckets = self._loom.ready.in_order()
        if not buckets:
            return
        reserved: list[Allocation] = []  # for tasks whose workers are still to be started
        stuck: list[tuple[Node, int]] = []  # does not fit; how many had started before it
        kept: set[str] = set()  # resources that are kept for somebody who has waited too long
        self._started = 0
        for bucket in buckets:
            if kept and any(name in kept for name, _ in bucket.request):
                continue
            if bucket.kind is WorkerKind.LOOP:
                self._place_coroutines(bucket)
            else:
                self._place_tasks(bucket)
            head = bucket.head()
            if head is not None:
                self._note_waiting(bucket, head, reserved, stuck, kept)
        for head, before in stuck:
            head.passed_over += self._started - before
        for allocation in reserved:
            self._loom.ledger.release(allocation)
        if reserved:
            self._want_processes(len(reserved))

    def _note_waiting(
        self,
        bucket: Bucket,
        head: Node,
        reserved: list[Allocation],
        stuck: list[tuple[Node, int]],
        kept: set[str],
    ) -> None:
        """Nodes of a bucket are left over: for want of workers, or of resources."""
        ledger = self._loom.ledger
        if bucket.kind is WorkerKind.PROCESS:
            room = self._max_processes - len(self._loom.workers)
            for _ in range(min(len(bucket.nodes), max(1, room))):
                if not ledger.fits(bucket.request):
                    break
                reserved.append(ledger.acquire(bucket.request))
        if not ledger.fits(bucket.request):
            if head.passed_over > PATIENCE:
                kept.update(ledger.short_of(bucket.request))
            stuck.append((head, self._started))

    def _place_tasks(self, bucket: Bucket) -> None:
        """To idle workers first, one each; then behind the short tasks of busy ones."""
        ledger, request = self._loom.ledger, bucket.request
        while self._idle and (node := bucket.head()) is not None and ledger.fits(request):
            worker = self._idle.pop()
            worker.lease = ledger.acquire(request)
            worker.window = self._window(node)
            leased = self._leased.get(request)
            if leased is None:
                leased = self._leased[request] = {}
            leased[worker.number] = worker
            self._hand(worker, node, bucket)
            self._hand_followers(worker, node)
        if not bucket.nodes:
            return
        leased = self._leased.get(request)
        if not leased:
            return
        open_workers = [
            worker
            for worker in leased.values()
            if worker.window > len(worker.inflight) and not worker.pending_requests
        ]
        for position, worker in enumerate(open_workers):
            # An even share for each, so that nobody sits idle while another one has a queue.
            share = -(-len(bucket.nodes) // (len(open_workers) - position))
            self._top_up(worker, bucket, share)

    def _top_up(self, worker: WorkerRecord, bucket: Bucket, share: int) -> None:
        while share > 0 and (node := bucket.head()) is not None:
            window = min(worker.window, self._window(node))
            if window <= len(worker.inflight):
                return
            worker.window = window
            self._hand(worker, node, bucket)
            self._hand_followers(worker, node)
            share -= 1

    def _window(self, node: Node) -> int:
        if (node.deps or type(node.args) is not bytes) and is_heavy(node):
            return 1
        return self._loom.times.window(node.spec.function.key)

    def _place_coroutines(self, bucket: Bucket) -> None:
        ledger, request = self._loom.ledger, bucket.request
        for worker in self._loops:
            if worker.stalled:
                continue
            while len(worker.inflight) < LOOP_CAPACITY and (node := bucket.head()) is not None:
                if not ledger.fits(request):
                    return
                node.allocation = ledger.acquire(request)
                self._hand(worker, node, bucket)
        # All are full, or stand still in a blocking call: coroutines may wait for one another.
        if bucket.head() is not None and ledger.fits(request):
            self._want_loop()

    def _want_loop(self) -> None:
        loops = sum(w.kind is WorkerKind.LOOP for w in self._loom.workers.values())
        if loops < MAX_LOOPS:
            self._loom.outbox.start_workers(WorkerKind.LOOP, 1)

    def _hand_followers(self, worker: WorkerRecord, node: Node) -> None:
        """A short task's only dependent goes with it: a chain costs no round trip per link."""
        while len(worker.inflight) < worker.window and len(node.outputs) == 1:
            dependents = node.outputs[0].dependents
            if dependents is None or len(dependents) != 1:
                return
            follower, spec = dependents[0], dependents[0].spec
            if (
                follower.state is not NodeState.WAITING
                or follower.unfinished != 1
                or spec.request != node.spec.request
                or spec.priority != node.spec.priority
                or spec.function.is_coroutine
                or self._window(follower) <= len(worker.inflight)
            ):
                return
            self._assign(worker, follower, "follows what it waits for")
            node = follower

    def _hand(self, worker: WorkerRecord, node: Node, bucket: Bucket) -> None:
        bucket.nodes.popleft()
        self._assign(worker, node, "placed")

    def _assign(self, worker: WorkerRecord, node: Node, why: str) -> None:
        worker.seq += 1
        node.seq = worker.seq
        node.worker = worker
        node.attempt += 1
        worker.inflight[node.seq] = node
        self._loom.graph.move(node, NodeState.ASSIGNED, why)
        self._started += 1
        self._loom.outbox.run(worker, node)

    def _want_processes(self, wanted: int) -> None:
        """Start workers, within the limit; beyond it, nobody may wait for ever."""
        processes = [w for w in self._loom.workers.values() if w.kind is WorkerKind.PROCESS]
        starting = sum(not worker.ready for worker in processes)
        allowed = self._max_processes - len(processes)
        # In waves of as many as there are CPUs: short tasks without CPUs need no more.
        missing = min(wanted, self._wave) - starting
        missing = min(missing, allowed)
        if missing > 0:
            self._loom.outbox.start_workers(WorkerKind.PROCESS, missing)
        elif not starting and allowed <= 0:
            self._fail_what_is_too_deep(processes)

    def _fail_what_is_too_deep(self, processes: list[WorkerRecord]) -> None:
        """Every process belongs to a task that waits, and what they wait for needs one more.

        Failing a call wakes the task that waits for it, so no more fail than it takes to go on.
        """
        while all(worker.blocked for worker in processes) and not self._coroutines_move():
            heads = (
                bucket
                for bucket in self._loom.ready.in_order()
                if bucket.kind is WorkerKind.PROCESS and self._loom.ledger.fits(bucket.request)
            )
            bucket = next(heads, None)
            head = bucket.head() if bucket is not None else None
            if bucket is None or head is None:
                return
            bucket.nodes.popleft()
            error = self._loom.outbox.too_deep(head)
            self._loom.graph.fail(head, error, "too deep")  # type: ignore[arg-type]

    def _coroutines_move(self) -> bool:
        """True when some coroutine may still bring what others wait for."""
        return any(
            not worker.ready
            or (not worker.stalled and any(not node.waits for node in worker.inflight.values()))
            for worker in self._loom.workers.values()
            if worker.kind is WorkerKind.LOOP
        )
