"""An actor as the loom sees it: its states, its lines of calls, and what it costs.

::

                  constructed            its process died, restarts are left
    PENDING ------------------> ALIVE ------------------------------------> RESTARTING
       |                          ^                                          |      |
       |                          +--------------- constructed --------------+      |
       |  constructor raised, killed, can never be placed                           |
       +-----------------------> DEAD <---------------------------------------------+
                                   ^
                                   +--- from ALIVE: killed, left by itself, last handle gone,
                                        its process died and no restart is left

An actor *is* an object of the graph, the one its constructor makes: handles are refs to it, so
they are counted as refs are, across processes, containers and closures.  A call that is not done
holds it too.  When the last reason goes, nobody can call it any more and nothing is queued.

Its calls are nodes like any other.  They stand in *lines*: an ordered actor has one for each
caller, in which a call that still waits for arguments holds up those behind it; any other has one
for each concurrency group, which calls enter when they are ready.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from taskloom import _ids
from taskloom._core.node import Node, ObjectRecord
from taskloom._core.placement import calls_at_hand, followed
from taskloom._core.states import NodeState
from taskloom.exceptions import InternalError

if TYPE_CHECKING:
    from taskloom._core.node import Error, WorkerRecord
    from taskloom._core.resources import Allocation
    from taskloom._spec import ActorSpec, TaskSpec

MANY_CALLS: Final = 5000
"""Of more calls in one line the driver is told: somebody makes them faster than they run."""


class ActorState(IntEnum):
    PENDING = 0
    """Its constructor has not returned yet: it waits for arguments, for room, or runs."""
    ALIVE = 1
    RESTARTING = 2
    DEAD = 3


_A = ActorState
LEGAL: Final[dict[ActorState, frozenset[ActorState]]] = {
    _A.PENDING: frozenset({_A.ALIVE, _A.RESTARTING, _A.DEAD}),
    _A.ALIVE: frozenset({_A.RESTARTING, _A.DEAD}),
    _A.RESTARTING: frozenset({_A.ALIVE, _A.RESTARTING, _A.DEAD}),
    _A.DEAD: frozenset(),
}


class Line:
    """Calls that wait for their turn, first come first served.

    ``busy`` of them, at most ``limit``, are with the worker.  A call that has ended meanwhile
    stays where it is and is passed over.
    """

    __slots__ = ("busy", "calls", "is_strict", "limit")

    def __init__(self, limit: int) -> None:
        self.calls: deque[Node] = deque()
        self.limit = limit
        self.busy = 0
        self.is_strict = False  # what is with the worker must end before the next one goes there

    def head(self) -> Node | None:
        """The first call if it can be handed out."""
        calls = self.calls
        while calls:
            state = calls[0].state
            if state is NodeState.READY:
                return calls[0]
            if state is NodeState.WAITING or state is NodeState.BACKOFF:
                return None
            calls.popleft()
        return None


class Blueprint:
    """What it takes to run a constructor again; its refs are held while this is kept."""

    __slots__ = ("args", "context", "deps", "holes", "nested")

    def __init__(self, node: Node) -> None:
        self.args = node.args
        self.holes = node.holes
        self.deps = node.deps
        self.nested = node.nested
        self.context = node.context
        for record in (*self.deps, *self.nested):
            record.holds += 1


class ActorRecord(ObjectRecord):
    """One actor.

    Invariants: ``worker`` is set while a process belongs to it, and then ``allocation`` holds
    what the process uses; ``placement`` only until it is constructed.  ``death`` is set exactly
    when it is DEAD.
    """

    __slots__ = (
        "allocation",
        "blueprint",
        "creation",
        "death",
        "facts",
        "futile",
        "is_held",
        "is_ordered",
        "last_s",
        "lines",
        "mean_s",
        "placement",
        "restarts",
        "spec",
        "state",
        "waiting",
        "warn_above",
        "worker",
    )

    is_actor = True

    def __init__(self, key: int, spec: TaskSpec) -> None:
        super().__init__(key)
        assert spec.actor is not None
        self.spec = spec
        self.facts: ActorSpec = spec.actor
        self.is_ordered = spec.actor.is_ordered  # each call asks for it several times
        self.is_held = False  # what is with the worker must end before anything goes there
        self.state = ActorState.PENDING
        self.lines: dict[int | str, Line] = {}
        self.waiting: dict[int, Node] = {}  # calls that are in no line before they are ready
        self.warn_above = MANY_CALLS  # calls in one line; twice as many the next time
        self.worker: WorkerRecord | None = None
        self.creation: Node | None = None
        self.blueprint: Blueprint | None = None
        self.placement: Allocation | None = None
        self.allocation: Allocation | None = None
        self.mean_s: float | None = None  # what its calls take
        self.last_s: float | None = None  # what the last one took
        self.restarts = 0
        self.futile = 0  # of these the last ones, after which no call has ended yet
        self.death: Error | None = None

    def __repr__(self) -> str:
        return f"<Actor {self.facts.class_name} {self.key:#x} {self.state.name}>"

    def move(self, new: ActorState) -> None:
        """The only line in the project that changes an actor's state."""
        if new not in LEGAL[self.state]:
            raise InternalError(f"{self!r}: {self.state.name} -> {new.name} is not a move")
        self.state = new

    def line_of(self, node: Node) -> Line:
        """Where a call stands, or belongs."""
        # Twice for each call: not ``process_of``, which would be two calls more.
        place: int | str = node.key >> _ids.PROCESS_SHIFT if self.is_ordered else node.spec.group
        line = self.lines.get(place)
        if line is None:
            facts = self.facts
            limit = 1 if facts.is_serial else dict(facts.groups)[node.spec.group]
            line = self.lines[place] = Line(limit)
        return line

    def set_limits(self) -> None:
        """How many calls a process that runs them one after another may have at hand.

        As many as tasks of that run time, but two at least: it is not to wait for the next one.
        """
        if self.last_s is not None:
            self.mean_s = followed(self.mean_s, self.last_s)
            self.last_s = None
        limit = max(calls_at_hand(self.mean_s), 2)
        for line in self.lines.values():
            line.limit = max(limit, line.busy)

    def calls(self) -> list[Node]:
        """Those that have not ended, with the worker or in a line."""
        found: dict[int, Any] = {}
        if self.worker is not None:
            found.update((node.key, node) for node in self.worker.inflight.values())
        for line in self.lines.values():
            found.update((node.key, node) for node in line.calls)
        found.update(self.waiting)
        return list(found.values())

    def why_not_yet(self) -> str:
        """What a call that is ready waits for, in words."""
        if self.state is ActorState.PENDING:
            return "its actor is not constructed yet"
        if self.state is ActorState.RESTARTING:
            return "its actor is being restarted"
        return "its actor runs other calls first"

    def in_the_way(self, node: Node) -> list[Node]:
        """Calls of which one must end before ``node`` can begin; none: it may begin, or has."""
        worker = self.worker
        if self.state is not ActorState.ALIVE or worker is None or node is self.creation:
            return []
        if self.facts.is_serial:
            running = next(iter(worker.inflight.values()), node)
            return [] if running is node else [running]
        line = self.line_of(node)
        if node.state is NodeState.ASSIGNED:
            if not self.facts.is_async or node.spec.is_coroutine:
                return []
            # Methods of an async actor that are no coroutines run one after another.
            running = next(n for n in worker.inflight.values() if not n.spec.is_coroutine)
            return [] if running is node else [running]
        if line.busy < line.limit:
            return []
        return [other for other in worker.inflight.values() if self.line_of(other) is line]

    def restarts_left(self) -> bool:
        """Whether its constructor may run once more."""
        return self.facts.max_restarts < 0 or self.restarts < self.facts.max_restarts
