"""Streams on a cluster: the items of a generator, one by one, as their consumer asks.

The cluster's driver gives the next item when it is asked, so that its own limit of how far a
generator may be ahead holds.  An item that was asked for is claimed: a pending record, which the
driver's callback settles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskloom import _ids
from taskloom._wire.remote_errors import Failure
from taskloom.backends.cluster_driver import Handle, Place, Stream
from taskloom.backends.cluster_objects import Record, State
from taskloom.generator import END

if TYPE_CHECKING:
    from taskloom.backends.cluster import ClusterBackend
    from taskloom.backends.cluster_calls import Call
    from taskloom.ref import ObjectRef


class ClusterSource:
    """See :class:`taskloom.generator.Source`.

    Args:
        home: whose stream it is.
        call: that makes it.
        stream: at the cluster; None: the call has failed before it was sent.
        failure: why.
    """

    __slots__ = ("_call", "_count", "_ended", "_failure", "_stream", "completed", "home")

    def __init__(
        self, home: ClusterBackend, call: Call, stream: Stream | None, failure: Failure | None
    ) -> None:
        self.home: ClusterBackend = home
        self._call = call
        self._stream = stream
        self._failure = failure
        self._count = 0
        self._ended = False
        record = home.objects.by_key.get(call.outputs[0])
        assert record is not None
        record.heard = True  # it comes as an item, too
        self.completed: ObjectRef[Any] = home.ref_of(record)
        if failure is not None:
            home.objects.settle([(record.key, failure)])

    def claim(self) -> ObjectRef[Any]:
        home = self.home
        home.check_open()
        record = home.objects.new(_ids.item_of(self._call.task, self._count))
        record.is_armed = True
        self._count += 1
        ref = home.ref_of(record)
        if self._ended:
            home.objects.settle([(record.key, END)])
        elif self._stream is None:
            self._ended = True
            home.objects.settle([(record.key, self._failure)])
        else:
            self._stream.next(lambda told: self._on_item(record, told))
        return ref

    def _on_item(self, record: Record, told: Handle | Failure | None) -> None:
        if told is None:
            self._ended = True
            self.home.objects.settle([(record.key, END)])
        elif isinstance(told, Failure):
            self._ended = True
            if self._call.cancelled and not told.cancelled:
                told = self.home.calls.cancelled(self._call)
            self.home.objects.settle([(record.key, told)])
        else:
            record.place = Place(value=told)
            self.home.objects.settle([(record.key, None)])

    def is_done(self, ref: ObjectRef[Any]) -> bool:
        return bool(ref._record.state != State.PENDING)

    def is_end(self, ref: ObjectRef[Any]) -> bool:
        return bool(ref._record.outcome == END)

    def wait(self, ref: ObjectRef[Any], timeout_s: float | None) -> None:
        self.home.objects.wait([ref._record], 1, timeout_s, all_well=False)

    def on_taken(self) -> None:
        """The cluster counts what it has handed out."""

    def share(self) -> ObjectRef[None]:
        ref: ObjectRef[Any] = self.home.ref_of(self.home.record_of(self.completed))
        ref._record.keeps = self._stream
        ref._record.heard = True
        return ref

    def drop(self, *, for_good: bool) -> None:
        # ``keeps`` says that somebody waits for the end of the generator.
        wanted = self.completed._record.keeps is not None
        if for_good and not wanted and self._stream is not None and self._is_running():
            self._stream.close()

    def _is_running(self) -> bool:
        """Whether the generator goes on, and nobody has asked for its end."""
        call = self._call
        return not (self._ended or call.cancelled or call.task not in self.home.calls.running)


def open_stream(
    home: ClusterBackend, call: Call, stream: Stream | None, failure: Failure | None
) -> ClusterSource:
    """The consumer's end of a stream."""
    return ClusterSource(home, call, stream, failure)
