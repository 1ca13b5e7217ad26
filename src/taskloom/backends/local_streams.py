"""Streams as the driver consumes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskloom._core.node import Node
from taskloom._core.streams import Stream
from taskloom.generator import END, ObjectRefGenerator
from taskloom.ref import ObjectRef

if TYPE_CHECKING:
    from taskloom.backends.local import LocalBackend


def open_stream(
    home: LocalBackend, node: Node, completed: ObjectRef[object]
) -> ObjectRefGenerator[object]:
    """Give a node its stream, before it is submitted; the generator for its caller."""
    limit = node.spec.stream
    assert limit is not None
    node.stream = Stream(node.outputs[0], limit)
    return ObjectRefGenerator(LocalSource(home, node.stream, completed))


class LocalSource:
    """A stream for its consumer in the driver; see :class:`taskloom.generator.Source`."""

    __slots__ = ("_stream", "completed", "home")

    def __init__(self, home: LocalBackend, stream: Stream, completed: ObjectRef[Any]) -> None:
        self.home: LocalBackend = home
        self.completed = completed
        self._stream = stream

    def claim(self) -> ObjectRef[Any]:
        record = self._stream.items.popleft()
        return ObjectRef(record.key, self.home, record)  # what the stream held is the ref's now

    def is_done(self, ref: ObjectRef[Any]) -> bool:
        return ref._record.outcome is not None

    def is_end(self, ref: ObjectRef[Any]) -> bool:
        outcome = ref._record.outcome
        return type(outcome) is bytes and outcome == END

    def wait(self, ref: ObjectRef[Any], timeout_s: float | None) -> None:
        if ref._record.outcome is None:
            self.home._waits.for_one(ref._record, timeout_s)

    def on_taken(self) -> None:
        printer = self.home._printer
        if printer.backlog or printer.writing:  # what was printed before the item comes before it
            printer.flush()
        if self._stream.limit:
            self.home._post_if_open(self.home._engine.streams.taken, self._stream)

    def share(self) -> ObjectRef[None]:
        home, record = self.home, self._stream.completed
        home._post(home._engine.borrow, record)
        return ObjectRef(record.key, home, record)

    def drop(self, *, for_good: bool) -> None:
        if for_good:
            del self.completed  # first: then it is known at once whether somebody else has a ref
        self.home._post_if_open(self.home._engine.streams.drop, self._stream)
