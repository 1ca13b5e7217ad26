"""Which backend is active in this process, and how to get one when none is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskloom.backends.base import Backend, Group

_backend: Backend | None = None
_auto_init: Callable[[], None] | None = None
worker_setup: list[str] = []
"""Functions, as "module:function", that every worker calls when it starts."""
group: ContextVar[Group | None] = ContextVar("taskloom-group", default=None)
"""The innermost group that calls made in this context belong to; it may be closed already."""
lock = threading.RLock()
"""Held while a session starts or ends, so that two threads do not both auto-init."""


def peek() -> Backend | None:
    """The active backend, or None."""
    return _backend


def set_backend(backend: Backend | None) -> None:
    """Make ``backend`` the active one of this process (None: there is none)."""
    global _backend
    _backend = backend


def open_group(home: Backend) -> Group | None:
    """The group that a call of this context to ``home`` belongs to, if any."""
    found = group.get()
    while found is not None and (found.closed or found.home is not home):
        found = found.outer  # a coroutine may outlive the block in which it was started
    return found


def set_auto_init(start: Callable[[], None]) -> None:
    """Register what :func:`require` calls when no backend is active."""
    global _auto_init
    _auto_init = start


def require() -> Backend:
    """The active backend; starts one first when there is none (Ray's auto-init)."""
    if _backend is None:
        with lock:
            if _backend is None:
                if _auto_init is None:
                    raise RuntimeError("taskloom is not initialised: call taskloom.init() first")
                _auto_init()
        assert _backend is not None, "auto-init left no backend"
    return _backend
