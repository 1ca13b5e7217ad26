"""Groups of tasks in the engine: what the driver and the workers do with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskloom._core.node import Error, Node, ObjectRecord
from taskloom._core.reactor import Reactor
from taskloom._core.scopes import Scope
from taskloom._ids import object_of, task_of
from taskloom._wire import messages as m
from taskloom._wire.serialization import pack

if TYPE_CHECKING:
    from taskloom._pool.process import WorkerProcess
    from taskloom._wire.frames import Message


def pack_errors(errors: list[Error]) -> Any:
    """The value of the object that says that a group has ended."""
    payload, _ = pack(errors)
    return payload


def new_scope(key: int, outer: Scope | None) -> Scope:
    """A scope that is not open yet; any thread may make one."""
    task = task_of(key)
    end, alarm = ObjectRecord(object_of(task, 0)), ObjectRecord(object_of(task, 1))
    return Scope(key, outer, end, alarm, pack_errors)


class Groups:
    """Takes the messages about groups to the loom."""

    def __init__(self, loom: Reactor) -> None:
        self._scopes = loom.scopes
        self.joining: dict[int, Scope] = {}  # tasks whose SUBMIT comes next
        self._over = new_scope(0, None)  # stands for all that have ended: who comes is too late
        self._over.cancelled = self._over.closed = True
        self.handlers: dict[int, Callable[[WorkerProcess, Message], None]] = {
            m.GROUP_OPEN: self.on_open,
            m.GROUP_JOIN: self.on_join,
            m.GROUP_CLOSE: self.on_close,
            m.GROUP_CANCEL: self.on_cancel,
            m.GROUP_RELEASE: self.on_release,
        }

    # -- from the driver ----------------------------------------------------------------------

    def open(self, scope: Scope) -> None:
        self._scopes.on_open(scope)

    def close(self, scope: Scope) -> None:
        if scope.key in self._scopes.open:
            self._scopes.on_close(scope)

    def cancel(self, scope: Scope) -> None:
        if scope.key in self._scopes.open:
            self._scopes.on_cancel(scope)

    def release(self, entry: tuple[Scope, int]) -> None:
        scope, key = entry
        if scope.key in self._scopes.open:
            self._scopes.on_release(scope, key)

    # -- from workers -------------------------------------------------------------------------

    def on_open(self, worker: WorkerProcess, message: Message) -> None:
        _, key, outer_key, seq = message
        scope = new_scope(key, self._named(outer_key) if outer_key else None)
        for record in (scope.end, scope.alarm):
            worker.record.borrowed[record.key] = record
        self._scopes.on_open(scope, worker.record.inflight.get(seq), worker.record)

    def on_join(self, _worker: WorkerProcess, message: Message) -> None:
        _, key, task = message
        self.joining[task] = self._named(key)

    def on_close(self, _worker: WorkerProcess, message: Message) -> None:
        scope = self._scopes.open.get(message[1])
        if scope is not None:
            self._scopes.on_close(scope)

    def on_cancel(self, _worker: WorkerProcess, message: Message) -> None:
        scope = self._scopes.open.get(message[1])
        if scope is not None:
            self._scopes.on_cancel(scope)

    def on_release(self, _worker: WorkerProcess, message: Message) -> None:
        scope = self._scopes.open.get(message[1])
        if scope is not None:
            self._scopes.on_release(scope, message[2])

    def _named(self, key: int) -> Scope:
        return self._scopes.open.get(key, self._over)

    def settle_node(self, node: Node) -> None:
        """Before a worker's call is submitted: which scope it belongs to."""
        scope = self.joining.pop(node.key, None)
        if scope is not None:
            node.scope = scope
