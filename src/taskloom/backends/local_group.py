"""Groups of tasks as the driver opens them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskloom._core.scopes import Scope
from taskloom._engine.groups import new_scope
from taskloom.ref import ObjectRef

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from taskloom.backends.local import LocalBackend


class LocalGroup:
    """A group that the driver has opened; see :class:`taskloom.backends.base.Group`."""

    def __init__(self, home: LocalBackend, outer: LocalGroup | None) -> None:
        self.home: LocalBackend = home
        self.outer = outer
        self.closed = False
        around = outer.scope if outer is not None else None
        self.scope: Scope = new_scope(home._next_task(), around)
        scope = self.scope
        self.end: ObjectRef[Any] = ObjectRef(scope.end.key, home, scope.end)
        self._alarm: ObjectRef[Any] = ObjectRef(scope.alarm.key, home, scope.alarm)
        self._stop: Callable[[], None] | None = None
        home._post(home._engine.groups.open, scope)
        home._open_groups.add(self)

    def on_alarm(self, callback: Callable[[int], None], loop: AbstractEventLoop | None) -> None:
        self._stop = self.home.subscribe((self._alarm,), callback, loop)

    def close(self) -> None:
        self.closed = True
        self.home._open_groups.discard(self)
        if self._stop is not None:
            self._stop()
        self.home._post_if_open(self.home._engine.groups.close, self.scope)

    def cancel(self) -> None:
        self.home._post_if_open(self.home._engine.groups.cancel, self.scope)

    def release(self, ref: ObjectRef[Any]) -> None:
        key = self.home._check(ref)._key
        self.home._post(self.home._engine.groups.release, (self.scope, key))
