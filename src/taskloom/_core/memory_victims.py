"""Memory runs out: which worker goes, and which of its tasks are tried again.

The order, the first one goes:

1. idle workers that hold much, the largest first: ending one costs nobody anything;
2. workers whose tasks may all be tried again, before those with a task that may not and before
   actors that run a call; an actor that runs none is left in peace;
3. of those that hold much compared with the others, the youngest: it has the least to lose, and
   who has come far comes to an end.

When all workers together hold less than what is too much, somebody else has the memory, and
nobody is ended: it would not help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from taskloom._core.graph import Graph
from taskloom._core.node import Node
from taskloom._core.states import NodeState

IDLE_WORTH_BYTES: Final = 64 << 20
"""An idle worker that holds less than this is left in peace: others hold what matters."""
RETRY_DELAY_S: Final = 0.5
"""How long the first retry waits; each later one waits twice as long as the one before."""
MAX_DELAY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker that could be ended.

    Attributes:
        number: of the worker.
        held_bytes: what would come back.
        running: the tasks that would lose an attempt; none when it is idle.
        since: when the oldest of them began; later ones have larger numbers.
        has_state: it belongs to an actor, whose state would be lost with it.
    """

    number: int
    held_bytes: int
    running: tuple[Node, ...]
    since: int = 0
    has_state: bool = False


def pick_victim(
    candidates: Iterable[Candidate], excess_bytes: int, may_retry: Callable[[Node], bool]
) -> Candidate | None:
    """The worker to end, or None when that would not help.

    Args:
        candidates: all workers.
        excess_bytes: how much there is too much of.
        may_retry: whether a task has an attempt left.
    """
    candidates = list(candidates)
    if sum(candidate.held_bytes for candidate in candidates) < excess_bytes:
        return None
    stateless = [c for c in candidates if not c.has_state]
    idle = [c for c in stateless if not c.running and c.held_bytes >= IDLE_WORTH_BYTES]
    if idle:
        return max(idle, key=lambda candidate: candidate.held_bytes)
    busy = [candidate for candidate in candidates if candidate.running]
    harmless = [
        c
        for c in busy
        if not c.has_state and all(_loses_nothing(node, may_retry) for node in c.running)
    ]
    choice = harmless or busy
    held = sum(candidate.held_bytes for candidate in choice)
    return max(
        (c for c in choice if c.held_bytes * len(choice) * 2 >= held),  # half of the average
        key=lambda candidate: (candidate.since, min(node.order for node in candidate.running)),
        default=None,
    )


def _loses_nothing(node: Node, may_retry: Callable[[Node], bool]) -> bool:
    """It may be tried again; or it was cancelled, and only its worker has not heard so yet."""
    return node.state is not NodeState.ASSIGNED or may_retry(node)


class MemoryRetries:
    """Attempts that ended for want of memory; they are counted apart from crashes, as in Ray.

    Args:
        limit: how often one task is tried again for this reason; -1: for ever.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._ended: dict[int, int] = {}  # attempts by the node's key, of those that had any

    def ended(self, node: Node) -> int:
        """How many attempts of the node have ended so."""
        return self._ended.get(node.key, 0)

    def may_retry(self, node: Node) -> bool:
        """Whether there is another attempt if this one ends so, too.

        ``max_retries=0`` says that the task must not run twice, whatever the reason.
        """
        if node.spec.max_retries == 0:
            return False
        return self.limit < 0 or self.ended(node) < self.limit

    def charge(self, node: Node, graph: Graph) -> float:
        """Count one more; how many seconds the next attempt should wait."""
        # Here and not when a task ends: nothing on the way of tasks that had enough memory.
        self._ended = {key: count for key, count in self._ended.items() if key in graph.nodes}
        ended = self._ended[node.key] = self.ended(node) + 1
        return float(min(MAX_DELAY_S, RETRY_DELAY_S * 2 ** min(ended - 1, 30)))
