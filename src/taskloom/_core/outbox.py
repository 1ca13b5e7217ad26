"""The verbs: what the loom asks of the outside world.

The reactor decides, synchronously, on plain data; an outbox carries it out.  The engine is the
real one, tests and simulations have their own.
"""

from __future__ import annotations

from typing import Protocol

from taskloom._core.node import Node, ObjectRecord, WorkerKind, WorkerRecord


class Outbox(Protocol):
    def run(self, worker: WorkerRecord, node: Node) -> None:
        """Send a node to a worker; its ``seq`` and ``attempt`` are set."""

    def resolve(self, record: ObjectRecord) -> None:
        """The object is done: wake who waits for it."""

    def start_workers(self, kind: WorkerKind, count: int) -> None:
        """Have ``count`` more workers of a kind on their way, if they are not already."""

    def take_back(self, worker: WorkerRecord) -> None:
        """Ask for what is not started; ``on_returned`` brings the answer."""

    def interrupt(self, worker: WorkerRecord, seq: int, *, force: bool) -> None:
        """Tell a worker that the task was cancelled; ``force``: end it if it has started."""

    def report_unseen(self, record: ObjectRecord, name: str) -> None:
        """A failed object is forgotten and nobody has looked at its error."""

    def unschedulable(self, node: Node) -> object:
        """The error of a node that asks for more than there will ever be."""

    def cancelled(self, node: Node) -> object:
        """The error of a node that was cancelled."""

    def too_deep(self, node: Node) -> object:
        """The error of a node that finds every process taken by tasks that wait."""
