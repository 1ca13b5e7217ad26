"""The engine's desk for streams: what producers yield and consumers take, on its way to the loom.

A stream has one consumer, who has submitted the call: the driver, which takes items from the
stream itself, or a worker, which says here what it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from taskloom import _ids
from taskloom._core.node import ObjectRecord
from taskloom._core.reactor import Reactor
from taskloom._engine.storage import Storage
from taskloom._pool.process import WorkerProcess
from taskloom._store.stored import Sealed
from taskloom._wire import messages as m
from taskloom._wire.frames import Message

GLIMPSE: Final = 256
"""How many items a consumer in a worker is told of at a time."""


class StreamDesk:
    """See above.

    Args:
        loom: decides.
        storage: takes over large items.
    """

    def __init__(self, loom: Reactor, storage: Storage) -> None:
        self._loom = loom
        self._storage = storage
        self.taken: Final = loom.streams.on_taken  # what the driver posts
        self.drop: Final = loom.streams.on_drop
        self.handlers: dict[int, Callable[[WorkerProcess, Message], None]] = {
            m.ITEM_ROOM: self.on_room,
            m.NEXT_ITEM: self.on_next,
            m.ITEM_TAKEN: self.on_taken,
            m.DROP_STREAM: self.on_drop,
        }

    # -- producers ----------------------------------------------------------------------------

    def on_item(self, worker: WorkerProcess, message: Message) -> None:
        _, seq, index, outcome, contained = message
        if type(outcome) is Sealed:
            outcome = self._storage.adopt(worker, outcome)
            node = worker.record.inflight.get(seq)
            if node is not None:
                outcome.keys.append(
                    _ids.object_of(_ids.task_of(node.key), index)
                    if node.stream is None
                    else node.stream.key_of(index)
                )
        self._loom.streams.on_item(worker.record, seq, index, outcome, contained)

    def on_room(self, worker: WorkerProcess, message: Message) -> None:
        _, seq, count, key = message
        self._loom.streams.on_room(worker.record, seq, count, ObjectRecord(key))

    # -- consumers in workers -----------------------------------------------------------------

    def on_next(self, worker: WorkerProcess, message: Message) -> None:
        stream = worker.streams.get(message[1])
        if stream is not None and stream.items:
            record = stream.items.popleft()  # its hold is the worker's now
            worker.record.borrowed[record.key] = record

    def glimpse(self, worker: WorkerProcess, key: int) -> list[bytes]:
        """Small items that the consumer may take without waiting, and the end."""
        stream = worker.streams.get(key)
        found: list[bytes] = []
        for record in stream.items if stream is not None else ():
            if type(record.outcome) is not bytes or len(found) == GLIMPSE:
                break
            found.append(record.outcome)
        return found

    def on_taken(self, worker: WorkerProcess, message: Message) -> None:
        stream = worker.streams.get(message[1])
        if stream is not None:
            self._loom.streams.on_taken(stream)

    def on_drop(self, worker: WorkerProcess, message: Message) -> None:
        stream = worker.streams.pop(message[1], None)
        if stream is not None:
            self._loom.streams.on_drop(stream)

    def on_worker_gone(self, worker: WorkerProcess) -> None:
        """Nobody will take what it has not taken."""
        for stream in worker.streams.values():
            self._loom.streams.on_drop(stream)
        worker.streams.clear()
