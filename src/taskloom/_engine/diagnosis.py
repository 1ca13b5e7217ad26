"""Who waits for what: said to those who ask, and looked at when it might be a circle."""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from typing import Final

from taskloom._core.deadlock import describe_circle, find_circle
from taskloom._core.explain import Explainer, name_of
from taskloom._core.node import Node, WorkerRecord
from taskloom._core.reactor import Reactor
from taskloom._engine.requests import Requests
from taskloom._pool.pool import Pool
from taskloom._wire.remote_errors import system_failure
from taskloom.exceptions import DeadlockError

DELAY_S: Final = 1.0
"""From a change to the look at what came of it: long enough not to cost anything."""


class Diagnosis:
    """Explains waits, and ends circles: one of the tasks in it gets a DeadlockError where it waits.

    A circle can only close when a task begins to wait or another one ends.  Whoever sees that
    happen calls :meth:`note`; the timer runs once for any number of notes, and an engine in which
    nothing happens is left in peace.

    Args:
        loom: graph and books.
        requests: who waits, and how they are answered.
        pool: the worker processes.
        loop: for the timer.
        warn: has a line printed on the driver's stderr.
        settle: to be called after an event that comes from a timer.
    """

    def __init__(
        self,
        loom: Reactor,
        requests: Requests,
        pool: Pool,
        loop: AbstractEventLoop,
        warn: Callable[[str], None],
        settle: Callable[[], None],
    ) -> None:
        self._loom = loom
        self._requests = requests
        self._pool = pool
        self._loop = loop
        self._warn = warn
        self._settle = settle
        self._timer: TimerHandle | None = None
        self._warned: set[Node] = set()

    def note(self) -> None:
        """Something has changed: the last one that could go on may have ended."""
        if self._requests.open and self._timer is None:
            self._timer = self._loop.call_later(DELAY_S, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        waits = self._requests.waits()
        circle = find_circle(self._loom, waits)
        if circle:
            text = describe_circle(circle, name_of, waits)
            victims = [wait for wait in waits if wait.final and wait.node in circle]
            victim = max(victims, key=lambda wait: wait.node.order)
            error = DeadlockError(
                f"these tasks wait for one another, and none of them can go on: {text}. This "
                f"error ends the wait of {name_of(victim.node)}"
            )
            self._requests.fail(victim.question, system_failure(error))
            self.note()  # there may be more than one circle
            self._settle()
            return
        circle = find_circle(self._loom, waits, only_final=False)
        self._warned.intersection_update(wait.node for wait in waits)
        waiting = {wait.node for wait in waits}.intersection(circle)
        if circle and not self._warned >= waiting:
            self._warned |= waiting
            self._warn(
                "these tasks wait for one another, and none of them can go on unless an await has "
                f"a time limit: {describe_circle(circle, name_of, waits)}"
            )

    # -- explaining (the workers as ``explain`` sees them) ------------------------------------

    def why(self, key: int) -> str:
        """What the object ``key`` waits for."""
        return Explainer(self._loom, self._requests.waits(), self).why(key)

    def has_started(self, node: Node) -> bool:
        assert node.worker is not None
        return self._pool.started_seq(self._pool.by_number[node.worker.number]) >= node.seq

    def describe(self, worker: WorkerRecord) -> str:
        return f"worker {self._pool.by_number[worker.number].pid}"

    def at_least_s(self, worker: WorkerRecord) -> float:
        return self._loop.time() - self._pool.by_number[worker.number].active_at
