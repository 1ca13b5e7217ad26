"""Streams: what a generator yields, one object after another, while it still runs.

The call of a generator has one ordinary output, which is done when the generator has ended, and a
:class:`Stream` of *items*.  Each item is an object like any other.  There is always one more
record than there are items: the one *ahead*, which is not done yet.  An item fills it, and puts the
next one behind it first; the end of the call fills it with END, after an error that takes a record
of its own::

    items:   done   done   done   ahead              the generator runs
             done   done   done   failed   END       it has raised

So whoever consumes the stream waits for the first record in line as for any object, and nothing
that waits need know what a stream is.

* *Who keeps an item.*  The stream, until the consumer takes it; from then on his ref does.
* *An attempt is repeated.*  It yields from the beginning.  What is there already is passed over, by
  its number: an item is observed once.  An attempt that ends with fewer items than there are has
  contradicted itself, and that is its error.
* *Nobody consumes any more.*  The items go, what still comes is not kept, and the call is
  cancelled unless somebody has a ref to its output.
* *Back-pressure.*  With a ``limit`` the producer, which counts by itself, asks for *room* when so
  many items may not have been taken, and waits for that as for any object (as ``scopes`` do).  Its
  outcome is how many have been taken, in digits; END when nobody counts any more; STOP when the
  call has ended for everybody but the producer.

The consumer's thread takes records from the left of ``items`` while the engine's puts them in on
the right, and it never takes the last one before that is done: no lock is needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from taskloom import _ids
from taskloom._core.node import Node, ObjectRecord, WorkerRecord
from taskloom._core.states import ASSIGNED
from taskloom.exceptions import InternalError
from taskloom.generator import END, STOP

if TYPE_CHECKING:
    from taskloom._core.graph import Graph
    from taskloom._core.reactor import Reactor


class Stream:
    """The items of one call.

    Args:
        completed: the ordinary output of the call.
        limit: how many items may wait to be taken before the producer stands still; 0: any number.
    """

    __slots__ = (
        "ahead",
        "completed",
        "count",
        "dropped",
        "items",
        "limit",
        "room",
        "source",
        "taken",
        "yielded",
    )

    def __init__(self, completed: ObjectRecord, limit: int) -> None:
        self.completed = completed
        self.limit = limit
        self.ahead = ObjectRecord(self.key_of(0))
        self.items: deque[ObjectRecord] = deque((self.ahead,))
        self.count = 0  # how many items there are, or were
        self.taken = 0
        # The hand-out from which the last item came: one that is free of charge has the number of
        # the attempt before, and yields from the beginning all the same.
        self.source = (0, 0)
        self.yielded = 0  # how many items that has brought
        self.dropped = False
        self.room: tuple[int, ObjectRecord] | None = None  # asked for behind so many items

    def __repr__(self) -> str:
        return f"<stream {self.completed.key:#x} of {self.count} items, {self.taken} taken>"

    def key_of(self, index: int) -> int:
        """The key of the item ``index``."""
        return _ids.item_of(_ids.task_of(self.completed.key), index)

    def enter(self, node: Node, graph: Graph) -> None:
        """The call is entered into the graph."""
        graph.objects[self.ahead.key] = self.ahead
        self.ahead.producer = node

    def yielded_by(self, node: Node) -> int:
        """How many items the present attempt of its call has brought."""
        return self.yielded if self.source == _hand_out(node) else 0

    def lacks_items(self, node: Node) -> bool:
        """True when the attempt that has ended brought fewer items than those before it."""
        return self.yielded_by(node) < self.count

    def is_news(self, node: Node, index: int) -> bool:
        """Take note of an item; False when it was there before."""
        source = _hand_out(node)
        if self.source != source:
            self.source, self.yielded = source, 0
        if index != self.yielded or index > self.count:
            raise InternalError(f"{self!r}: item {index} comes after {self.yielded}")
        self.yielded += 1
        return index == self.count

    def advance(self, node: Node | None, graph: Graph) -> ObjectRecord:
        """The record that is filled next; another one stands ahead from now on."""
        record = self.ahead
        self.count += 1
        ahead = ObjectRecord(self.key_of(self.count))
        ahead.producer = node
        graph.objects[ahead.key] = ahead
        self.ahead = ahead
        self.items.append(ahead)  # before the other is done: its consumer may be fast
        return record

    def end(self, graph: Graph) -> None:
        """The call has ended, with what ``completed`` says."""
        completed = self.completed
        if completed.failed and not self.dropped:
            error = self.advance(None, graph)
            error.failed, error.seen = True, completed.seen
            completed.seen = True  # the stream tells of it
            error.producer = None
            graph.settle(error, completed.outcome)
        self.ahead.producer = None
        graph.settle(self.ahead, END)
        self.end_room(graph, STOP)

    @property
    def room_record(self) -> ObjectRecord | None:
        """What the producer waits for, if it does."""
        return self.room[1] if self.room is not None else None

    def make_room(self, graph: Graph) -> None:
        """Let the producer go on if it may."""
        if self.room is not None and self.room[0] - self.taken < self.limit:
            room, self.room = self.room[1], None
            graph.settle(room, b"%d" % self.taken)

    def end_room(self, graph: Graph, outcome: bytes) -> None:
        """Whoever stands still hears that there will be no more room, and why."""
        if self.room is not None:
            room, self.room = self.room[1], None
            graph.settle(room, outcome)


def _hand_out(node: Node) -> tuple[int, int]:
    """Names one run of a call: where it was handed to, and as what."""
    return (node.worker.number if node.worker is not None else 0, node.seq)


class Streams:
    """What happens to streams.

    Args:
        loom: whose calls they belong to.
    """

    def __init__(self, loom: Reactor) -> None:
        self._loom = loom
        self.dropped: list[Stream] = []  # since the last pass

    # -- what producers say -------------------------------------------------------------------

    def on_item(
        self,
        worker: WorkerRecord,
        seq: int,
        index: int,
        outcome: Any,
        contained: Iterable[int] | None,
    ) -> None:
        """A task has yielded; ``index`` counts from 0 in each attempt."""
        loom = self._loom
        node = worker.inflight.get(seq)
        if node is None:
            loom.late_messages += 1
            return
        if node.state is not ASSIGNED or node.overdue:
            return  # it was cancelled, or has failed already
        stream = node.stream
        if stream is None:  # it has a number of returns, of which this is one
            record = node.outputs[index]
            if record.outcome is None:
                loom.make_all_ready(loom.graph.fill(record, outcome, contained))
        elif stream.is_news(node, index):
            if stream.dropped:
                stream.count += 1
            else:
                loom.graph.fill(stream.advance(node, loom.graph), outcome, contained)

    def on_room(self, worker: WorkerRecord, seq: int, count: int, record: ObjectRecord) -> None:
        """A producer has yielded ``count`` items, and waits for ``record`` before the next."""
        graph = self._loom.graph
        graph.objects[record.key] = worker.borrowed[record.key] = record
        node = worker.inflight.get(seq)
        stream = node.stream if node is not None else None
        if node is None or stream is None or node.state is not ASSIGNED:
            graph.settle(record, STOP)
            return
        stream.end_room(graph, STOP)  # of an attempt that has died
        if stream.dropped:
            graph.settle(record, END)
            return
        stream.room = count, record
        stream.make_room(graph)

    # -- what consumers say -------------------------------------------------------------------

    def on_taken(self, stream: Stream) -> None:
        """The consumer has taken one more item."""
        stream.taken += 1
        stream.make_room(self._loom.graph)

    def on_drop(self, stream: Stream) -> None:
        """Nobody will take anything more from the stream."""
        if stream.dropped:
            return
        graph, completed = self._loom.graph, stream.completed
        stream.dropped = True
        while stream.items:
            graph.release(stream.items.popleft())
        self.dropped.append(stream)
        graph.abandoned.add(completed)
        if completed.holds == 0 and completed.outcome is None:
            graph.unwanted.append(completed)

    def on_pass(self) -> None:
        """Streams have been dropped, and those that nobody waits for are cancelled by now."""
        dropped, self.dropped = self.dropped, []
        for stream in dropped:
            stream.end_room(self._loom.graph, END)  # it goes on for its end alone
