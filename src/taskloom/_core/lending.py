"""Tasks that wait for others: what they lend meanwhile.

A task that is blocked in ``get`` lends its CPUs, and what stands behind it on its worker goes back.
A coroutine that awaits lends its own CPUs.  One that calls a blocking ``get`` keeps the whole loop
from turning, so all in it lend theirs until it goes on.  Actors: see ``Actors.lend_or_reclaim``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskloom._core.node import Node, WorkerKind, WorkerRecord
from taskloom._core.outbox import Outbox
from taskloom._core.resources import Ledger

if TYPE_CHECKING:
    from taskloom._core.reactor import Reactor


def blocked(loom: Reactor, worker: WorkerRecord, running: int, seq: int) -> int:
    """A task of the worker waits for objects that are not there yet.

    Args:
        loom: whose books are concerned.
        worker: which one.
        running: the ``seq`` of the task whose main thread waits; 0 when it is another thread, so
            that the main thread may go on taking up work; -1 when the thread is that of an event
            loop, in which nothing moves meanwhile.
        seq: of the coroutine that waits, in a LOOP worker.

    Returns: up to which ``seq`` the tasks behind it are taken back (0: none).
    """
    worker.pending_requests += 1
    if worker.kind is WorkerKind.ACTOR:
        loom.actors.lend_or_reclaim(worker)
        return 0
    if worker.kind is WorkerKind.LOOP:
        _loop_blocked(worker, running, seq, loom.ledger, loom.outbox)
        return 0
    if worker.pending_requests == 1:
        if worker.lease is not None:
            loom.ledger.lend_cpus(worker.lease)
        else:  # a thread that a task left behind: no work for this worker meanwhile
            loom.give_no_more_work(worker)
    if not running:
        if worker.load > 1:
            loom.outbox.take_back(worker)
        return 0
    loom.put_back(worker, [seq for seq in worker.seqs() if seq > running], "blocked")
    return worker.seq


def unblocked(loom: Reactor, worker: WorkerRecord, running: int, seq: int) -> None:
    """One of its waits was answered; arguments as for :func:`blocked`."""
    worker.pending_requests -= 1
    if worker.kind is WorkerKind.ACTOR:
        loom.actors.lend_or_reclaim(worker)
        return
    if worker.kind is WorkerKind.LOOP:
        _loop_unblocked(worker, running, seq, loom.ledger)
        return
    if not worker.pending_requests:
        if worker.lease is not None:
            loom.ledger.reclaim_cpus(worker.lease)
        elif worker.ready:
            loom.give_work_again(worker)


def _loop_blocked(
    worker: WorkerRecord, running: int, seq: int, ledger: Ledger, outbox: Outbox
) -> None:
    """A coroutine, or the thread of its loop, waits; arguments as for :func:`blocked`."""
    if running < 0:
        worker.stalled += 1
        outbox.take_back(worker)
        for node in worker.inflight.values():  # none of them moves
            _lend(node, ledger)
    waiting = worker.inflight.get(seq)
    if waiting is not None:
        waiting.waits += 1
        _lend(waiting, ledger)


def _loop_unblocked(worker: WorkerRecord, running: int, seq: int, ledger: Ledger) -> None:
    """It goes on."""
    if running < 0:
        worker.stalled -= 1
    waiting = worker.inflight.get(seq)
    if waiting is not None and waiting.waits:
        waiting.waits -= 1
    if worker.stalled:
        return
    for node in worker.inflight.values() if running < 0 else (waiting,):
        if node is not None and node.allocation is not None and not node.waits:
            ledger.reclaim_cpus(node.allocation)


def _lend(node: Node, ledger: Ledger) -> None:
    if node.allocation is not None:
        ledger.lend_cpus(node.allocation)
