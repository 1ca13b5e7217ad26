"""Scopes: calls that end together, as a ``TaskGroup`` wants it.

A scope holds its *members*, the calls that its owner has submitted in it, and all that those have
submitted in turn: a call inherits the scope of the task that submits it.  A call is in the scope
until it has ended *and* its worker is through with it: a cancelled task whose worker has not
said so yet still counts.  A scope that was opened inside of another one (by the same program,
or by a task in it) is an inner scope of it, and counts as one more call while it has any.

Two objects tell of a scope, so that all ways to wait for objects are ways to wait for it: the
``alarm`` is done when the scope has a failed member or is cancelled, the ``end`` when it is
closed and nothing of it is left.  The value of the end is the list of errors.

What is cancelled, and when:

* *A member fails.*  The error is noted at once, and so are those of its dependents (one shared
  object); everything else in the scope is cancelled before the next pass, so that nothing of it
  is handed out any more.
* *The owner leaves, dies or is taken back without closing.*  Whoever opened the scope cannot
  come back to it: it is cancelled and closed.
* *A call comes after the cancel.*  It fails at once, as a child of a cancelled task does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskloom._core.node import Error, Node, ObjectRecord, WorkerRecord
from taskloom._core.states import TERMINAL

if TYPE_CHECKING:
    from taskloom._core.reactor import Reactor

PackErrors = Callable[[list[Error]], Any]


class Scope:
    """One scope.

    Args:
        key: names it; a task key that no task has.
        outer: the scope it is an inner scope of.
        end: done when nothing is left.
        alarm: done when the owner should stop what he is doing.
        pack: makes the value of ``end`` of the errors.

    Invariant: ``active`` is the number of ``nodes`` and of inner scopes that are active.
    """

    __slots__ = (
        "active",
        "alarm",
        "cancelled",
        "closed",
        "end",
        "errors",
        "inner",
        "key",
        "members",
        "nodes",
        "outer",
        "owner",
        "pack",
        "scopes",
        "worker",
    )

    scopes: Scopes  # set when it is opened

    def __init__(
        self,
        key: int,
        outer: Scope | None,
        end: ObjectRecord,
        alarm: ObjectRecord,
        pack: PackErrors,
    ) -> None:
        self.key = key
        self.outer = outer
        self.end = end
        self.alarm = alarm
        self.pack = pack
        self.owner: Node | None = None  # the task that opened it; None: the driver
        self.worker: WorkerRecord | None = None  # where that task runs
        self.nodes: dict[int, Node] = {}
        self.members: set[int] = set()
        self.inner: dict[int, Scope] = {}  # those that are open or active
        self.errors: dict[int, Error] = {}  # by id(): a chain shares one object
        self.active = 0
        self.closed = False
        self.cancelled = False

    def __repr__(self) -> str:
        return f"<scope {self.key:#x} with {self.active} active>"

    # -- calls come and go --------------------------------------------------------------------

    def enter(self, node: Node) -> bool:
        """A call is submitted in the scope; False when it comes too late."""
        if self.cancelled:
            return False
        self.nodes[node.key] = node
        if node.parent is None or node.parent.scope is not self:
            self.members.add(node.key)
        self._gain()
        return True

    def on_failed(self, node: Node, error: Error) -> bool:
        """A call in the scope ends with an error; True when the group will tell of it."""
        if error.cancelled or node.key not in self.members:
            return False  # how a task's own children end is its own affair
        for record in node.outputs:
            record.seen = True
        self.errors[id(error)] = error
        self.scopes.alarmed.append(self)
        return True

    def on_ended(self, node: Node) -> None:
        """A call in the scope has ended; its worker may still have it."""
        worker = node.worker
        if worker is None or worker.inflight.get(node.seq) is not node:
            self.drop(node)

    def drop(self, node: Node) -> None:
        """A call is through, in every respect."""
        if self.nodes.pop(node.key, None) is not None:
            self.members.discard(node.key)
            self.lose()

    def _gain(self) -> None:
        scope: Scope | None = self
        while scope is not None:
            scope.active += 1
            scope = scope.outer if scope.active == 1 else None

    def lose(self) -> None:
        """One less is active."""
        scope: Scope | None = self
        while scope is not None:
            scope.active -= 1
            if scope.active:
                return
            outer = scope.outer  # it has none any more when it is settled
            scope.settle()
            scope = outer

    def settle(self) -> None:
        """Tell of the end, if this is it."""
        if self.closed and not self.active:
            self.scopes.finish(self)

    def move_to(self, outer: Scope | None) -> None:
        """Become an inner scope of another one."""
        if self.outer is not None:
            del self.outer.inner[self.key]
            if self.active:
                self.outer.lose()
        self.outer = outer
        if outer is not None:
            outer.inner[self.key] = self
            if self.active:
                outer._gain()


class Scopes:
    """The open scopes, and what happens to them."""

    def __init__(self, loom: Reactor) -> None:
        self._loom = loom
        self.open: dict[int, Scope] = {}
        self._owned: dict[Node, list[Scope]] = {}  # open ones, by the task that opened them
        self.alarmed: list[Scope] = []  # a member has failed: to be cancelled before the next pass

    def on_open(
        self, scope: Scope, owner: Node | None = None, worker: WorkerRecord | None = None
    ) -> None:
        """A group begins.

        Args:
            scope: with its two objects, which are entered here.
            owner: the task that opens it.
            worker: where.
        """
        scope.scopes = self
        scope.owner, scope.worker = owner, worker
        outer, scope.outer = scope.outer, None
        if outer is None and owner is not None:
            outer = owner.scope
        self.open[scope.key] = scope
        if owner is not None:
            self._owned.setdefault(owner, []).append(scope)
        for record in (scope.end, scope.alarm):
            self._loom.graph.objects[record.key] = record
        if outer is not None:
            if outer.key in self.open:
                scope.move_to(outer)
            if outer.cancelled:
                self.on_cancel(scope)
        if owner is not None and owner.cancel_asked:
            self.on_cancel(scope)

    def on_close(self, scope: Scope) -> None:
        """The owner submits nothing more."""
        if not scope.closed:
            scope.closed = True
            scope.settle()

    def on_cancel(self, scope: Scope) -> None:
        """Everything in the scope and in its inner scopes is cancelled."""
        todo = [scope]
        while todo:
            current = todo.pop()
            todo.extend(current.inner.values())
            current.cancelled = True
            self._resolve(current.alarm, current, [])
            for node in list(current.nodes.values()):
                self._loom.cancel_node(node, force=False, recursive=True)

    def on_release(self, scope: Scope, key: int) -> None:
        """The task that makes ``key`` goes on after the block, with all that it has submitted.

        The next outer scope, if there is one, has it from now on.
        """
        record = self._loom.graph.objects.get(key)
        node = self._loom.graph.node_of(record) if record is not None else None
        if node is None or node.key not in scope.members or scope.cancelled:
            return
        outer = scope.outer
        moved: set[Node] = set()
        todo = [node]
        while todo:
            current = todo.pop()
            if current.scope is scope:
                moved.add(current)
                current.scope = outer
                if outer is not None:
                    outer.enter(current)
                scope.drop(current)
            todo.extend(current.children)
        for inner in list(scope.inner.values()):
            if inner.owner in moved:
                inner.move_to(outer)

    def on_left(self, node: Node) -> None:
        """A worker is through with a node."""
        if node.scope is not None and node.state in TERMINAL:
            node.scope.drop(node)
        for scope in list(self._owned.get(node, ())):
            self._abandon(scope)

    def on_worker_lost(self, worker: WorkerRecord) -> None:
        """Nobody will close what was opened there."""
        for scope in [scope for scope in self.open.values() if scope.worker is worker]:
            self._abandon(scope)

    def _abandon(self, scope: Scope) -> None:
        if not scope.closed:
            self.on_cancel(scope)
            self.on_close(scope)

    def on_alarm(self) -> None:
        """Members have failed since the last pass."""
        alarmed, self.alarmed = self.alarmed, []
        for scope in alarmed:
            if not scope.cancelled:
                self.on_cancel(scope)

    def finish(self, scope: Scope) -> None:
        """Nothing is left of a scope."""
        del self.open[scope.key]
        if scope.owner is not None:
            siblings = self._owned[scope.owner]
            siblings.remove(scope)
            if not siblings:
                del self._owned[scope.owner]
        scope.cancelled = True  # whoever comes now is too late
        scope.move_to(None)
        self._resolve(scope.alarm, scope, [])
        self._resolve(scope.end, scope, list(scope.errors.values()))

    def fail_all(self, error: Error) -> None:
        """The session ends: nobody will hear more of any scope."""
        for scope in list(self.open.values()):
            scope.cancelled = scope.closed = True
            for record in (scope.alarm, scope.end):
                if record.outcome is None:
                    record.failed = record.seen = True
                    self._loom.graph.settle(record, error)
        self.open.clear()
        self._owned.clear()

    def _resolve(self, record: ObjectRecord, scope: Scope, errors: list[Error]) -> None:
        if record.outcome is None:
            self._loom.graph.settle(record, scope.pack(errors))
