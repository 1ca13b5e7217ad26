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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from taskloom._core.node import Node, ObjectRecord
from taskloom._core.resources import Request
from taskloom._core.states import NodeState

if TYPE_CHECKING:
    from taskloom._core.actor_record import ActorRecord, Line
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
    blocked: dict[Node, list[Sequence[ObjectRecord]]] = {}
    for wait in waits:
        if (wait.final or not only_final) and wait.node.state is NodeState.ASSIGNED:
            blocked.setdefault(wait.node, []).append(wait.records)
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
    """Looks at one thing after another, and no further once it is known that a task moves.

    So where nothing is stuck it looks at a few of the objects that each task waits for, however
    many they are.
    """

    def __init__(self, loom: Reactor, blocked: dict[Node, list[Sequence[ObjectRecord]]]) -> None:
        self._loom = loom
        self._blocked = blocked
        self._first_of: dict[Line, Node] = {}  # the call of a line that was looked at first
        self._alike: dict[Node, Node] = {}  # calls that need what that one needs
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
        moving: set[Node] = set()
        for root in self._blocked:
            if root not in needs and root not in moving:
                needs[root] = []
                self._follow(root, needs, needed_by, moving)
        for node, first in self._alike.items():
            if node in needs:
                needs[node] = needs[first]
        return needs

    def _follow(
        self,
        root: Node,
        needs: dict[Node, list[Node]],
        needed_by: dict[Node, list[Node]],
        moving: set[Node],
    ) -> None:
        """Look at what ``root`` needs, at what that needs, and so on: depth first."""
        path = [(root, self._needs(root))]
        while path:
            node, rest = path[-1]
            if node in moving:
                path.pop()
                continue
            for helper in rest:
                if helper is None or helper in moving:
                    _move(node, needs, needed_by, moving)
                    break
                needs[node].append(helper)
                needed_by.setdefault(helper, []).append(node)
                if helper not in needs:
                    needs[helper] = []
                    path.append((helper, self._needs(helper)))
                    break
            else:
                path.pop()
                if not needs[node]:
                    _move(node, needs, needed_by, moving)

    def _needs(self, node: Node) -> Iterator[Node | None]:
        """Who must move before the node does: one of these; None, or nobody: it moves."""
        waits = self._blocked.get(node)
        if waits is not None:
            for records in waits:
                yield from self._makers(records)
        elif node.state is NodeState.WAITING:
            yield from self._makers(node.deps)
        elif node.actor is not None:
            yield from self._in_the_way(node, node.actor)
        elif node.state is NodeState.READY:
            missing = {
                name for name, units in node.spec.request if self._within_reach.get(name, 0) < units
            }
            for holder, request in self._held.items():
                if any(name in missing for name, _ in request):
                    yield holder

    def _makers(self, records: Iterable[ObjectRecord]) -> Iterator[Node | None]:
        for record in records:
            if record.outcome is None:
                # Who makes it may not be known: the wait may end.
                yield from makers(self._loom, record) or (None,)

    def _in_the_way(self, node: Node, actor: ActorRecord) -> list[Node]:
        """Of which one must end; those that stand in one line have the same, or its first one."""
        if node.state is NodeState.READY and not actor.facts.is_serial:
            first = self._first_of.setdefault(actor.line_of(node), node)
            if first is not node:
                self._alike[node] = first
                return [first]
        return actor.in_the_way(node)


def _move(
    node: Node,
    needs: dict[Node, list[Node]],
    needed_by: dict[Node, list[Node]],
    moving: set[Node],
) -> None:
    """It moves, and with it all that need it."""
    todo = [node]
    while todo:
        current = todo.pop()
        if current not in moving:
            moving.add(current)
            needs.pop(current, None)
            todo += needed_by.pop(current, ())


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
