"""The reactions: each event of the outside world, and what follows from it.

Plain synchronous Python: no loop, socket, process or clock.  Events come in through ``on_*``,
verbs go out through the outbox.  Handing out work is not a reaction but a pass of its own
(``schedule``), which the engine makes once after each batch of events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from taskloom import _ids
from taskloom._core.graph import Graph
from taskloom._core.node import Error, Node, ObjectRecord, WorkerKind, WorkerRecord
from taskloom._core.outbox import Outbox
from taskloom._core.placement import RunTimes
from taskloom._core.ready_queue import ReadyQueue
from taskloom._core.resources import Ledger
from taskloom._core.retries import may_retry
from taskloom._core.scheduler import Scheduler
from taskloom._core.states import TERMINAL, NodeState


class Reactor:
    """The loom: graph, queue, books and workers, and what happens to them.

    Args:
        ledger: what there is to give out.
        outbox: who carries out the decisions.
        max_processes: how many PROCESS workers there may be, those that wait included.
    """

    def __init__(self, ledger: Ledger, outbox: Outbox, max_processes: int) -> None:
        self.ledger = ledger
        self.outbox = outbox
        self.graph = Graph(outbox.resolve, outbox.report_unseen)
        self.ready = ReadyQueue()
        self.times = RunTimes()
        self.workers: dict[int, WorkerRecord] = {}
        self.late_messages = 0
        self._stopping: dict[int, Node] = {}  # cancelled, but their workers still have them
        self._scheduler = Scheduler(self, max_processes)

    def schedule(self) -> None:
        """One pass: hand out what can run now."""
        if self.graph.unwanted:
            self._cancel_unwanted()
        self._scheduler.run_pass()

    def _cancel_unwanted(self) -> None:
        """Cancel tasks whose awaits were cancelled and whose results nobody wants any more."""
        unwanted, self.graph.unwanted = self.graph.unwanted, []
        for record in unwanted:
            node = record.producer
            if node is not None and not any(output.holds for output in node.outputs):
                self.on_cancel(record.key, force=False, recursive=True)

    # -- what callers do ----------------------------------------------------------------------

    def on_submit(self, node: Node) -> None:
        """A new call."""
        error: Error | None = self.graph.add(node)
        if error is not None:
            self.graph.fail(node, error.inherit(), "dependency failed")
        elif not self.ledger.can_ever_fit(node.spec.request):
            self._fail(node, self.outbox.unschedulable(node), "can never run")
        elif node.parent is not None and node.parent.cancel_asked:
            self._fail(node, self.outbox.cancelled(node), "its parent was cancelled")
        elif not node.unfinished:
            self._make_ready(node, "no dependencies")

    def on_put(self, record: ObjectRecord, outcome: Any, contained: Iterable[int]) -> None:
        """A new object with its value."""
        self.graph.add_value(record, outcome, contained)

    def on_cancel(self, key: int, *, force: bool, recursive: bool) -> None:
        """Cancel the task that makes the object ``key``; nothing happens when it is done."""
        record = self.graph.objects.get(key)
        if record is None or record.producer is None:
            stopping = self._stopping.get(_ids.task_of(key))
            if force and stopping is not None and stopping.worker is not None:
                self.outbox.interrupt(stopping.worker, stopping.seq, force=True)
            return
        todo = [record.producer]
        while todo:
            node = todo.pop()
            if recursive and node.children:
                todo.extend(node.children.values())
            self._cancel(node, force=force, recursive=recursive)

    def on_withdraw(self, key: int) -> bool:
        """Cancel the task that makes ``key`` if no worker has it yet; whether that was so."""
        record = self.graph.objects.get(key)
        node = record.producer if record is not None else None
        if node is None or node.state is NodeState.ASSIGNED:
            return False
        self._cancel(node, force=False, recursive=False)
        return True

    def _cancel(self, node: Node, *, force: bool, recursive: bool) -> None:
        if node.state in TERMINAL:
            return
        # Children that are submitted from now on are cancelled at once.
        node.cancel_asked = node.cancel_asked or recursive
        for ended in self.graph.fail(node, self.outbox.cancelled(node), "cancelled"):  # type: ignore[arg-type]  # opaque to the core
            worker = ended.worker
            if worker is not None and worker.inflight.get(ended.seq) is ended:
                # The slot is free only when the worker says so: it stays in ``inflight``.
                self._stopping[ended.key] = ended
                self.outbox.interrupt(worker, ended.seq, force=force and ended is node)

    # -- what workers say ---------------------------------------------------------------------

    def on_worker_started(self, worker: WorkerRecord) -> None:
        """A worker has been spawned; it gets work when it is ready."""
        self.workers[worker.number] = worker

    def on_worker_ready(self, worker: WorkerRecord) -> None:
        worker.ready = True
        self._scheduler.add_idle(worker)

    def on_done(
        self, worker: WorkerRecord, seq: int, outcomes: Sequence[Any], contained: Sequence[Any],
        seconds: float,
    ) -> None:  # fmt: skip
        """A task has returned."""
        node = worker.inflight.pop(seq, None)
        if node is None:
            self.late_messages += 1
            return
        self.times.note(node.spec.function.key, seconds)
        # Release before resolving: who is woken may submit at once and should find room.
        self._task_left(worker, node)
        if node.state is NodeState.ASSIGNED:
            for dependent in self.graph.finish(node, outcomes, contained):
                self.ready.push(dependent)

    def on_failed(
        self, worker: WorkerRecord, seq: int, error: Error | None, *, retry: bool, seconds: float
    ) -> None:
        """A task has raised (``error`` None: it was not started)."""
        node = worker.inflight.pop(seq, None)
        if node is None:
            self.late_messages += 1
            return
        if error is not None:
            self.times.note(node.spec.function.key, seconds)
        self._task_left(worker, node)
        if node.state is not NodeState.ASSIGNED:
            return
        if error is None:
            # What it follows did not run there, or raised and is tried again.
            node.attempt -= 1
            self._make_ready(node, "its dependency is not there yet")
            return
        if retry and may_retry(node):
            self._make_ready(node, "retry after an exception")
            return
        self._fail(node, error, "exception")

    def on_returned(self, worker: WorkerRecord, low: int, high: int) -> None:
        """What has ``low < seq <= high`` was not started there and never will be."""
        back = [seq for seq in worker.inflight if low < seq <= high]
        self._put_back(worker, back, "taken back")
        if worker.inflight:
            worker.window = 1  # something holds it up: nothing queues behind that again

    def on_worker_lost(
        self, worker: WorkerRecord, started: int, crash: Callable[[Node], object]
    ) -> None:
        """A worker is gone.

        Args:
            worker: which one.
            started: the ``seq`` of the last task that it had begun.
            crash: makes the error for a task that has no attempt left.
        """
        del self.workers[worker.number]
        self._scheduler.remove(worker)
        # A PROCESS worker runs one after another: what came before ``started`` had finished, and
        # only its result is lost (one that may not run twice is sent before the next begins).
        innocent = [
            seq
            for seq in worker.inflight
            if seq > started or (seq < started and worker.kind is WorkerKind.PROCESS)
        ]
        self._put_back(worker, innocent, "its worker died, but not of it")
        running = list(worker.inflight.values())
        worker.inflight.clear()
        for node in running:
            self._stopping.pop(node.key, None)
            self._release_allocation(node)
        self._end_lease(worker)
        for node in running:
            if node.state is not NodeState.ASSIGNED:
                continue  # cancelled meanwhile
            if may_retry(node):
                self._make_ready(node, "retry after a crash")
            else:
                self._fail(node, crash(node), "its worker died")
        self._release_borrowed(worker)

    def on_worker_retired(self, worker: WorkerRecord) -> None:
        """An idle worker is about to be stopped: it gets no more work."""
        del self.workers[worker.number]
        self._scheduler.remove(worker)
        self._release_borrowed(worker)

    def on_borrow(self, worker: WorkerRecord, keys: Iterable[int]) -> None:
        """Refs to these objects live in the worker from now on."""
        for key in keys:
            record = self.graph.objects.get(key)
            if record is not None and key not in worker.borrowed:
                record.holds += 1
                worker.borrowed[key] = record

    def on_release(self, worker: WorkerRecord, keys: Iterable[int]) -> None:
        """No ref to these objects lives in the worker any more."""
        for key in keys:
            record = worker.borrowed.pop(key, None)
            if record is not None:
                self.graph.release(record)

    # -- a task waits for others --------------------------------------------------------------

    def on_blocked(self, worker: WorkerRecord, running: int, seq: int = 0) -> int:
        """A task of the worker waits for objects that are not there yet.

        Args:
            worker: which one.
            running: the ``seq`` of the task whose main thread waits; 0 when it is another
                thread, so that the main thread may go on taking up work; -1 when the thread is
                that of an event loop, in which nothing moves meanwhile.
            seq: of the coroutine that waits, in a LOOP worker.

        Returns: up to which ``seq`` the tasks behind it are taken back (0: none).
        """
        worker.pending_requests += 1
        if worker.kind is WorkerKind.LOOP:
            self._loop_blocked(worker, running, seq)
            return 0
        if worker.pending_requests == 1:
            if worker.lease is not None:
                self.ledger.lend_cpus(worker.lease)
            else:  # a thread that a task left behind: no work for this worker meanwhile
                self._scheduler.remove(worker)
        if not running:
            if len(worker.inflight) > 1:
                self.outbox.take_back(worker)
            return 0
        self._put_back(worker, [seq for seq in worker.inflight if seq > running], "blocked")
        return worker.seq

    def _loop_blocked(self, worker: WorkerRecord, running: int, seq: int) -> None:
        if running < 0:
            worker.stalled += 1
            self.outbox.take_back(worker)
        node = worker.inflight.get(seq)
        if node is not None:
            node.waits += 1
            if node.waits == 1 and node.allocation is not None:
                self.ledger.lend_cpus(node.allocation)

    def _loop_unblocked(self, worker: WorkerRecord, running: int, seq: int) -> None:
        if running < 0:
            worker.stalled -= 1
        node = worker.inflight.get(seq)
        if node is not None and node.waits:
            node.waits -= 1
            if not node.waits and node.allocation is not None:
                self.ledger.reclaim_cpus(node.allocation)

    def on_unblocked(self, worker: WorkerRecord, running: int = 0, seq: int = 0) -> None:
        """One of its waits was answered; arguments as for :meth:`on_blocked`."""
        worker.pending_requests -= 1
        if worker.kind is WorkerKind.LOOP:
            self._loop_unblocked(worker, running, seq)
            return
        if not worker.pending_requests:
            if worker.lease is not None:
                self.ledger.reclaim_cpus(worker.lease)
            elif worker.ready:
                self._scheduler.add_idle(worker)

    def check_progress(self) -> bool:
        """Take back what waits behind a task that turns out to be long.

        To be called every few milliseconds while this returns True (some worker has tasks that
        are not started).
        """
        queued = False
        for worker in self.workers.values():
            if len(worker.inflight) < 2 or worker.kind is not WorkerKind.PROCESS:
                continue
            queued = True
            oldest = next(iter(worker.inflight))
            if oldest == worker.last_progress and worker.asked_back != oldest:
                worker.asked_back = oldest  # once is enough
                self.outbox.take_back(worker)
            worker.last_progress = oldest
        return queued

    def _release_borrowed(self, worker: WorkerRecord) -> None:
        borrowed, worker.borrowed = worker.borrowed, {}
        for record in borrowed.values():
            self.graph.release(record)

    # -- shared steps -------------------------------------------------------------------------

    def _make_ready(self, node: Node, why: str) -> None:
        node.worker = None
        node.waits = 0
        if node.unfinished:  # it had followed what it waits for
            self.graph.move(node, NodeState.WAITING, why)
        else:
            self.graph.move(node, NodeState.READY, why)
            self.ready.push(node)

    def _fail(self, node: Node, error: object, why: str) -> None:
        self.graph.fail(node, error, why)  # type: ignore[arg-type]  # opaque to the core

    def _put_back(self, worker: WorkerRecord, seqs: list[int], why: str) -> None:
        """Hand-outs that never started: free of charge, and before all that came later."""
        nodes: list[Node] = []
        for seq in seqs:
            node = worker.inflight.pop(seq)
            self._stopping.pop(node.key, None)
            self._release_allocation(node)
            if node.state is NodeState.ASSIGNED:
                node.attempt -= 1
                node.waits = 0
                node.worker = None
                if node.unfinished:  # it followed what it waits for
                    self.graph.move(node, NodeState.WAITING, why)
                else:
                    self.graph.move(node, NodeState.READY, why)
                    nodes.append(node)
        self.ready.push_front(nodes)
        if seqs and not worker.inflight and worker.number in self.workers:
            self._end_lease(worker)
            if not worker.pending_requests:
                self._scheduler.add_idle(worker)

    def _task_left(self, worker: WorkerRecord, node: Node) -> None:
        """The worker is through with a node."""
        self._stopping.pop(node.key, None)
        if worker.kind is WorkerKind.LOOP:
            self._release_allocation(node)
        elif not worker.inflight:
            self._end_lease(worker)
            if not worker.pending_requests:
                self._scheduler.add_idle(worker)

    def _release_allocation(self, node: Node) -> None:
        if node.allocation is not None:
            self.ledger.release(node.allocation)
            node.allocation = None

    def _end_lease(self, worker: WorkerRecord) -> None:
        if worker.lease is not None:
            self.ledger.release(worker.lease)
            self._scheduler.lease_ended(worker)
            worker.lease = None
