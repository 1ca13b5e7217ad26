"""Streams as a worker consumes them.

The keys of the items are known beforehand, so to claim the next one is to say so: the driver makes
what its stream had held the worker's, and every question about it comes after that.  Who waits for
an item is told of those behind it, too, as far as they are there: so many small ones cost few
questions.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from taskloom import _ids
from taskloom._wire import messages as m
from taskloom._wire.remote_errors import Failure
from taskloom.generator import END
from taskloom.ref import ObjectRef

if TYPE_CHECKING:
    from taskloom._worker.client import WorkerBackend


class WorkerSource:
    """A stream for its consumer in a worker; see :class:`taskloom.generator.Source`.

    Args:
        home: the worker's.
        completed: the output of the call.
        is_counted: somebody wants to know when an item was taken.
    """

    __slots__ = ("_index", "_is_counted", "_known", "completed", "home")

    def __init__(self, home: WorkerBackend, completed: ObjectRef[Any], is_counted: bool) -> None:
        self.home: WorkerBackend = home
        self.completed = completed
        self._index = 0
        self._known: deque[bytes] = deque()  # outcomes of the items that come next
        self._is_counted = is_counted

    def claim(self) -> ObjectRef[Any]:
        home, key = self.home, self.completed._key
        with home._shield():
            ref = home._new_ref(_ids.item_of(_ids.task_of(key), self._index))
            home._link.post((m.NEXT_ITEM, key))  # no hurry: whoever wants it will ask for it
            self._index += 1
            if self._known:
                ref._record.outcome = self._known.popleft()
        return ref

    def is_done(self, ref: ObjectRef[Any]) -> bool:
        self.wait(ref, 0)
        return ref._record.outcome is not None

    def is_end(self, ref: ObjectRef[Any]) -> bool:
        outcome = ref._record.outcome
        return type(outcome) is bytes and outcome == END

    def wait(self, ref: ObjectRef[Any], timeout_s: float | None) -> None:
        if ref._record.outcome is not None:
            return
        if fetch(self.home, ref, timeout_s) and not self._is_counted:
            with self.home._shield():
                self._known.extend(self.home._link.ask(m.QUERY, "stream", self.completed._key))

    def on_taken(self) -> None:
        if self._is_counted:
            self.home._link.post_soon((m.ITEM_TAKEN, self.completed._key))

    def share(self) -> ObjectRef[None]:
        ref: ObjectRef[Any] = self.home._new_ref(self.completed._key)
        return ref

    def drop(self, *, for_good: bool) -> None:
        key = self.completed._key
        if for_good:
            del self.completed  # first: so both are told in one message
        self.home._link.post_soon((m.DROP_STREAM, key))


def fetch(home: WorkerBackend, ref: ObjectRef[Any], timeout_s: float | None) -> bool:
    """Block until ``ref`` is done, and its record has the outcome, or time is up (False).

    Raises:
        DeadlockError: it would be for ever.
        KeyboardInterrupt: the task was cancelled.
    """
    with home._shield():
        outcomes = home._link.ask(m.GET, [ref._key], timeout_s)
    if isinstance(outcomes, Failure):
        raise outcomes.revive()
    if outcomes[0] is None:
        return False
    ref._record.outcome = outcomes[0]
    return True
