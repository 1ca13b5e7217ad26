"""Ready nodes, in the order in which they should start.

Nodes of one rank and one shape of request stand in one line (a *bucket*), so that a pass of the
scheduler looks at as many heads as there are shapes, not at every node.  The order: higher
``priority`` first, then deeper nested first, then first come first served.

Deeper first is what keeps recursion within bounds: a task that waits for its children occupies
a process, so the children of those that wait must not stand behind tasks that will wait too.

A node that is cancelled stays in its line and is passed over when it comes to the front:
taking it out of the middle would make cancelling n nodes cost n squared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from taskloom._core.node import Node, WorkerKind
from taskloom._core.resources import Request
from taskloom._core.states import NodeState

_EMPTY_KEPT: Final = 64
"""Buckets that may stand empty: most are needed again at once."""

_Shape = tuple[int, int, WorkerKind, Request]


class Bucket:
    """Nodes that differ in nothing the scheduler looks at, first come first."""

    __slots__ = ("kind", "nodes", "rank", "request")

    def __init__(self, rank: tuple[int, int], kind: WorkerKind, request: Request) -> None:
        self.rank = rank
        self.kind = kind
        self.request = request
        self.nodes: deque[Node] = deque()

    def head(self) -> Node | None:
        """The first node that is still READY; those that were cancelled meanwhile go."""
        nodes = self.nodes
        while nodes:
            if nodes[0].state is NodeState.READY:
                return nodes[0]
            nodes.popleft()
        return None


class ReadyQueue:
    def __init__(self) -> None:
        self._buckets: dict[_Shape, Bucket] = {}

    def push(self, node: Node) -> None:
        """Behind all of its kind."""
        self._bucket(node).nodes.append(node)

    def push_front(self, nodes: list[Node]) -> None:
        """Before all of their kind, in the order given: they had been handed out before."""
        for node in reversed(nodes):
            self._bucket(node).nodes.appendleft(node)

    def in_order(self) -> list[Bucket]:
        """The buckets that have nodes, the one whose head should start first in front."""
        buckets = self._buckets
        alive = [bucket for bucket in buckets.values() if bucket.head() is not None]
        if len(buckets) > _EMPTY_KEPT + len(alive):
            self._buckets = {shape: bucket for shape, bucket in buckets.items() if bucket.nodes}
        if len(alive) > 1:
            alive.sort(key=lambda bucket: (bucket.rank, bucket.nodes[0].order))
        return alive

    def __iter__(self) -> Iterator[Node]:
        for bucket in self._buckets.values():
            for node in bucket.nodes:
                if node.state is NodeState.READY:
                    yield node

    def __bool__(self) -> bool:
        return any(bucket.head() is not None for bucket in self._buckets.values())

    def _bucket(self, node: Node) -> Bucket:
        shape = _shape(node)
        bucket = self._buckets.get(shape)
        if bucket is None:
            bucket = self._buckets[shape] = Bucket((shape[0], shape[1]), shape[2], shape[3])
        return bucket


def _shape(node: Node) -> _Shape:
    spec = node.spec
    kind = WorkerKind.LOOP if spec.function.is_coroutine else WorkerKind.PROCESS
    return (-spec.priority, -node.depth, kind, spec.request)
