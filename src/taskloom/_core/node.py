"""The records of the graph: an object, the call that makes it, the worker that runs it."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from taskloom._core.states import WAITING, NodeState

if TYPE_CHECKING:
    from taskloom._core.actor_record import ActorRecord
    from taskloom._core.alarms import Alarm
    from taskloom._core.graph import Graph
    from taskloom._core.resources import Allocation
    from taskloom._core.scopes import Scope
    from taskloom._core.streams import Stream
    from taskloom._spec import FunctionKey, TaskSpec

# Where a value goes in the arguments (position or keyword), and which dependency it is.
Holes = tuple[tuple[int | str, int], ...]


class Error(Protocol):
    """An outcome that is an error.  The core only hands it on."""

    @property
    def cancelled(self) -> bool: ...

    def inherit(self) -> Error:
        """The same error as a dependent sees it: one shared object for a whole chain."""


class Waiter(Protocol):
    """Whoever wants to be told when an object is done."""

    def on_done(self, record: ObjectRecord) -> None: ...


class ObjectRecord:
    """One object: its outcome, and everybody who has a reason to keep it.

    ``outcome`` is None until it is done.  The engine's thread sets it once; any thread may
    read it.  ``holds`` counts the reasons to keep the object: live refs in the driver, workers
    that borrow it, tasks that wait for it, objects that contain it, pins.  Invariant: a record
    is forgotten when ``holds == 0`` and its outcome is there.
    """

    # Few: a live ref costs its record, see the benchmark's ``live_refs``.
    __slots__ = (
        "contains",
        "dependents",
        "failed",
        "holds",
        "key",
        "outcome",
        "producer",
        "seen",
        "waiters",
    )

    is_actor = False

    def __init__(self, key: int) -> None:
        self.key = key
        self.outcome: Any = None
        self.failed = False
        self.holds = 1  # the ref that is made together with the record
        self.producer: Node | PlainCall | None = None
        self.dependents: list[Node] | None = None
        self.waiters: dict[Waiter, None] | None = None  # in the order of their coming
        self.contains: tuple[ObjectRecord, ...] = ()
        self.seen = False  # somebody has looked at the error, so nobody need be told


class Node:
    """One call and its place in the graph.

    Invariants: ``unfinished`` is the number of ``deps`` without an outcome; a node leaves
    WAITING for READY only when it is 0.  ``deps`` and ``nested`` are held until the node ends.
    """

    __slots__ = (
        "actor",
        "alarm",
        "allocation",
        "args",
        "attempt",
        "cancel_asked",
        "cancel_told",
        "context",
        "depth",
        "deps",
        "holes",
        "key",
        "nested",
        "order",
        "outputs",
        "overdue",
        "parent",
        "passed_over",
        "scope",
        "seq",
        "spec",
        "state",
        "stream",
        "submitted",
        "unfinished",
        "waits",
        "worker",
    )

    def __init__(
        self,
        key: int,
        spec: TaskSpec,
        args: Any,
        holes: Holes | None,
        deps: tuple[ObjectRecord, ...],
        outputs: tuple[ObjectRecord, ...],
    ) -> None:
        self.key = key
        self.spec = spec
        self.args = args
        self.holes = holes
        self.deps = deps
        self.outputs = outputs
        self.nested: tuple[ObjectRecord, ...] = ()
        self.context: bytes | None = None
        self.parent: Node | None = None
        self.scope: Scope | None = None  # of the group that it belongs to
        self.submitted: dict[int, Node | PlainCall] | None = None  # what has not ended, by key
        self.depth = 0
        self.order = 0
        self.attempt = 0
        self.unfinished = 0
        self.passed_over = 0
        self.waits = 0  # awaits of a coroutine that are not answered; its CPUs are lent meanwhile
        self.state: NodeState = WAITING
        self.worker: WorkerRecord | None = None
        self.seq = 0
        self.allocation: Allocation | None = None
        self.actor: ActorRecord | None = None  # whom it calls, or makes
        self.cancel_asked = False
        self.cancel_told = False  # an answer to a wait has said so
        self.overdue = False  # the attempt ran out of time; when it is over there is another one
        self.alarm: Alarm | None = None
        self.stream: Stream | None = None  # of what it yields

    def fills(self) -> list[Any]:
        """The values of its dependencies; a key for the one that the task before will make."""
        return [dep.key if dep.outcome is None else dep.outcome for dep in self.deps]

    @property
    def children(self) -> list[Node]:
        """What its attempts have submitted and has not ended."""
        if not self.submitted:
            return []
        entries = list(self.submitted.values())
        nodes = [entry if isinstance(entry, Node) else entry.node() for entry in entries]
        return [node for node in nodes if node is not None]

    def __repr__(self) -> str:
        return f"<Node {self.spec.name} {self.key:#x} {self.state.name}>"


class PlainCall(ObjectRecord):
    """A call that is not a node yet: nearly all of those a program submits by the thousand.

    It has values for arguments, one result and no time limit, and nobody has asked for anything
    but its result.  Then it needs no more than the record of that: it stands in its line, is with
    a worker, and is done.  Whoever looks at it in any other way finds its node, made in that moment
    (:meth:`Graph.node_of`), with the state that it would have had.

    Fast path: the engine's thread takes half as long for it (3.1 -> 1.5 us a no-op).  Plain twin:
    ``Node``, whose steps (``Reactor.on_submit``, ``Scheduler._assign``, ``Reactor.on_done``)
    those of a call are, without all that cannot concern it.

    Invariant: while it is one, it is its own ``producer``; afterwards it is the record of an
    object like any other.
    """

    __slots__ = ("args", "order", "passed_over", "spec", "where")

    depth = 0
    parent: Node | None = None

    # Made by ``new_call``.
    spec: TaskSpec
    args: bytes | None
    where: Graph | WorkerRecord | None  # in whose line, or with whom
    order: int  # both: set when the engine takes it in
    passed_over: int

    @property
    def is_plain(self) -> bool:
        """False when there is a node in its place, or it has ended."""
        return self.producer is self

    @property
    def has_follower(self) -> bool:
        """True when its only dependent may travel with it: see ``Scheduler._hand_followers``."""
        dependents = self.dependents
        return dependents is not None and len(dependents) == 1 and dependents[0].unfinished == 1

    def node(self) -> Node | None:
        """Its node, made now if need be; None when it has ended."""
        where = self.where
        if isinstance(where, WorkerRecord):
            where.unfold()
        elif where is not None:
            where.unfold(self)
        producer = self.producer
        return producer if isinstance(producer, Node) else None


class NestedCall(PlainCall):
    """The same for a call that a task submits."""

    __slots__ = ("depth", "parent")

    depth: int
    parent: Node | None


_Call = TypeVar("_Call", bound=PlainCall)
_new: Final[Any] = object.__new__


def new_call(kind: type[_Call], key: int, spec: TaskSpec, args: bytes) -> _Call:
    """A new call; of a nested one the parent and the depth are missing.

    Fast path: a constructor that is written in Python is called through C, and costs as much as
    what stands in it (``.remote()`` 1.4 -> 1.2 us, with the same for its ref).  Plain twin:
    the constructor of ``ObjectRecord``.
    """
    call: _Call = _new(kind)
    call.key = key
    call.holds = 1
    call.contains = ()
    call.failed = call.seen = False
    call.outcome = call.dependents = call.waiters = call.where = None
    call.spec = spec
    call.args = args
    call.producer = call
    return call


class WorkerKind(IntEnum):
    PROCESS = 0
    """Runs one ``def`` task at a time in its main thread."""
    LOOP = 1
    """Runs many ``async def`` tasks at once in an event loop."""
    ACTOR = 2
    """Belongs to one actor and runs its calls."""


PROCESS: Final = WorkerKind.PROCESS
"""For the lines that run for each call, see ``states``."""


class WorkerRecord:
    """What the loom knows of one worker.

    A PROCESS worker holds one ``lease``: the resources of the one task it runs, for as long as
    it has tasks of that shape.  Invariants: ``lease`` is set exactly when ``load`` is not 0,
    and its CPUs are released while ``pending_requests > 0`` (it is blocked); ``at_hand`` counts
    what is in ``nodes`` and ``calls``.
    """

    __slots__ = (
        "actor",
        "asked_back",
        "at_hand",
        "borrowed",
        "calls",
        "deaf",
        "graph",
        "kind",
        "last_progress",
        "lease",
        "nodes",
        "number",
        "pending_requests",
        "ready",
        "seq",
        "shut_behind",
        "silent",
        "stalled",
    )

    def __init__(self, number: int, kind: WorkerKind) -> None:
        self.number = number
        self.kind = kind
        self.ready = False
        self.seq = 0  # of the last task handed out
        self.nodes: dict[int, Node] = {}  # by seq
        self.calls: dict[int, PlainCall] = {}  # each later than all of the nodes
        self.graph: Graph  # of its calls: set with the first of them
        self.lease: Allocation | None = None
        self.pending_requests = 0  # get and wait calls of its tasks that are not answered
        self.stalled = 0  # blocking calls that keep the event loop of a LOOP worker from turning
        self.deaf = False  # a coroutine in it does not end although it was told to
        self.silent = False  # and it has not answered since that was noticed
        self.at_hand: dict[FunctionKey, int] = {}  # how many calls of each function it has
        self.shut_behind = 0  # it gets nothing until what it has up to this ``seq`` is answered
        self.asked_back = 0  # the lowest outstanding seq when it was asked to give back
        self.last_progress = 0  # the lowest outstanding seq when the engine last looked
        self.borrowed: dict[int, ObjectRecord] = {}
        self.actor: ActorRecord | None = None  # whose calls it runs

    @property
    def inflight(self) -> dict[int, Node]:
        """What it has been handed and has not answered, by ``seq``, in that order."""
        if self.calls:
            self.unfold()
        return self.nodes

    @property
    def load(self) -> int:
        """How much that is."""
        return len(self.nodes) + len(self.calls)

    def seqs(self) -> list[int]:
        """The ``seq`` of each, in order."""
        return [*self.nodes, *self.calls]

    @property
    def oldest_seq(self) -> int:
        """The lowest ``seq`` of those."""
        return next(iter(self.nodes or self.calls))

    def node_at(self, seq: int) -> Node | None:
        """What it was handed as number ``seq``, if it still has it."""
        if seq in self.calls:
            self.unfold(seq)
        return self.nodes.get(seq)

    def unfold(self, last: int | None = None) -> None:
        """Make nodes of its calls, of those up to number ``last`` or of all."""
        for seq in list(self.calls):
            if last is not None and seq > last:
                break
            call = self.calls.get(seq)
            if call is not None:  # else it has its node: see ``Graph.unfold_on``
                self.graph.unfold_on(self, seq, call)

    def got(self, function: FunctionKey, count: int = 1) -> None:
        """A PROCESS worker was handed calls of a function."""
        self.at_hand[function] = self.at_hand.get(function, 0) + count

    def lost(self, function: FunctionKey, count: int = 1) -> None:
        """It has answered them, or gives them back."""
        left = self.at_hand[function] - count
        if left:
            self.at_hand[function] = left
        else:
            del self.at_hand[function]

    @property
    def blocked(self) -> bool:
        return self.pending_requests > 0 and self.kind is WorkerKind.PROCESS

    def __repr__(self) -> str:
        return f"<worker {self.number} {self.kind.name} {self.load} in flight>"
