"""What attempts that died leave behind."""

from __future__ import annotations

from collections.abc import Iterable

from taskloom._core.node import Node, ObjectRecord


def orphans(died: list[Node], borrowed: Iterable[ObjectRecord]) -> list[Node]:
    """What attempts that died had submitted and only they would have used.

    It is to be cancelled: the next attempt submits its own.  Without this, deaths in a deep tree of
    tasks make more work than they end.  A task whose ref had been dropped before is nobody's: it
    runs.

    Args:
        died: the attempts.
        borrowed: what their process had refs to; they are released by now.
    """
    return [
        node
        for record in borrowed
        if isinstance(node := record.producer, Node)  # no task has submitted the others
        and node.parent in died
        and not any(output.holds for output in node.outputs)
    ]
