"""The verbs: what the loom asks of the outside world.

The reactor decides, synchronously, on plain data; an outbox carries it out.  The engine is the
real one, tests and simulations have their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from taskloom._core.actor_record import ActorRecord
from taskloom._core.alarms import Alarm
from taskloom._core.node import Node, ObjectRecord, PlainCall, WorkerKind, WorkerRecord


class Outbox(Protocol):
    def run(self, worker: WorkerRecord, node: Node) -> None:
        """Send a node to a worker; its ``seq`` and ``attempt`` are set."""

    def run_calls(
        self,
        worker: WorkerRecord,
        first: int,
        calls: Sequence[PlainCall],
        payloads: list[bytes | None],
    ) -> None:
        """Send calls of one function; ``first`` is the ``seq`` of the first of them."""

    def resolve(self, record: ObjectRecord) -> None:
        """The object is done: wake who waits for it."""

    def resolve_all(self, records: Sequence[ObjectRecord]) -> None:
        """The same for many, all with values."""

    def start_workers(self, kind: WorkerKind, count: int) -> None:
        """Have ``count`` more workers of a kind on their way, if they are not already."""

    def take_back(self, worker: WorkerRecord) -> None:
        """Ask for what is not started; ``on_returned`` brings the answer."""

    def warn(self, worker: WorkerRecord) -> None:
        """Have a worker begin nothing before it has heard an ``interrupt`` that is to follow."""

    def interrupt(self, worker: WorkerRecord, seq: int, *, force: bool) -> None:
        """Tell a worker that the task was cancelled; ``force``: end it if it has started."""

    def kill(self, worker: WorkerRecord, why: str) -> None:
        """End a worker at once; ``on_worker_lost`` will tell of it."""

    def wake_later(self, alarm: Alarm, delay_s: float) -> None:
        """Call ``Reactor.on_alarm`` after so many seconds."""

    def forget_alarm(self, alarm: Alarm) -> None:
        """An alarm is not needed any more; one that rings all the same does no harm."""

    def ran_s(self, worker: WorkerRecord, node: Node) -> float | None:
        """For how long the worker has been running the node; None: it has not begun.

        Exact for a node with a time limit; for others only whether it is None can be relied on.
        """

    def report_unseen(self, record: ObjectRecord, name: str) -> None:
        """A failed object is forgotten and nobody has looked at its error."""

    def unschedulable(self, node: Node) -> object:
        """The error of a node that asks for more than there will ever be."""

    def cancelled(self, node: Node) -> object:
        """The error of a node that was cancelled."""

    def timed_out(self, node: Node) -> object:
        """The error of a node whose attempt ran longer than its ``timeout=``."""

    def too_deep(self, node: Node) -> object:
        """The error of a node that finds every process taken by tasks that wait."""

    def contradicted(self, node: Node) -> object:
        """The error of a generator that has yielded less than in an attempt before."""

    # -- actors -------------------------------------------------------------------------------

    def stop_actor(self, worker: WorkerRecord) -> None:
        """Let the process of an actor end in good order, within a limit."""

    def expect_end(self, worker: WorkerRecord) -> None:
        """The process ends by itself; see that it does, within a limit."""

    def actor_died(self, actor: ActorRecord, why: str) -> Any:
        """The error of the calls of an actor that is dead."""

    def actor_unavailable(self, actor: ActorRecord, why: str) -> Any:
        """The error of calls that ran in a process which died before the restart."""

    def actor_unschedulable(self, actor: ActorRecord) -> Any:
        """The error of an actor that asks for more than there will ever be."""

    def many_calls(self, actor: ActorRecord, count: int) -> None:
        """More than so many calls wait in one line of an actor: somebody should be told."""

    def self_wait(self, node: Node) -> Any:
        """The error of a call that its own actor waits for."""
