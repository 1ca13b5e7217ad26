"""A worker's share of the store: space it was granted, and what it writes there.

The worker cuts its space by itself and says with the value where it lies; the driver only hands
out more.  It does so unasked while results of a size keep coming, so that writing one costs
no question.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from taskloom._store.arena import PAGE, Arena, padded
from taskloom._store.extents import Extents
from taskloom._store.stored import Draft, Parts, Sealed
from taskloom._wire import messages as m
from taskloom._wire.remote_errors import Failure


class Drafts:
    """Where large values of this worker are written.

    Args:
        arena: the session's memory.
        ask: a question to the driver, ``Link.ask``.
        shield: keeps an interrupt away until an answer has been taken note of.
    """

    def __init__(
        self,
        arena: Arena,
        ask: Callable[..., Any],
        shield: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._arena = arena
        self._ask = ask
        self._shield = shield
        self._lock = threading.Lock()
        self._fresh = Extents()  # its pages do not exist yet
        self._warm = Extents()
        self._unsent: deque[tuple[int, int]] = deque()

    def on_grant(self, offset: int, length: int, fresh: bool) -> None:
        """The driver has given space."""
        with self._lock:
            (self._fresh if fresh else self._warm).add(offset, length)

    def give_up(self) -> list[tuple[int, int, bool]]:
        """All space that is not being written to; the driver needs it."""
        with self._lock:
            while self._unsent:
                self._warm.add(*self._unsent.popleft())
            return [
                (*space, fresh)
                for extents, fresh in ((self._warm, False), (self._fresh, True))
                for space in extents.take_all()
            ]

    def keep(self, parts: Parts) -> Draft:
        """Write a value.

        Raises:
            ObjectStoreFullError, OutOfDiskError: there is no room for it.
            OSError: there is no memory.
        """
        length = padded(parts.shape.length, PAGE)
        with self._shield():
            offset, fresh = self._take(length)
            draft = Draft(Sealed(offset, length, parts.shape), self._unsent)
        self._arena.write(offset, parts.stretch(), fresh=fresh)
        return draft

    def _take(self, length: int) -> tuple[int, bool]:
        while True:
            with self._lock:
                while self._unsent:
                    self._warm.add(*self._unsent.popleft())
                for extents, fresh in ((self._warm, False), (self._fresh, True)):
                    offset = extents.take_best(length)
                    if offset is not None:
                        return offset, fresh
            answer = self._ask(m.ROOM, length)
            if isinstance(answer, Failure):
                raise answer.revive()
            self.on_grant(*answer)
