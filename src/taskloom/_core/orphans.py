"""What attempts that died leave behind."""

from __future__ import annotations

from collections.abc import Iterable

from taskloom._core.graph import Graph
from taskloom._core.node import NestedCall, Node, ObjectRecord


def orphans(graph: Graph, died: list[Node], borrowed: Iterable[ObjectRecord]) -> list[Node]:
    """What attempts that died had submitted and only they would have used.

    It is to be cancelled: the next attempt submits its own.  Without this, deaths in a deep tree of
    tasks make more work than they end.  A task whose ref had been dropped before is nobody's: it
    runs.

    Args:
        graph: where they are.
        died: the attempts.
        borrowed: what their process had refs to; they are released by now.
    """
    left: list[Node] = []
    for record in borrowed:
        producer = record.producer
        if not isinstance(producer, (Node, NestedCall)) or producer.parent not in died:
            continue
        node = graph.node_of(record)
        if node is not None and not any(output.holds for output in node.outputs):
            left.append(node)
    return left
