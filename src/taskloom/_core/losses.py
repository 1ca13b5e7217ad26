"""A worker is gone: what becomes of the attempts that ran there, and of what waited behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from taskloom._core.memory_victims import MemoryRetries
from taskloom._core.node import Node, WorkerKind, WorkerRecord
from taskloom._core.orphans import orphans
from taskloom._core.retries import may_retry
from taskloom._core.states import NodeState

if TYPE_CHECKING:
    from taskloom._core.reactor import Reactor


def worker_lost(
    loom: Reactor,
    worker: WorkerRecord,
    started: int,
    crash: Callable[[Node], object],
    memory: MemoryRetries | None,
) -> None:
    """A worker that ran tasks is gone.

    Args:
        loom: whose worker it was.
        worker: which one.
        started: the ``seq`` of the last task that it had begun.
        crash: makes the error for a task that has no attempt left.
        memory: when it was ended for want of memory: who is tried again, and when.
    """
    del loom.workers[worker.number]
    loom.scheduler.remove(worker)
    # A PROCESS worker runs one after another: what came before ``started`` had finished, and
    # only its result is lost (one that may not run twice is sent before the next begins).
    innocent = [
        seq
        for seq in worker.seqs()
        if seq > started or (seq < started and worker.kind is WorkerKind.PROCESS)
    ]
    loom.put_back(worker, innocent, "its worker died, but not of it")
    running = list(worker.inflight.values())
    worker.inflight.clear()
    for node in running:
        loom.left_worker(node)
        loom.release_allocation(node)
    loom.end_lease(worker)
    if loom.scopes.open:
        loom.scopes.on_worker_lost(worker)
    died = [node for node in running if node.state is NodeState.ASSIGNED]  # else: cancelled
    for node in died:
        if node.overdue:
            loom.deadlines.overdue_left(node)
        elif memory is not None and memory.may_retry(node):
            loom.deadlines.retry_for_memory(node, memory)
        elif memory is None and may_retry(node):
            loom.deadlines.next_attempt(node, "retry after a crash")
        else:
            loom.fail(node, crash(node), "its worker died")
    borrowed = worker.borrowed
    loom.release_borrowed(worker)
    loom.cancel_all(orphans(loom.graph, died, borrowed.values()), force=False, recursive=True)


def actor_worker_lost(loom: Reactor, worker: WorkerRecord, started: int, why: str) -> None:
    """The same for the process of an actor."""
    del loom.workers[worker.number]
    died = [node for node in worker.inflight.values() if node.state is NodeState.ASSIGNED]
    for node in worker.inflight.values():
        loom.left_worker(node)
    loom.actors.on_worker_lost(worker, started, why)
    if loom.scopes.open:
        loom.scopes.on_worker_lost(worker)
    borrowed = worker.borrowed
    loom.release_borrowed(worker)
    loom.cancel_all(orphans(loom.graph, died, borrowed.values()), force=False, recursive=True)
