"""The graph: which objects and calls there are, who waits for whom, who keeps what.

Everything here is a work list, never a recursion: a chain of a hundred thousand nodes ends,
fails or is dropped in one flat loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from taskloom._core.node import Error, NestedCall, Node, ObjectRecord, PlainCall, WorkerRecord
from taskloom._core.states import ASSIGNED, FINISHED, LEGAL, READY, TERMINAL, NodeState
from taskloom.exceptions import InternalError

if TYPE_CHECKING:
    from taskloom._core.actor_record import ActorRecord

Observer = Callable[[Node, NodeState, NodeState, str], None]
_MANY: Final = 64
"""Below that many dependents it is not worth the work to look for those that have ended."""


class Graph:
    def __init__(
        self,
        resolve: Callable[[ObjectRecord], None],
        resolve_all: Callable[[Sequence[ObjectRecord]], None],
        report_unseen: Callable[[ObjectRecord, str], None],
    ) -> None:
        self.objects: dict[int, ObjectRecord] = {}
        self._nodes: dict[int, Node] = {}
        self._plain = 0  # how many calls are not nodes
        self.observer: Observer | None = None
        # An await of them was cancelled: see ``Reactor.schedule``.  Until they are forgotten.
        self.abandoned: set[ObjectRecord] = set()
        self.unwanted: list[ObjectRecord] = []  # of those, what nobody wants now
        self._resolve = resolve
        self._resolve_all = resolve_all
        self._report_unseen = report_unseen
        self._orders = 0
        self.stirred: set[ActorRecord] = set()  # actors in whose lines something has changed
        self.forgotten: list[ActorRecord] = []  # actors that nobody has a handle of any more

    # -- nodes --------------------------------------------------------------------------------

    @property
    def nodes(self) -> dict[int, Node]:
        """All calls that have not ended, by their keys."""
        if self._plain:
            for record in list(self.objects.values()):
                self.node_of(record)
        return self._nodes

    def count_pending(self) -> int:
        """How many calls have not ended."""
        return len(self._nodes) + self._plain

    def node_of(self, record: ObjectRecord) -> Node | None:
        """The call that makes an object; None when it is done, or no call makes it."""
        producer = record.producer
        return producer.node() if isinstance(producer, PlainCall) else producer

    # While a node is made, a garbage collection may run user code that looks at the same call, and
    # its node is there before this one.  So it is finished first, and then put in its place by
    # statements that call nothing.

    def unfold_on(self, worker: WorkerRecord, seq: int, call: PlainCall) -> None:
        """Make a node of a call that a worker has, the first of those."""
        node = self._ready_node(call)
        node.worker = worker
        node.seq = seq
        node.attempt = 1
        self.move(node, ASSIGNED, "placed")
        if call.producer is call and seq in worker.calls:
            del worker.calls[seq]
            worker.nodes[seq] = node
            call.producer = self._nodes[node.key] = node
            call.args = call.where = None
            self._plain -= 1
            self._inherit(call, node)

    def unfold(self, call: PlainCall) -> None:
        """Make a node of a call that stands in a line."""
        node = self._ready_node(call)
        if call.producer is call:
            call.producer = self._nodes[node.key] = node
            call.args = call.where = None
            self._plain -= 1
            self._inherit(call, node)

    def _inherit(self, call: PlainCall, node: Node) -> None:
        """The node stands for the call among those that their parent has submitted."""
        if isinstance(call, NestedCall):
            parent, call.parent = call.parent, None
            if parent is not None and parent.submitted is not None:
                parent.submitted[node.key] = node

    def _ready_node(self, call: PlainCall) -> Node:
        node = node_from(call)
        node.order, node.passed_over = call.order, call.passed_over
        self.move(node, READY, "no dependencies")
        return node

    def add_calls(self, calls: Sequence[PlainCall]) -> None:
        """Enter calls and their outputs; they have the same parent, or none."""
        objects = self.objects
        for order, call in enumerate(calls, self._orders + 1):
            call.where = self
            call.order = order
            call.passed_over = 0
            objects[call.key] = call
        self._orders += len(calls)
        self._plain += len(calls)
        parent = calls[0].parent
        if parent is not None:
            if parent.submitted is None:
                parent.submitted = {}
            for call in calls:
                parent.submitted[call.key - 1] = call

    def add_call_of(self, worker: WorkerRecord, seq: int, call: PlainCall) -> None:
        """Enter a call that a worker has already, as number ``seq``, and its output."""
        self._orders += 1
        call.order = self._orders
        call.passed_over = 0
        call.where = worker
        worker.graph = self
        worker.calls[seq] = call
        self._plain += 1
        self.objects[call.key] = call

    def finish_calls(self, calls: Sequence[PlainCall]) -> list[Node]:
        """Calls have got their values, and no producer; the dependents that are READY now."""
        self._plain -= len(calls)
        ready: list[Node] = []
        if type(calls[0]) is NestedCall or len({*map(type, calls)}) > 1:
            self._leave_parents(calls)
        for call in calls:
            if call.dependents is not None:
                self._tell_dependents(call, ready)
            if call.holds == 0:
                self._forget(call)
        self._resolve_all(calls)
        return ready

    def _leave_parents(self, calls: Iterable[PlainCall]) -> None:
        """Calls have ended: nobody need cancel them with their parents."""
        for call in calls:
            if isinstance(call, NestedCall):
                parent, call.parent = call.parent, None
                if parent is not None and parent.submitted is not None:
                    parent.submitted.pop(call.key - 1, None)

    def move(self, node: Node, new: NodeState, why: str) -> None:
        """The only line in the project that changes a node's state."""
        old = node.state
        if new not in LEGAL[old]:
            raise InternalError(f"{node!r}: {old.name} -> {new.name} is not a move ({why})")
        node.state = new
        if self.observer is not None:
            self.observer(node, old, new, why)

    def add(self, node: Node) -> Error | None:
        """Enter a node and its outputs; count what is missing.

        Returns the error of a dependency that has failed already: the node must fail, too.
        """
        self._nodes[node.key] = node
        self._orders += 1
        node.order = self._orders
        for record in node.outputs:
            self.objects[record.key] = record
            record.producer = node
        if node.stream is not None:
            node.stream.enter(node, self)
        parent = node.parent
        if parent is not None:
            if parent.submitted is None:
                parent.submitted = {}
            parent.submitted[node.key] = node
        if not node.deps and not node.nested:
            return None
        failed: Error | None = None
        for dep in node.deps:
            dep.holds += 1
            if dep.outcome is None:
                node.unfinished += 1
                if dep.dependents is None:
                    dep.dependents = [node]
                else:
                    dep.dependents.append(node)
                    if len(dep.dependents) >= _MANY:
                        _drop_ended(dep.dependents)
            elif dep.failed:
                dep.seen = True
                failed = failed or dep.outcome
        for record in node.nested:
            record.holds += 1
        return failed

    def finish(self, node: Node, outcomes: Sequence[Any], contained: Sequence[Any]) -> list[Node]:
        """The node has a value for each output; the dependents that are READY now."""
        self.move(node, FINISHED, "result")
        ready: list[Node] = []
        if len(node.outputs) == 1:  # nearly always: no zip, which costs as much as all the rest
            (record,) = node.outputs
            if record.dependents or contained[0]:
                self._finish_one(record, outcomes[0], contained[0], ready)
            else:
                # Fast path: the result of a small task on its own.  Plain twin: ``_finish_one``.
                record.outcome = outcomes[0]
                self._resolve(record)
                if record.holds == 0:
                    self._forget(record)
        else:
            for record, outcome, keys in zip(node.outputs, outcomes, contained, strict=True):
                if record.outcome is None:  # else it was there before the node had ended
                    self._finish_one(record, outcome, keys, ready)
        self._leave(node)
        return ready

    def fill(self, record: ObjectRecord, outcome: Any, keys: Iterable[int] | None) -> list[Node]:
        """An object is done before the node that makes it; the dependents that are READY now."""
        ready: list[Node] = []
        record.producer = None
        self._finish_one(record, outcome, keys, ready)
        return ready

    def _finish_one(
        self, record: ObjectRecord, outcome: Any, keys: Iterable[int] | None, ready: list[Node]
    ) -> None:
        record.outcome = outcome
        if keys:
            self._contain(record, keys)
        if record.dependents:
            self._tell_dependents(record, ready)
        self._settle(record)

    def _tell_dependents(self, record: ObjectRecord, ready: list[Node]) -> None:
        """The object is there; who has all that he needs now goes to ``ready``."""
        waiting, record.dependents = record.dependents, None
        assert waiting is not None
        for dependent in waiting:
            dependent.unfinished -= 1
            if not dependent.unfinished and dependent.state is NodeState.WAITING:
                self.move(dependent, READY, "dependencies done")
                ready.append(dependent)

    def fail(self, node: Node, error: Error, why: str) -> list[Node]:
        """The node ends with an error, and with it all that depend on it; those nodes.

        They share one error object, whatever their number.
        """
        ended: list[Node] = []
        todo: deque[tuple[Node, Error]] = deque([(node, error)])
        while todo:
            current, cause = todo.popleft()
            if current.state in TERMINAL:
                continue
            cancelled = cause.cancelled
            self.move(current, NodeState.CANCELLED if cancelled else NodeState.FAILED, why)
            ended.append(current)
            told = current.scope is not None and current.scope.on_failed(current, cause)
            if current.actor is not None:
                current.actor.waiting.pop(current.key, None)
                self.stirred.add(current.actor)  # who stands behind it may go on
            for record in current.outputs:
                if record.outcome is not None:
                    continue  # what a generator has yielded before stays
                record.outcome = cause
                record.failed = True
                waiting, record.dependents = record.dependents, None
                if waiting:
                    record.seen = True  # they carry the error on
                    inherited = cause.inherit()
                    todo.extend((dependent, inherited) for dependent in waiting)
                self._settle(record)
            if not current.outputs and not cancelled and not told:
                orphan = ObjectRecord(current.key)
                orphan.outcome = cause
                self._report_unseen(orphan, current.spec.name)
            self._leave(current)
        return ended

    def _settle(self, record: ObjectRecord) -> None:
        self._resolve(record)
        if record.holds == 0:
            self._forget(record)

    def _leave(self, node: Node) -> None:
        """The node has ended: what it held goes."""
        self._nodes.pop(node.key, None)
        parent = node.parent
        if parent is not None and parent.submitted is not None:
            parent.submitted.pop(node.key, None)
            node.parent = None
        for record in node.outputs:
            record.producer = None
        if node.stream is not None:
            node.stream.end(self)
        node.args = node.holes = node.context = None
        if node.deps or node.nested:
            held = node.deps + node.nested
            node.deps = node.nested = ()
            for record in held:
                self.release(record)
        if node.scope is not None:
            node.scope.on_ended(node)

    # -- objects ------------------------------------------------------------------------------

    def add_value(self, record: ObjectRecord, outcome: Any, contained: Iterable[int]) -> None:
        """Enter an object that is done: a ``put``."""
        self.objects[record.key] = record
        record.outcome = outcome
        self._contain(record, contained)
        self._settle(record)

    def settle(self, record: ObjectRecord, outcome: Any) -> None:
        """An object that no call makes is done."""
        record.outcome = outcome
        self._settle(record)

    def release(self, record: ObjectRecord) -> None:
        """One reason less to keep the object."""
        record.holds -= 1
        if record.holds == 0:
            if record.outcome is not None:
                self._forget(record)
            elif record in self.abandoned:
                self.unwanted.append(record)

    def release_done(self, records: Iterable[ObjectRecord]) -> None:
        """The same for each of some objects that are done."""
        for record in records:
            record.holds -= 1
            if record.holds == 0:
                self._forget(record)

    def _contain(self, record: ObjectRecord, keys: Iterable[int]) -> None:
        inner = tuple(self.objects[key] for key in keys if key in self.objects)
        for member in inner:
            member.holds += 1
        record.contains = inner

    def _forget(self, record: ObjectRecord) -> None:
        """Nobody can reach the object any more, nor what only it contained."""
        if self.abandoned:
            self.abandoned.discard(record)
        if not record.contains and not record.failed and not record.is_actor:
            self.objects.pop(record.key, None)  # fast path, plain twin: the rest
            return
        todo = [record]
        while todo:
            current = todo.pop()
            self.objects.pop(current.key, None)
            if current.is_actor:
                self.forgotten.append(cast("ActorRecord", current))
            if current.failed and not current.seen and not current.outcome.cancelled:
                self._report_unseen(current, "")
            inner, current.contains = current.contains, ()
            for member in inner:
                member.holds -= 1
                if member.holds == 0 and member.outcome is not None:
                    todo.append(member)


def node_from(call: PlainCall) -> Node:
    """A new node for a call."""
    node = Node(call.key - 1, call.spec, call.args, None, (), (call,))
    node.parent, node.depth = call.parent, call.depth
    return node


def _drop_ended(dependents: list[Node]) -> None:
    """Let go of dependents that were cancelled, each time their number has doubled.

    So whoever submits and cancels behind something that takes long does not fill the memory, and
    each dependent still costs the same.
    """
    count = len(dependents)
    if not count & (count - 1):
        dependents[:] = [node for node in dependents if node.state not in TERMINAL]
