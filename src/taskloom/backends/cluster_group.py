"""Groups of tasks on a cluster: kept by the process that has opened them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskloom import _ids
from taskloom._wire.remote_errors import Failure
from taskloom.backends.cluster_values import carry

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from taskloom.backends.cluster import ClusterBackend
    from taskloom.backends.cluster_calls import Call
    from taskloom.ref import ObjectRef


class ClusterGroup:
    """See :class:`taskloom.backends.base.Group`.

    Its members are the calls that its own process has made.  What these submit in turn is ended
    by the cluster together with them when they are cancelled, but nobody waits for those of them
    for which the member itself has not waited.
    """

    def __init__(self, home: ClusterBackend, outer: ClusterGroup | None) -> None:
        self.home: ClusterBackend = home
        self.outer = outer
        self.closed = False
        self.cancelled: bool = outer is not None and outer.cancelled
        self._lock = home.group_lock
        self._members: set[Call] = set()
        self._inner: set[ClusterGroup] = set()
        self._failures: list[Failure] = []
        self._alarm: tuple[Callable[[int], None], AbstractEventLoop | None] | None = None
        record = home.objects.new(_ids.object_of(home.next_task(), 0))
        self.end: ObjectRef[Any] = home.ref_of(record)
        self._end_record = record
        home.open_groups.add(self)
        if outer is not None:
            with self._lock:
                outer._inner.add(self)

    # -- members ------------------------------------------------------------------------------

    def enter(self, call: Call) -> None:
        """A call belongs to the group from now on."""
        with self._lock:
            call.group = self
            self._members.add(call)

    def on_ended(self, call: Call, failure: Failure | None) -> None:
        """A member is done."""
        with self._lock:
            self._members.discard(call)
            call.group = None
            failed = failure is not None and not failure.cancelled
            if failed and failure not in self._failures:
                assert failure is not None
                self._failures.append(failure)
        if failed:
            self.cancel()
        self._look_for_end()

    def _look_for_end(self) -> None:
        with self._lock:
            if not self.closed or self._members or self._inner:
                return
            outcome = carry(list(self._failures), self.home.place_of)
        self.home.objects.settle([(self._end_record.key, outcome)])
        outer = self.outer
        if outer is not None:
            with self._lock:
                outer._inner.discard(self)
            outer._look_for_end()

    # -- the one who has opened it ------------------------------------------------------------

    def on_alarm(self, callback: Callable[[int], None], loop: AbstractEventLoop | None) -> None:
        with self._lock:
            self._alarm = callback, loop
            rings = self.cancelled
        if rings:
            self._ring()

    def close(self) -> None:
        self.closed = True
        self._alarm = None
        self.home.open_groups.discard(self)
        self._look_for_end()

    def cancel(self) -> None:
        with self._lock:
            self.cancelled = True
            members, inner = list(self._members), list(self._inner)
        for group in inner:
            group.cancel()
        for call in members:
            self.home.calls.cancel_call(call)
        self._ring()

    def release(self, ref: ObjectRef[Any]) -> None:
        call = self.home.calls.of(ref._key)
        with self._lock:
            if call is None or call not in self._members:
                return
            self._members.discard(call)
            call.group = None
            outer = self.outer
        if outer is not None and not outer.closed:
            outer.enter(call)
        self._look_for_end()

    def _ring(self) -> None:
        with self._lock:
            alarm, self._alarm = self._alarm, None
        if alarm is None:
            return
        callback, loop = alarm
        if loop is None:
            callback(0)
            return
        try:
            loop.call_soon_threadsafe(callback, 0)
        except RuntimeError:
            pass  # the loop is closed: nobody is left to tell
