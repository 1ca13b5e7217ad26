"""A mailbox between engine threads and the one who waits: a thread, or a coroutine of any loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from taskloom._interruptible import acquire

if TYPE_CHECKING:
    from taskloom._waiting import Waiter
    from taskloom.backends.base import Backend
    from taskloom.ref import ObjectRef

T = TypeVar("T")


class Arrivals(Generic[T]):
    """What any thread puts in and one consumer, a thread or a coroutine, takes out."""

    __slots__ = ("_items", "_wakers")

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        # At most one.  A deque, because taking it out must be one step: two threads that put
        # at the same time must not both take it, and later remove the next one.
        self._wakers: deque[Callable[[], None]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add ``item`` and wake the consumer.  Never blocks."""
        self._items.append(item)
        try:
            wake = self._wakers.popleft()
        except IndexError:
            return
        wake()

    def put_back(self, item: T) -> None:
        """Undo a ``get`` (for the consumer)."""
        self._items.appendleft(item)

    def get(self) -> T:
        """Take the oldest item; blocks until there is one."""
        while not self._items:
            asleep = threading.Lock()
            asleep.acquire()
            # One waker for one lock, taken out once: release is called at most once.
            self._wakers.append(asleep.release)
            try:
                if not self._items:  # else it came before the waker was there to be seen
                    acquire(asleep, None)
            finally:
                self._wakers.clear()
        return self._items.popleft()

    async def aget(self) -> T:
        """Take the oldest item; waits in asyncio or trio until there is one."""
        while not self._items:
            waiter: Waiter = waiting().async_waiter()
            self._wakers.append(waiter.wake)
            try:
                if not self._items:
                    await waiter.wait()
            finally:
                self._wakers.clear()
        return self._items.popleft()


class OneConsumer:
    """``with`` it around each step: a second consumer is told, instead of both going astray."""

    __slots__ = ("_busy",)

    def __init__(self) -> None:
        self._busy = False

    def __enter__(self) -> None:
        if self._busy:
            raise RuntimeError("this iterator is already being advanced by somebody else")
        self._busy = True

    def __exit__(self, *_: object) -> None:
        self._busy = False


def wait_in_task(home: Backend, pending: dict[int, ObjectRef[Any]]) -> None:
    """In a task, block until one of ``pending`` is done where the engine sees it.

    A task that blocks in the backend's own ``wait`` lends its CPUs meanwhile (REM-12); nobody
    would know of it if it slept in an :class:`Arrivals`.  Elsewhere this does nothing.
    """
    if home.is_worker:
        home.wait(list(pending.values()), 1, None)


def waiting() -> Any:
    """The module ``_waiting``, loaded by the first coroutine that waits.

    It needs asyncio, which a worker for plain tasks never loads.
    """
    return import_module("taskloom._waiting")
