"""Time in the loom: pauses between attempts, limits of attempts, and patience with the deaf.

When an attempt runs longer than its ``timeout=`` it is stopped as by a cancel: one interrupt, and
the end of the worker for who does not listen in the grace period.  What becomes of the node is
decided when the limit strikes:

* No retry: the node fails at once, and all that depend on it.  The worker keeps the attempt until
  it says that it is over, as with a cancelled one.
* A retry: the node stays ASSIGNED and is ``overdue``.  Whatever the attempt ends with, a value
  included, it has failed; only then the next one begins, so that two attempts never overlap.

The children of an attempt that is stopped are cancelled with it.

Who does not listen: a process is killed.  An event loop is not, for the sake of the other
coroutines in it.  It gets no new ones (``deaf``), gives back what it has not begun, and is killed
when only such are left that were told to stop; if they end after all, it is used again.  When it
does not even answer (somebody holds the GIL) nothing in it moves, and it is killed as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from random import random
from typing import TYPE_CHECKING, Final

from taskloom._core.alarms import Alarm, AlarmKind
from taskloom._core.node import Node, WorkerKind, WorkerRecord
from taskloom._core.retries import may_retry, pause_s
from taskloom._core.states import NodeState

if TYPE_CHECKING:
    from taskloom._core.memory_victims import MemoryRetries
    from taskloom._core.reactor import Reactor

NOT_BEGUN_S: Final = 0.02
"""No sooner is it asked again whether an attempt has begun, however short its limit is."""
STILL_QUEUED_S: Final = 1.0
"""The same for one that was cancelled while it stood behind another one; and the least time
that an event loop has to answer."""
_TICK_S: Final = 0.001  # a rest of less would ring at this very moment, and again


class Deadlines:
    """Sets the alarms of nodes and reacts to them.

    Args:
        loom: the graph and the workers.
        grace_s: how long a task may take to end after it was told to; None for ever.
        dice: gives numbers from 0 to 1; simulations have their own.
    """

    def __init__(
        self, loom: Reactor, grace_s: float | None, dice: Callable[[], float] = random
    ) -> None:
        self._loom = loom
        self._grace_s = grace_s
        self._dice = dice

    # -- setting ------------------------------------------------------------------------------

    def on_handed_out(self, node: Node) -> None:
        """A worker gets an attempt."""
        pace = node.spec.pace
        if pace is not None and pace.timeout_s is not None:
            self._set(Alarm(AlarmKind.LIMIT, node), pace.timeout_s)

    def on_told_to_stop(self, node: Node) -> None:
        """The worker was asked to end the attempt."""
        if node.actor is not None:  # a method may go on: an actor is not ended for that
            self.forget(node)
            return
        if node.alarm is not None:
            if node.alarm.kind is not AlarmKind.LIMIT:
                return  # asked before
            self.forget(node)
        if self._grace_s is not None:
            self._set(Alarm(AlarmKind.GRACE, node), self._grace_s)

    def next_attempt(
        self, node: Node, why: str, *, at_least_s: float = 0.0, failures: int | None = None
    ) -> None:
        """An attempt has failed and there is another one: now, or after a pause.

        Args:
            node: whose attempt it was.
            why: for the log of moves.
            at_least_s: how long the pause is at least.
            failures: how many there were in a row, if that is not the number of the attempt.
        """
        node.overdue = node.cancel_told = False
        failures = node.attempt if failures is None else failures
        pause = max(at_least_s, pause_s(failures, node.spec.pace, self._dice))
        if pause <= 0:
            self._loom.make_ready(node, why)
            return
        node.worker = None
        self._loom.graph.move(node, NodeState.BACKOFF, why)
        self._set(Alarm(AlarmKind.RETRY, node), pause)

    def overdue_left(self, node: Node) -> None:
        """An attempt that ran out of time is over, and may be repeated."""
        node.overdue = False
        if node.state is NodeState.ASSIGNED:  # not cancelled meanwhile
            if node.actor is not None:
                self._loom.actors.keep_place(node)
            self.next_attempt(node, "retry after a timeout")

    def retry_for_memory(self, node: Node, memory: MemoryRetries) -> None:
        """Another attempt that does not count, and not at once: memory should be there first."""
        pause = memory.charge(node, self._loom.graph)
        self.next_attempt(node, "its worker was ended for memory", at_least_s=pause)
        node.attempt -= 1

    def forget(self, node: Node) -> None:
        """The node needs no alarm any more."""
        alarm, node.alarm = node.alarm, None
        if alarm is not None:
            self._loom.outbox.forget_alarm(alarm)

    def _set(self, alarm: Alarm, delay_s: float) -> None:
        alarm.node.alarm = alarm
        self._loom.outbox.wake_later(alarm, delay_s)

    # -- ringing ------------------------------------------------------------------------------

    def on_alarm(self, alarm: Alarm) -> None:
        node = alarm.node
        if not alarm.is_set:
            return
        if alarm.kind is AlarmKind.RETRY:
            node.alarm = None
            self._loom.make_ready(node, "retry after a pause")
        elif alarm.kind is AlarmKind.LIMIT:
            self._check_limit(alarm)
        elif alarm.kind is AlarmKind.SILENCE:
            node.alarm = None
            if node.worker is not None and node.worker.silent:
                self._loom.outbox.kill(node.worker, _why(node))
        else:
            self._lose_patience(alarm)

    def _check_limit(self, alarm: Alarm) -> None:
        node, pace = alarm.node, alarm.node.spec.pace
        assert pace is not None
        assert pace.timeout_s is not None
        worker = node.worker
        if node.state is not NodeState.ASSIGNED or worker is None:
            node.alarm = None  # what it depends on failed: the worker will say so
            return
        ran_s = self._loom.outbox.ran_s(worker, node)
        if ran_s is None:
            self._set(alarm, max(pace.timeout_s, NOT_BEGUN_S))  # it begins later than now
        elif ran_s < pace.timeout_s:
            self._set(alarm, max(pace.timeout_s - ran_s, _TICK_S))
        else:
            self._strike(node, again=pace.retries_timeouts and may_retry(node))

    def _strike(self, node: Node, *, again: bool) -> None:
        if again:
            node.overdue = True
            self._loom.tell_to_stop(node, force=False)
        else:
            node.cancel_asked = True  # its children: those that it still submits, too
            self._loom.fail_and_stop(node, self._loom.outbox.timed_out(node), "timed out")
        # After that: a task that waits for a child hears its own end before the child's.
        self._loom.cancel_children(node)

    # -- who does not listen ------------------------------------------------------------------

    def _lose_patience(self, alarm: Alarm) -> None:
        node = alarm.node
        worker = node.worker
        if worker is None or worker.inflight.get(node.seq) is not node:
            node.alarm = None
        elif worker.kind is WorkerKind.LOOP:
            assert self._grace_s is not None
            worker.deaf = worker.silent = True
            self._set(Alarm(AlarmKind.SILENCE, node), max(self._grace_s, STILL_QUEUED_S))
            self._loom.give_no_more_work(worker)
            self._loom.outbox.take_back(worker)  # its answer leads to ``check_deaf``
        elif self._loom.outbox.ran_s(worker, node) is None:
            # It stands behind another one and will not begin, unless that had just ended.
            self._set(alarm, max(self._grace_s or 0.0, STILL_QUEUED_S))
        else:
            node.alarm = None
            self._loom.outbox.kill(worker, _why(node))

    def check_deaf(self, worker: WorkerRecord) -> None:
        """An event loop in which one does not listen has answered, or another one has left it."""
        if not worker.inflight:
            worker.deaf = False
            self._loom.give_work_again(worker)
            return
        nodes = worker.inflight.values()
        if not worker.silent and all(map(_is_deaf, nodes)):
            self._loom.outbox.kill(worker, _why(next(iter(nodes))))


def _is_deaf(node: Node) -> bool:
    """It was told to stop, and its grace period is over."""
    is_told = node.overdue or node.state is not NodeState.ASSIGNED
    return is_told and (node.alarm is None or node.alarm.kind is AlarmKind.SILENCE)


def _why(node: Node) -> str:
    return f"{node.spec.name} was told to stop and did not"
