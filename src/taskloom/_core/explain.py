"""Says in one sentence what an object that is not there yet is waiting for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from taskloom._core.deadlock import Wait, held_by, makers
from taskloom._core.node import Node, ObjectRecord, WorkerKind, WorkerRecord
from taskloom._core.states import NodeState
from taskloom._ids import INDEX_BITS
from taskloom._options import from_units

if TYPE_CHECKING:
    from taskloom._core.reactor import Reactor

MAX_LINKS: Final = 5
"""How far a chain is followed."""
MAX_NAMES: Final = 3


class Workers(Protocol):
    """What is known of worker processes."""

    def has_started(self, node: Node) -> bool:
        """Whether the worker has begun the task."""

    def describe(self, worker: WorkerRecord) -> str:
        """``worker 1234``"""

    def at_least_s(self, worker: WorkerRecord) -> float:
        """For how many seconds the worker has said and been told nothing."""


def name_of(node: Node) -> str:
    """A task as messages name it: the digits are those in which its id ends."""
    return f"{node.spec.name}#{node.key >> INDEX_BITS:x}"


class Explainer:
    """Explains one moment.

    Args:
        loom: graph and books.
        waits: who waits for what.
        workers: who runs what.
    """

    def __init__(self, loom: Reactor, waits: Iterable[Wait], workers: Workers) -> None:
        self._loom = loom
        self._waits: Mapping[Node, Wait] = {wait.node: wait for wait in waits}
        self._workers = workers

    def why(self, key: int) -> str:
        """What the object ``key`` waits for."""
        record = self._loom.graph.objects.get(key)
        if record is None:
            return "the object is no longer kept"
        if record.outcome is not None:
            return self._done(record)
        made_by = makers(self._loom, record)
        if not made_by:
            return "the object is not done"
        seen: list[Node] = []
        return f"{name_of(made_by[0])} {self._state(made_by[0], seen)}"

    def _done(self, record: ObjectRecord) -> str:
        if not record.failed:
            return "it is done"
        if not record.outcome.cancelled:
            return "it is done: the task has failed"
        stopping = self._loom.stopping_task(record.key)
        if stopping is None or stopping.worker is None:
            return "it is done: the task was cancelled"
        worker = self._workers.describe(stopping.worker)
        return f"it is done: the task was cancelled, but {worker} has not stopped it yet"

    def _state(self, node: Node, seen: list[Node]) -> str:
        seen.append(node)
        if node.state is NodeState.WAITING:
            missing = [dep for dep in node.deps if dep.outcome is None]
            total = len(node.deps)
            what = "its argument" if total == 1 else f"{len(missing)} of its {total} arguments"
            return f"waits for {what}: {self._first(missing, seen)}"
        if node.state is NodeState.READY:
            return f"is queued: {self._queued(node)}"
        if node.state is NodeState.BACKOFF:
            return f"pauses before attempt {node.attempt + 1}, because the last one failed"
        if node.state is not NodeState.ASSIGNED or node.worker is None:
            return f"is {node.state.name.lower()}"
        worker = self._workers.describe(node.worker)
        wait = self._waits.get(node)
        if wait is not None and (pending := wait.pending()):
            what = "for " if len(pending) == 1 else f"for {len(pending)} objects: "
            return f"runs on {worker} and waits there {what}{self._first(pending, seen)}"
        if not self._workers.has_started(node):
            if node.seq == next(iter(node.worker.inflight)):
                return f"is on its way to {worker}"
            return f"is next on {worker}, behind what runs there now"
        if node.overdue:
            return f"is out of time and has not stopped yet on {worker}"
        seconds = self._workers.at_least_s(node.worker)
        return f"has been running on {worker} for at least {seconds:.1f} s"

    def _first(self, records: Sequence[ObjectRecord], seen: list[Node]) -> str:
        """One of those who make the records, and what it is doing."""
        made_by = [node for record in records[:1] for node in makers(self._loom, record)]
        if not made_by:
            return "an object that is about to be done"
        node = made_by[0]
        group = f"the {len(made_by)} tasks of a group, such as " if len(made_by) > 1 else ""
        if node in seen:
            return f"{group}{name_of(node)}, which closes a circle"
        if len(seen) >= MAX_LINKS:
            return f"{group}{name_of(node)}, and so on"
        return f"{group}{name_of(node)}, which {self._state(node, seen)}"

    def _queued(self, node: Node) -> str:
        if node.actor is not None and node is not node.actor.creation:
            return node.actor.why_not_yet()
        ledger = self._loom.ledger
        short = ledger.short_of(node.spec.request)
        if not short:
            return self._for_want_of_workers(node)
        parts = []
        for name, units in node.spec.request:
            if name in short:
                free = max(0, ledger.free.get(name, 0))
                parts.append(
                    f"it needs {_amount(units)} {name}, and {_amount(free)} of "
                    f"{_amount(ledger.total.get(name, 0))} are free"
                )
        return "; ".join(parts) + self._holders(short)

    def _holders(self, short: Sequence[str]) -> str:
        names = []
        for worker in self._loom.workers.values():
            for node in worker.inflight.values():
                if any(name in short for name, _ in held_by(node)):
                    names.append(f"{name_of(node)} on {self._workers.describe(worker)}")
                    if worker.kind is WorkerKind.PROCESS:
                        break  # those behind it will have the same share
        if not names:
            return ""
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        return f" (held by {', '.join(names[:MAX_NAMES])}{more})"

    def _for_want_of_workers(self, node: Node) -> str:
        kind = WorkerKind.LOOP if node.spec.is_coroutine else WorkerKind.PROCESS
        workers = [w for w in self._loom.workers.values() if w.kind is kind]
        starting = sum(not worker.ready for worker in workers)
        if starting or not workers:
            return "a worker process for it is starting"
        return f"all {len(workers)} worker processes are taken"


def _amount(units: int) -> str:
    return f"{from_units(units):g}"
