"""The reactions: each event of the outside world, and what follows from it.

Plain synchronous Python: no loop, socket, process or clock.  Events come in through ``on_*``,
verbs go out through the outbox.  Handing out work is not a reaction but a pass of its own
(``schedule``), which the engine makes once after each batch of events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from taskloom import _ids
from taskloom._core.actors import Actors
from taskloom._core.alarms import Alarm
from taskloom._core.deadlines import Deadlines
from taskloom._core.graph import Graph
from taskloom._core.lending import blocked, unblocked
from taskloom._core.losses import actor_worker_lost, worker_lost
from taskloom._core.memory_victims import MemoryRetries
from taskloom._core.node import (
    PROCESS,
    Error,
    Node,
    ObjectRecord,
    PlainCall,
    WorkerKind,
    WorkerRecord,
)
from taskloom._core.outbox import Outbox
from taskloom._core.placement import RunTimes
from taskloom._core.plain_calls import PlainCalls
from taskloom._core.ready_queue import ReadyQueue
from taskloom._core.resources import Ledger
from taskloom._core.retries import may_retry
from taskloom._core.scheduler import Scheduler
from taskloom._core.scopes import Scopes
from taskloom._core.states import ASSIGNED, READY, TERMINAL, NodeState
from taskloom._core.streams import Streams


class Reactor:
    """The loom: graph, queue, books and workers, and what happens to them.

    Args:
        ledger: what there is to give out.
        outbox: who carries out the decisions.
        max_processes: how many PROCESS workers there may be, those that wait included.
        grace_s: how long a task may take to end after it was told to; None for ever.
    """

    def __init__(
        self, ledger: Ledger, outbox: Outbox, max_processes: int, grace_s: float | None = None
    ) -> None:
        self.ledger = ledger
        self.outbox = outbox
        self.graph = Graph(outbox.resolve, outbox.resolve_all, outbox.report_unseen)
        self.ready = ReadyQueue()
        self.times = RunTimes()
        self.workers: dict[int, WorkerRecord] = {}
        self.late_messages = 0
        self._stopping: dict[int, Node] = {}  # cancelled, but their workers still have them
        self.scopes = Scopes(self)
        self.actors = Actors(self)
        self.streams = Streams(self)
        self.calls = PlainCalls(self)
        self.scheduler = Scheduler(self, max_processes)
        self.deadlines = Deadlines(self, grace_s)

    def on_shortage(self, *, over: bool = False) -> None:
        """The system gives no further processes, for now: as if there were as many as may be."""
        self.scheduler.is_short = not over
        self.ready.may_have_nodes = True  # who waits for a process must be looked at again

    def schedule(self) -> None:
        """One pass: hand out what can run now."""
        if self.scopes.alarmed:
            self.scopes.on_alarm()
        if self.graph.unwanted:
            self._cancel_unwanted()
        if self.streams.dropped:
            self.streams.on_pass()
        if self.actors.has_work():
            self.actors.run_pass()
        if self.ready.may_have_nodes:
            self.scheduler.run_pass()
            if self.graph.stirred:  # it had to fail something
                self.actors.run_pass()

    def _cancel_unwanted(self) -> None:
        """Cancel tasks whose awaits were cancelled and whose results nobody wants any more."""
        unwanted, self.graph.unwanted = self.graph.unwanted, []
        for record in unwanted:
            node = self.graph.node_of(record)
            if node is not None and not any(output.holds for output in node.outputs):
                self.on_cancel(record.key, force=False, recursive=True)

    # -- what callers do ----------------------------------------------------------------------

    def on_submit(self, node: Node) -> None:
        """A new call."""
        error: Error | None = self.graph.add(node)
        if (
            error is None
            and node.scope is None
            and node.parent is None
            and not node.unfinished
            and self.ledger.can_ever_fit(node.spec.request)
        ):
            # Fast path: what a program submits, on its own or with all its arguments there.
            # Plain twin: the cases below, each of which ends alike for such a call.
            self.graph.move(node, READY, "no dependencies")
            self.ready.push(node)
        elif node.scope is not None and not node.scope.enter(node):
            self.fail(node, self.outbox.cancelled(node), "its group was cancelled")
        elif error is not None:
            self.fail(node, error.inherit(), "dependency failed")
        elif not self.ledger.can_ever_fit(node.spec.request):
            self.fail(node, self.outbox.unschedulable(node), "can never run")
        elif node.parent is not None and (node.parent.cancel_asked or node.parent.overdue):
            self.fail(node, self.outbox.cancelled(node), "its parent was cancelled")
        elif not node.unfinished:
            self.graph.move(node, NodeState.READY, "no dependencies")
            self.ready.push(node)

    def on_put(self, record: ObjectRecord, outcome: Any, contained: Iterable[int]) -> None:
        """A new object with its value."""
        self.graph.add_value(record, outcome, contained)

    def on_cancel(self, key: int, *, force: bool, recursive: bool) -> None:
        """Cancel the task that makes the object ``key``; nothing happens when it is done."""
        record = self.graph.objects.get(key)
        node = self.graph.node_of(record) if record is not None else None
        if node is None:
            stopping = self._stopping.get(_ids.task_of(key))
            if force and stopping is not None and stopping.worker is not None:
                self.outbox.interrupt(stopping.worker, stopping.seq, force=True)
            return
        self.cancel_all([node], force=force, recursive=recursive)

    def cancel_children(self, node: Node) -> None:
        """Cancel what an attempt has submitted, and what that has."""
        if node.submitted:
            self.cancel_all(node.children, force=False, recursive=True)

    def cancel_all(self, todo: list[Node], *, force: bool, recursive: bool) -> None:
        while todo:
            node = todo.pop()
            if recursive and node.submitted:
                todo.extend(node.children)
            self.cancel_node(node, force=force, recursive=recursive)

    def stopping_task(self, key: int) -> Node | None:
        """The cancelled task that made the object ``key``, if a worker still has it."""
        return self._stopping.get(_ids.task_of(key))

    def on_withdraw(self, key: int) -> bool:
        """Cancel the task that makes ``key`` if no worker has it yet; whether that was so."""
        record = self.graph.objects.get(key)
        node = self.graph.node_of(record) if record is not None else None
        if node is None or node.state is NodeState.ASSIGNED:
            return False
        self.cancel_node(node, force=False, recursive=False)
        return True

    def cancel_node(self, node: Node, *, force: bool, recursive: bool) -> None:
        """End one call, and with it all that depend on it."""
        if node.state in TERMINAL:
            return
        # Children that are submitted from now on are cancelled at once.
        node.cancel_asked = node.cancel_asked or recursive
        was_ready = node.state is NodeState.READY
        self.fail_and_stop(node, self.outbox.cancelled(node), "cancelled", force=force)
        if was_ready:
            self.ready.note_dead(node)

    def fail_and_stop(self, node: Node, error: object, why: str, *, force: bool = False) -> None:
        """End a node and all that depend on it, wherever they are."""
        worker = node.worker
        if (
            worker is not None
            and worker.inflight.get(node.seq) is node
            and node.key not in self._stopping
        ):
            self.outbox.warn(worker)  # before anybody can see that it has ended
        for ended in self.graph.fail(node, error, why):  # type: ignore[arg-type]  # opaque to the core
            worker = ended.worker
            if worker is not None and worker.inflight.get(ended.seq) is ended:
                self.tell_to_stop(ended, force=force and ended is node and ended.actor is None)
            elif ended.alarm is not None:
                self.deadlines.forget(ended)

    def tell_to_stop(self, node: Node, *, force: bool) -> None:
        """Have the worker end an attempt.

        The slot is free only when the worker says so: the node stays in ``inflight``.
        """
        assert node.worker is not None
        if force or node.key not in self._stopping:
            self.outbox.interrupt(node.worker, node.seq, force=force)
        self._stopping[node.key] = node
        self.deadlines.on_told_to_stop(node)

    def give_no_more_work(self, worker: WorkerRecord) -> None:
        """Nothing new for a worker that has some."""
        self.scheduler.remove(worker)

    def give_work_again(self, worker: WorkerRecord) -> None:
        """The worker is like any other again."""
        self.scheduler.add_idle(worker)

    # -- what workers say ---------------------------------------------------------------------

    def on_worker_started(self, worker: WorkerRecord) -> None:
        """A worker has been spawned; it gets work when it is ready."""
        self.workers[worker.number] = worker

    def on_worker_ready(self, worker: WorkerRecord) -> None:
        worker.ready = True
        if worker.kind is WorkerKind.ACTOR:
            self.actors.on_worker_ready(worker)
        else:
            self.scheduler.add_idle(worker)

    def on_done(
        self, worker: WorkerRecord, seq: int, outcomes: Sequence[Any], contained: Sequence[Any],
        seconds: float,
    ) -> None:  # fmt: skip
        """A task has returned."""
        if (node := worker.node_at(seq)) is None:
            self.late_messages += 1
            return
        del worker.nodes[seq]
        actor = node.actor
        if actor is None:
            function = node.spec.function.key
            self.times.note(function, seconds)
            if worker.kind is PROCESS:
                worker.lost(function)
        else:
            actor.last_s = seconds
        # Release before resolving: who is woken may submit at once and should find room.
        if self._is_watched(node):
            self.left_worker(node)
        if actor is not None:
            self.actors.on_left(worker, node)
        elif not worker.load or worker.kind is not PROCESS:
            self._free(worker, node)  # else there is nothing to release
        if node.overdue:
            self.deadlines.overdue_left(node)
        elif node.state is ASSIGNED:
            if node.stream is not None and node.stream.lacks_items(node):
                self.fail(node, self.outbox.contradicted(node), "it yields less than before")
                return
            if actor is not None and node is actor.creation:
                actor.last_s = None  # says nothing about its calls
                self.actors.on_constructed(actor)
            ready = self.graph.finish(node, outcomes, contained)
            if ready:
                self.make_all_ready(ready)

    def on_failed(
        self, worker: WorkerRecord, seq: int, error: Error | None, *, retry: bool, seconds: float
    ) -> None:
        """A task has raised (``error`` None: it was not started)."""
        if (node := worker.node_at(seq)) is None:
            self.late_messages += 1
            return
        del worker.nodes[seq]
        if worker.kind is PROCESS:
            worker.lost(node.spec.function.key)
        if error is not None:
            self.times.note(node.spec.function.key, seconds)
        if self._is_watched(node):
            self.left_worker(node)
        if node.actor is not None:
            self.actors.on_left(worker, node)
        elif not worker.load or worker.kind is not PROCESS:
            self._free(worker, node)
        if node.overdue:
            self.deadlines.overdue_left(node)
            return
        if node.state is not NodeState.ASSIGNED:
            return
        if node.actor is not None:
            self.actors.on_failed(node, error, retry=retry)
            return
        if error is None:
            # What it follows did not run there, or raised and is tried again.
            node.attempt -= 1
            self.make_ready(node, "its dependency is not there yet")
            return
        if retry and may_retry(node):
            self.deadlines.next_attempt(node, "retry after an exception")
            return
        self.fail(node, error, "exception")

    def on_returned(self, worker: WorkerRecord, low: int, high: int) -> None:
        """What has ``low < seq <= high`` was not started there and never will be."""
        back = [seq for seq in worker.seqs() if low < seq <= high]
        self.put_back(worker, back, "taken back")
        if worker.deaf:
            worker.silent = False
            self.deadlines.check_deaf(worker)
        if worker.load:  # something holds it up: nothing queues behind that again
            worker.shut_behind = worker.oldest_seq

    def on_worker_lost(
        self,
        worker: WorkerRecord,
        started: int,
        crash: Callable[[Node], object],
        memory: MemoryRetries | None = None,
    ) -> None:
        """A worker is gone: see :func:`losses.worker_lost`."""
        worker_lost(self, worker, started, crash, memory)

    def on_actor_worker_lost(self, worker: WorkerRecord, started: int, why: str) -> None:
        """The same for the process of an actor; see ``Actors.on_worker_lost``."""
        actor_worker_lost(self, worker, started, why)

    def on_worker_retired(self, worker: WorkerRecord) -> None:
        """An idle worker is about to be stopped: it gets no more work."""
        del self.workers[worker.number]
        if worker in self.actors.spare:
            self.actors.spare.remove(worker)
        self.scheduler.remove(worker)
        self.release_borrowed(worker)

    def on_began(self, worker: WorkerRecord, seq: int, when: float) -> None:
        """A coroutine with a time limit has begun; ``when`` by the clock of its worker."""
        node = worker.inflight.get(seq)
        if node is not None and node.alarm is not None:
            node.alarm.began = when

    def on_alarm(self, alarm: Alarm) -> None:
        """The time of an alarm is over."""
        self.deadlines.on_alarm(alarm)

    def on_borrow(self, worker: WorkerRecord, keys: Iterable[int]) -> None:
        """Refs to these objects live in the worker from now on."""
        for key in keys:
            record = self.graph.objects.get(key)
            # A handle of itself is none of the reasons to keep an actor.
            if record is not None and record is not worker.actor and key not in worker.borrowed:
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
        """A task waits for objects that are not there yet: see :func:`lending.blocked`."""
        return blocked(self, worker, running, seq)

    def on_unblocked(self, worker: WorkerRecord, running: int = 0, seq: int = 0) -> None:
        """One of its waits was answered."""
        unblocked(self, worker, running, seq)

    def check_progress(self) -> bool:
        """Take back what waits behind a task that turns out to be long.

        To be called every few milliseconds while this returns True (some worker has tasks that
        are not started).
        """
        return self.scheduler.check_progress()

    def release_borrowed(self, worker: WorkerRecord) -> None:
        borrowed, worker.borrowed = worker.borrowed, {}
        for record in borrowed.values():
            self.graph.release(record)

    # -- shared steps -------------------------------------------------------------------------

    def make_all_ready(self, nodes: Iterable[Node]) -> None:
        """Their last argument is there."""
        for node in nodes:
            if node.actor is None:
                self.ready.push(node)
            else:
                self.actors.on_ready(node)

    def make_ready(self, node: Node, why: str) -> None:
        """The node may be handed out (again), or waits for what is missing."""
        if not self._come_back(node, why):
            return
        if node.actor is None:
            self.ready.push(node)
        else:
            self.actors.on_ready(node)

    def _come_back(self, node: Node, why: str) -> bool:
        """The node is not handed out any more; True when it is READY and belongs in the queue."""
        node.worker = None
        node.waits = 0
        if node.unfinished:  # it had followed what it waits for
            self.graph.move(node, NodeState.WAITING, why)
            return False
        self.graph.move(node, NodeState.READY, why)
        return True

    def fail(self, node: Node, error: object, why: str) -> None:
        """End a node and all that depend on it; who is with a worker stays there until it ends."""
        for ended in self.graph.fail(node, error, why):  # type: ignore[arg-type]  # opaque to the core
            if ended.alarm is not None and ended.worker is None:
                self.deadlines.forget(ended)  # its next attempt: there is none

    def fail_everything(self, error: object, why: str) -> None:
        """Nothing can run any more."""
        for node in list(self.graph.nodes.values()):
            self.fail(node, error, why)

    def put_back(self, worker: WorkerRecord, seqs: list[int], why: str) -> None:
        """Hand-outs that never started: free of charge, and before all that came later."""
        back: list[Node | PlainCall] = []
        for seq in seqs:
            if (call := worker.calls.pop(seq, None)) is not None:
                call.where = self.graph
                worker.lost(call.spec.function.key)
                back.append(call)
                continue
            node = worker.nodes.pop(seq)
            if worker.kind is PROCESS:
                worker.lost(node.spec.function.key)
            self.left_worker(node)
            self.release_allocation(node)
            if node.state is NodeState.ASSIGNED:
                node.overdue = node.cancel_told = False
                node.attempt -= 1
                if self._come_back(node, why):
                    back.append(node)
        self.ready.push_front(back)
        if seqs and not worker.load and worker.number in self.workers:
            self.end_lease(worker)
            if not worker.pending_requests:
                self.scheduler.add_idle(worker)

    def _free(self, worker: WorkerRecord, node: Node) -> None:
        """What a task has held is free for others."""
        if worker.kind is WorkerKind.LOOP:
            self.release_allocation(node)
            if worker.deaf:
                self.deadlines.check_deaf(worker)
        else:
            self.free(worker)

    def free(self, worker: WorkerRecord) -> None:
        """A PROCESS worker has nothing in flight any more."""
        self.end_lease(worker)
        if not worker.pending_requests:
            self.scheduler.add_idle(worker)

    def _is_watched(self, node: Node) -> bool:
        """Whether somebody may want to know that a worker is through with the node."""
        return bool(self._stopping or self.scopes.open or node.alarm is not None)

    def left_worker(self, node: Node) -> None:
        self._stopping.pop(node.key, None)
        if node.alarm is not None:
            self.deadlines.forget(node)
        if self.scopes.open:
            self.scopes.on_left(node)

    def release_allocation(self, node: Node) -> None:
        if node.allocation is not None:
            self.ledger.release(node.allocation)
            node.allocation = None

    def end_lease(self, worker: WorkerRecord) -> None:
        if worker.lease is not None:
            self.ledger.release(worker.lease)
            self.scheduler.lease_ended(worker)
            worker.lease = None
