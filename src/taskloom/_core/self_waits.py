"""An actor that runs one call after another must not wait for a call of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskloom._core.actor_record import ActorRecord, ActorState
from taskloom._core.node import Node, ObjectRecord, WorkerRecord
from taskloom._core.states import TERMINAL

if TYPE_CHECKING:
    from taskloom._core.reactor import Reactor


def fail_what_waits_for_itself(
    loom: Reactor, worker: WorkerRecord, records: Sequence[ObjectRecord], needed: int
) -> None:
    """The main thread of a serial actor is about to wait for ``needed`` of ``records``.

    Calls of the same actor cannot begin before it goes on: when it needs one of those, that
    call fails now instead of never.
    """
    actor = worker.actor
    if actor is None or not actor.facts.is_serial or actor.state is ActorState.DEAD:
        return
    missing = [record for record in records if record.outcome is None]
    blockers = [_blocker(actor, record) for record in missing]
    if sum(blocker is None for blocker in blockers) >= needed:
        return
    for blocker in blockers:
        if blocker is not None and blocker.state not in TERMINAL:
            loom.fail_and_stop(blocker, loom.outbox.self_wait(blocker), "waits for itself")


def _blocker(actor: ActorRecord, record: ObjectRecord) -> Node | None:
    """A call of ``actor`` that has to end before ``record`` is done."""
    todo, seen = [record], {record}
    while todo:
        node = todo.pop().producer
        if not isinstance(node, Node):  # a call that is none is no actor's, and waits for nothing
            continue
        if node.actor is actor and node is not actor.creation:
            return node
        missing = [dep for dep in node.deps if dep.outcome is None and dep not in seen]
        seen.update(missing)
        todo += missing
    return None
