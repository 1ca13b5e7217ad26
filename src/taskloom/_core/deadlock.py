"""Finds tasks that wait for one another, so that none of them can ever go on.

What is known is who waits for what (``Wait``), who makes what (the graph) and who holds what (the
books).  A task *moves* when it can do something, or something that it needs moves:

* a task that runs and does not wait moves; so does whatever is not understood here;
* a task that waits for objects, or for its arguments, moves when one of those who make them
  does: it may fail, and that ends the wait;
* a call of an actor moves when one of those does that take up the places in its line;
* any other ready task moves when what it asks for is not all held by tasks that wait; else when
  one of those holders does.

What does not move is stuck for ever: nobody outside can make an object that a task of the session
is to make.  The rules err on the side of movement: as long as anything that the stuck ones need
goes on, nothing is said, and when it has ended, the next look finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from taskloom._core.node import Node, ObjectRecord
from taskloom._core.resources import Request
from taskloom._core.states import NodeState

if TYPE_CHECKING:
    from taskloom._core.reactor import Reactor

MAX_NAMED: Final = 20
"""How much of a circle is put into words."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wait:
    """A task that waits until some of ``records`` are done.

    ``final``: it can do nothing else meanwhile, and no time limit will end it.  The ``await`` of a
    coroutine is never final: it may have a time limit that only its own loop knows of.
    ``question`` belongs to whoever answers.
    """

    node: Node
    records: Sequence[ObjectRecord]
    final: bool
    question: object

    def pending(self) -> list[ObjectRecord]:
        return [record for record in self.records if record.outcome is None]


def makers(loom: Reactor, record: ObjectRecord) -> list[Node]:
    """The calls on which an object depends that is not done: one, or all of a group."""
    node = loom.graph.node_of(record)
    if node is not None:
        return [node]
    scope = loom.scopes.open.get(record.key - 1)  # its end is the first object of its key
    if scope is None or scope.end is not record or not scope.closed:
        return []
    found: list[Node] = []
    todo = [scope]
    while todo:
        current = todo.pop()
        found += current.nodes.values()
        todo += current.inner.values()
    return found


def find_circle(loom: Reactor, waits: Iterable[Wait], *, only_final: bool = True) -> list[Node]:
    """Tasks each of which needs the next one, and the last one the first; empty: all can go on.

    Args:
        loom: graph and books.
        waits: who waits.
        only_final: False: take every wait for one that is final.
    """
    blocked: dict[Node, list[ObjectRecord]] = {}
    for wait in waits:
        if (wait.final or not only_final) and wait.node.state is NodeState.ASSIGNED:
            blocked.setdefault(wait.node, []).extend(wait.pending())
    if not blocked:
        return []
    search = _Search(loom, blocked)
    stuck = search.stuck()
    start = next((node for node in blocked if node in stuck), None)
    if start is None:
        return []
    path = [start]
    places = {start: 0}
    while True:
        following = stuck[path[-1]][0]
        if following in places:
            return path[places[following] :]
        places[following] = len(path)
        path.append(following)


class _Search:
    def __init__(self, loom: Reactor, blocked: dict[Node, list[ObjectRecord]]) -> None:
        self._loom = loom
        self._blocked = blocked
        self._held: dict[Node, Request] = {node: held_by(node) for node in blocked}
        taken: dict[str, int] = {}
        for request in self._held.values():
            for name, units in request:
                taken[name] = taken.get(name, 0) + units
        total = loom.ledger.total
        # What a ready task could have if all that do not wait had ended.
        self._within_reach = {name: units - taken.get(name, 0) for name, units in total.items()}

    def stuck(self) -> dict[Node, list[Node]]:
        """Those that never move, each with what it needs (all of which are stuck, too)."""
        needs: dict[Node, list[Node]] = {}
        needed_by: dict[Node, list[Node]] = {}
        moving: list[Node] = []
        todo = list(self._blocked)
        while todo:
            node = todo.pop()
            if node in needs:
                continue
            needs[node] = helpers = self._needs(node)
            if not helpers:
                moving.append(node)
            for helper in helpers:
                needed_by.setdefault(helper, []).append(node)
                todo.append(helper)
        while moving:
            node = moving.pop()
            if needs.pop(node, None) is not None:
                moving += needed_by.get(node, ())
        return needs

    def _needs(self, node: Node) -> list[Node]:
        """What must move before the node does; nothing: it moves."""
        records = self._blocked.get(node)
        if records is not None:
            return self._makers(records)
        if node.state is NodeState.WAITING:
            return self._makers(dep for dep in node.deps if dep.outcome is None)
        if node.actor is not None:
            return node.actor.in_the_way(node)
        if node.state is NodeState.READY:
            missing = {
                name for name, units in node.spec.request if self._within_reach.get(name, 0) < units
            }
            return [
                holder
                for holder, request in self._held.items()
                if any(name in missing for name, _ in request)
            ]
        return []

    def _makers(self, records: Iterable[ObjectRecord]) -> list[Node]:
        found: list[Node] = []
        for record in records:
            made_by = makers(self._loom, record)
            if not made_by:
                return []  # who makes it is not known: the wait may end
            found += made_by
        return found


def held_by(node: Node) -> Request:
    """What a task holds, without the CPUs that it lends while it waits."""
    worker = node.worker
    allocation = node.allocation or (worker.lease if worker is not None else None)
    if allocation is None:
        return ()
    return tuple(
        (name, units)
        for name, units in allocation.request
        if not (name == "CPU" and allocation.cpus_lent)
    )


def describe_circle(
    circle: Sequence[Node], name: Callable[[Node], str], waiting: Iterable[Wait]
) -> str:
    """The circle in words."""
    blocked = {wait.node for wait in waiting}
    parts: list[str] = []
    for node, following in zip(circle, [*circle[1:], circle[0]], strict=True):
        if len(parts) == MAX_NAMED:
            parts.append(f"and so on, {len(circle)} in all")
            break
        other = "itself" if following is node else name(following)
        if node in blocked:
            parts.append(f"{name(node)} waits for {other}")
        elif node.state is NodeState.WAITING:
            parts.append(f"{name(node)} needs the result of {other} as an argument")
        elif node.actor is not None:
            parts.append(f"{name(node)} stands behind {other}, which runs in the same actor")
        else:
            parts.append(f"{name(node)} needs resources that {other} holds")
    return ", ".join(parts)
