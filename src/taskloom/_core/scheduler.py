"""The pass that hands out work: which ready node goes to which worker now.

A PROCESS worker that has tasks holds a lease of the resources of one task.  Tasks of the same
shape may follow on that lease without asking the books again; when the worker runs dry the
lease ends.  Coroutines share LOOP workers, each with an allocation of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from taskloom._core.node import PROCESS, Node, PlainCall, WorkerKind, WorkerRecord
from taskloom._core.placement import LOOP_CAPACITY, MAX_BATCH, is_heavy
from taskloom._core.ready_queue import Bucket
from taskloom._core.resources import Allocation, Request
from taskloom._core.states import ASSIGNED, READY, NodeState
from taskloom._options import UNITS_PER_RESOURCE
from taskloom.exceptions import InternalError

if TYPE_CHECKING:
    from taskloom._core.reactor import Reactor

MAX_LOOPS: Final = 64
EMPTY_KEPT: Final = 64
"""Shapes without a lease that are remembered: most come again at once."""
PATIENCE: Final = 100
"""How many later tasks may start before one that does not fit yet; then they wait for it."""


class _LeftOver:
    """What a pass could not place, for want of workers or resources."""

    __slots__ = ("kept", "reserved", "stuck", "wanted")

    def __init__(self) -> None:
        self.reserved: list[Allocation] = []  # for tasks whose workers are still to be started
        self.stuck: list[
            tuple[Node | PlainCall, int]
        ] = []  # does not fit; how many had started before it
        self.kept: set[str] = set()  # resources kept for somebody who has waited too long
        self.wanted = 0  # processes that could be used, beyond those there are


class Scheduler:
    def __init__(self, loom: Reactor, max_processes: int) -> None:
        self._loom = loom
        self._max_processes = max_processes
        self.is_short = False  # the system gives no further process for now
        self._idle: list[WorkerRecord] = []  # PROCESS workers; the last one used is the first
        self._loops: list[WorkerRecord] = []
        self._leased: dict[Request, dict[int, WorkerRecord]] = {}
        self._wave = max(2, loom.ledger.total.get("CPU", 0) // UNITS_PER_RESOURCE)
        self._started = 0  # nodes handed out in this pass

    # -- who is there -------------------------------------------------------------------------

    def add_idle(self, worker: WorkerRecord) -> None:
        if worker.kind is WorkerKind.LOOP:
            if not worker.deaf and worker not in self._loops:
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
        # Failing a call wakes who waits for it, and with him may come room for others.
        while self._pass_once():
            pass

    def _pass_once(self) -> bool:
        """Hand out what can run; True when calls had to be failed, so that more may run now."""
        ready = self._loom.ready
        actors_wait = bool(self._loom.actors.unplaced)
        node = ready.take_lone()
        if node is not None:
            if not actors_wait and self._place_lone(node):
                return False
            ready.push(node)
        left = self._make_way_for_actors() if actors_wait else None
        nodes_wait = False
        self._started = 0
        for bucket in ready.in_order():
            if left is not None and any(name in left.kept for name, _ in bucket.request):
                nodes_wait = True
                continue
            if bucket.kind is WorkerKind.LOOP:
                self._place_coroutines(bucket)
            else:
                self._place_tasks(bucket)
            head = bucket.first() if bucket.nodes else None
            if head is not None:
                nodes_wait = True
                left = left or _LeftOver()
                self._note_waiting(bucket, head, left)
        ready.may_have_nodes = nodes_wait
        if left is None:
            return False
        for head, before in left.stuck:
            head.passed_over += self._started - before
        for allocation in left.reserved:
            self._loom.ledger.release(allocation)
        return left.wanted > 0 and self._want_processes(left.wanted)

    def _place_lone(self, node: Node) -> bool:
        """Give the only ready node to an idle worker; whether that was possible."""
        if node.state is not NodeState.READY:
            return True  # cancelled meanwhile: nothing is left to do
        if not self._idle or node.spec.function.is_coroutine:
            return False
        lease = self._loom.ledger.take(node.spec.request)
        if lease is None:
            return False
        self._place_idle(lease, node)
        return True

    def _place_idle(self, lease: Allocation, node: Node) -> None:
        """Hand a node to the idle worker that was used last."""
        worker = self._idle.pop()
        self._begin_lease(worker, lease)
        self._assign(worker, node, "placed")
        if (node.deps or type(node.args) is not bytes) and is_heavy(node):
            worker.shut_behind = node.seq
        elif node.outputs and node.outputs[0].dependents is not None:
            self._hand_followers(worker, node)

    def idle_worker(self) -> WorkerRecord | None:
        """The idle worker that was used last, if there is one and nothing waits for it."""
        loom = self._loom
        if not self._idle or loom.ready.may_have_nodes or loom.actors.has_work():
            return None
        return self._idle[-1]

    def on_handed_over(self, node: Node, worker: WorkerRecord, seq: int) -> None:
        """A new call that an idle worker has been sent already, as number ``seq``.

        It asks for nothing but CPUs, and they were free when the worker was offered; if somebody
        who had lent his has gone on since, it runs all the same, as he does.
        """
        self._lease_for(node, worker, seq)
        self._loom.graph.add(node)
        self._loom.graph.move(node, READY, "no dependencies")
        self._assign(worker, node, "handed over by its caller")

    def on_call_handed_over(self, call: PlainCall, worker: WorkerRecord, seq: int) -> None:
        """The same for a call that is no node.

        Fast path: nearly every call on its own (an eighth of its processor time is saved).
        Plain twin: :meth:`on_handed_over`.
        """
        self._lease_for(call, worker, seq)
        worker.seq = seq
        worker.got(call.spec.function.key)
        self._loom.graph.add_call_of(worker, seq, call)

    def _lease_for(self, call: Node | PlainCall, worker: WorkerRecord, seq: int) -> None:
        if worker not in self._idle or worker.seq + 1 != seq:
            raise InternalError(f"{call!r} was handed over as {seq} to {worker!r}")
        self._idle.remove(worker)
        worker.shut_behind = seq  # its caller may not have sent it yet: nothing may go before it
        self._begin_lease(worker, self._loom.ledger.acquire(call.spec.request))

    def _begin_lease(self, worker: WorkerRecord, lease: Allocation) -> None:
        worker.lease = lease
        leased = self._leased.get(lease.request)
        if leased is None:
            leased = self._leased[lease.request] = {}
        leased[worker.number] = worker

    def _note_waiting(self, bucket: Bucket, head: Node | PlainCall, left: _LeftOver) -> None:
        """Nodes of a bucket are left over: for want of workers, or of resources."""
        ledger = self._loom.ledger
        if bucket.kind is WorkerKind.PROCESS and ledger.fits(bucket.request):
            # Nothing is kept for a process that may not be started: others can use it meanwhile.
            room = self._max_processes - self._count_processes()
            left.wanted += room <= 0
            for _ in range(min(len(bucket.nodes), room)):
                if not ledger.fits(bucket.request):
                    break
                left.wanted += 1
                left.reserved.append(ledger.acquire(bucket.request))
        if not ledger.fits(bucket.request):
            self._note_stuck(head, left)

    def _note_stuck(self, head: Node | PlainCall, left: _LeftOver) -> None:
        """A node, first of its kind, does not fit now."""
        if head.passed_over > PATIENCE:
            left.kept.update(self._loom.ledger.short_of(head.spec.request))
        left.stuck.append((head, self._started))

    def _make_way_for_actors(self) -> _LeftOver:
        """Actors that do not fit now wait no longer than tasks do."""
        left = _LeftOver()
        self._started = 0
        for constructor in self._loom.actors.heads_that_wait():
            self._note_stuck(constructor, left)
        return left

    def _place_tasks(self, bucket: Bucket) -> None:
        """To idle workers first, one each; then behind the short tasks of busy ones."""
        ledger, request = self._loom.ledger, bucket.request
        # What fits is asked before a node is made of the first call: behind calls it makes nodes of
        # them, too.  Of 2,000 calls that 20 tasks submit, 830 became nodes, and 50 do now.
        while bucket.nodes and self._idle and ledger.fits(request):
            node = bucket.head()
            if node is None:
                break
            bucket.nodes.popleft()
            self._place_idle(ledger.acquire(request), node)
        if not bucket.nodes:
            return
        leased = self._leased.get(request)
        if not leased:
            return
        room = self._loom.times.room
        open_workers = [
            worker
            for worker in leased.values()
            if not worker.pending_requests and room(worker, 1 / MAX_BATCH) > 0
        ]
        for position, worker in enumerate(open_workers):
            # An even share for each, so that nobody sits idle while another one has a queue.
            share = -(-len(bucket.nodes) // (len(open_workers) - position))
            self._top_up(worker, bucket, share)

    def _top_up(self, worker: WorkerRecord, bucket: Bucket, share: int) -> None:
        function, room = None, 0
        nodes = bucket.nodes
        while share > 0 and nodes:
            first = nodes[0]
            if isinstance(first, PlainCall) and first.is_plain and not first.has_follower:
                handed = self._loom.calls.hand_out(worker, nodes, first.spec, share)
                if not handed and first.is_plain:
                    return
                self._started += handed
                share -= handed
                function = None
                continue
            node = bucket.head()
            if node is None:
                return
            if node.deps or type(node.args) is not bytes:
                function, room = None, self._room(worker, node)
            elif node.spec.function is not function:  # calls of one mostly stand together
                function, room = node.spec.function, self._room(worker, node)
            if room <= 0:
                return
            nodes.popleft()
            self._assign(worker, node, "placed")
            room -= 1
            if node.outputs and node.outputs[0].dependents is not None:
                function = None
                self._hand_followers(worker, node)
            share -= 1

    def _room(self, worker: WorkerRecord, node: Node) -> int:
        """How many like this node a worker may have besides what it has; large ones go alone."""
        times = self._loom.times
        if (node.deps or type(node.args) is not bytes) and is_heavy(node):
            return times.room(worker, 1.0)
        share = times.share(node.spec.function.key)
        room = times.room(worker, share)
        if worker.calls:  # they become nodes before it: not for one that is longer than they are
            room = min(room, int(1 / share) - worker.load)
        return room

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
        function, room = None, 0
        while len(node.outputs) == 1:
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
                or is_heavy(follower)
            ):
                return
            if spec.function is not function:  # the links of a chain mostly are of one
                function, room = spec.function, self._room(worker, follower)
            if room <= 0:
                return
            room -= 1
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
        worker.inflight[node.seq] = node  # what it has as calls gets nodes: they were before this
        if worker.kind is PROCESS:
            worker.got(node.spec.function.key)
        self._loom.graph.move(node, ASSIGNED, why)
        if node.spec.pace is not None:
            self._loom.deadlines.on_handed_out(node)
        self._started += 1
        self._loom.outbox.run(worker, node)

    def _want_processes(self, wanted: int) -> bool:
        """Start workers, within the limit; beyond it, nobody may wait for ever.

        Returns: whether calls were failed.
        """
        processes = [w for w in self._loom.workers.values() if w.kind is WorkerKind.PROCESS]
        starting = sum(not worker.ready for worker in processes)
        allowed = 0 if self.is_short else self._max_processes - len(processes)
        # In waves of as many as there are CPUs: short tasks without CPUs need no more.
        missing = min(wanted, self._wave) - starting
        missing = min(missing, allowed)
        if missing > 0:
            self._loom.outbox.start_workers(WorkerKind.PROCESS, missing)
        elif not starting and allowed <= 0:
            return self._fail_what_is_too_deep(processes)
        return False

    def _fail_what_is_too_deep(self, processes: list[WorkerRecord]) -> bool:
        """Every process belongs to a task that waits, and what they wait for needs one more.

        Failing a call wakes the task that waits for it, so no more fail than it takes to go on.

        Returns: whether any did.
        """
        failed = False
        while all(worker.blocked for worker in processes) and not self._coroutines_move():
            heads = (
                bucket
                for bucket in self._loom.ready.in_order()
                if bucket.kind is WorkerKind.PROCESS and self._loom.ledger.fits(bucket.request)
            )
            bucket = next(heads, None)
            head = bucket.head() if bucket is not None else None
            if bucket is None or head is None:
                break
            bucket.nodes.popleft()
            failed = True
            error = self._loom.outbox.too_deep(head)
            self._loom.fail(head, error, "too deep")
        return failed

    def check_progress(self) -> bool:
        """Take back what waits behind a long task; whether some worker has a queue."""
        loom = self._loom
        queued = False
        for worker in loom.workers.values():
            if worker.load < 2 or worker.kind is not WorkerKind.PROCESS:
                continue
            queued = True
            oldest = worker.oldest_seq
            if oldest == worker.last_progress and worker.asked_back != oldest:
                worker.asked_back = oldest  # once is enough
                loom.outbox.take_back(worker)
            worker.last_progress = oldest
        return queued

    def _count_processes(self) -> int:
        workers = self._loom.workers.values()
        return sum(worker.kind is WorkerKind.PROCESS for worker in workers)

    def _coroutines_move(self) -> bool:
        """True when some coroutine or actor may still bring what others wait for."""
        return self._loom.actors.any_moves() or any(
            not worker.ready
            or (not worker.stalled and any(not node.waits for node in worker.inflight.values()))
            for worker in self._loom.workers.values()
            if worker.kind is WorkerKind.LOOP
        )
