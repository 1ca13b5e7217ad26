"""The driver's books of the shared memory: what is used, granted, warm, and how much may be.

``warm`` space is free but has its pages; it is handed out first, because writing to pages that
exist is several times faster.  ``cold`` space has none.  What is used, granted and warm
together never exceeds the capacity.

Any thread of the driver may allocate; blocks are released by whoever drops them last, which may
be a garbage collection in the middle of anything: that only appends to a deque.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from taskloom._store.arena import MAX_ARENA_BYTES, MIN_ARENA_BYTES, PAGE, Arena, padded
from taskloom._store.extents import Extents
from taskloom._store.stored import Block, Parts, Sealed, Shape

SPREAD: Final = 4
"""Address space of the arena in capacities: pages come and go, so holes in it cost nothing."""
SPILL_SHARE: Final = 0.8
"""Spilling begins when this share of the capacity is used (Ray: ``object_spilling_threshold``)."""
TRIM_BYTES: Final = 16 << 20
"""Given back to the system at once when nobody waits for it."""


class Space(NamedTuple):
    """Some memory for somebody to write to."""

    offset: int
    length: int
    fresh: bool
    """Its pages do not exist yet."""


class ObjectStore:
    """The store of one session.

    Args:
        capacity: bytes that may be used (``object_store_memory``).
        ring: called, on any thread and under no lock, when something was released.
    """

    def __init__(self, capacity: int, ring: Callable[[], None]) -> None:
        wanted = padded(capacity, PAGE)
        self.arena = Arena.create(min(max(SPREAD * wanted, MIN_ARENA_BYTES), MAX_ARENA_BYTES))
        self.capacity = min(wanted, self.arena.size)
        self._ring = ring
        self._lock = threading.Lock()
        self._warm = Extents()
        self._cold = Extents()
        self._cold.add(0, self.arena.size)
        self._released: deque[tuple[int, int]] = deque()
        self.blocks: dict[int, weakref.ref[Block]] = {}  # by offset, the oldest first
        self.used = 0  # by blocks
        self.granted = 0  # to workers, not written yet
        self.freed = 0  # so far: who waits sees that something moves
        self.closed = False

    # -- space --------------------------------------------------------------------------------

    def allocate(self, length: int) -> Space | None:
        """Space of at least ``length`` bytes, counted as granted; None when there is none."""
        length = padded(max(length, 1), PAGE)
        with self._lock:
            self._settle()
            offset = self._warm.take_best(length)
            fresh = offset is None
            if offset is None:
                excess = self.used + self.granted + self._warm.total + length - self.capacity
                if excess > self._warm.total:
                    return None
                if excess > 0:
                    self._cool(excess)
                offset = self._cold.take_first(length)
                if offset is None and self._warm.total:
                    self._cool(self._warm.total)
                    offset = self._cold.take_first(length)
                if offset is None:
                    return None
            self.granted += length
            return Space(offset, length, fresh)

    def give_back(self, offset: int, length: int, *, fresh: bool = False) -> None:
        """Space that was granted and not used; ``fresh``: nor touched."""
        with self._lock:
            self.granted -= length
            self.freed += length
            (self._cold if fresh else self._warm).add(offset, length)

    def block(self, offset: int, length: int, shape: Shape) -> Block:
        """Granted space has become a block."""
        block = Block(self.arena, offset, shape, length, self._release)
        with self._lock:
            self.granted -= length
            self.used += length
            self.blocks[offset] = weakref.ref(block)
        return block

    def write(self, parts: Parts, space: Space) -> Block:
        """Write a value into space that was allocated for it.

        Raises:
            OSError: there is no memory; the space is given back.
        """
        try:
            self.arena.write(space.offset, parts.stretch(), fresh=space.fresh)
        except BaseException:
            self.give_back(space.offset, space.length)
            raise
        return self.block(space.offset, space.length, parts.shape)

    def adopt(self, granted: Extents, sealed: Sealed) -> Block | None:
        """What a worker wrote into what it was granted; None when that is not true."""
        offset, length, shape = sealed
        if shape.length > length or length % PAGE or not granted.take(offset, length):
            return None
        return self.block(offset, length, shape)

    # -- the end of blocks --------------------------------------------------------------------

    def _release(self, offset: int, length: int) -> None:
        """A block has died.  Called from ``__del__``: no lock, next to no allocation."""
        if not self.closed:
            self._released.append((offset, length))
            self._ring()

    def tidy(self) -> bool:
        """Take note of what was released; whether there was something."""
        if not self._released:
            return False
        with self._lock:
            self._settle()
        return True

    def _settle(self) -> None:
        released = self._released
        while released:
            offset, length = released.popleft()
            self.blocks.pop(offset, None)
            self.used -= length
            self.freed += length
            self._warm.add(offset, length)

    def trim(self) -> None:
        """Give the pages of all free space back to the system; slow.

        Nobody waits for the lock meanwhile, the engine least of all: what is given back is in
        neither set for that moment.
        """
        while True:
            with self._lock:
                self._settle()
                length = min(self._warm.largest, TRIM_BYTES)
                if not length:
                    return
                offset = self._warm.take_best(length)
            assert offset is not None
            self.arena.give_back(offset, length)
            with self._lock:
                self._cold.add(offset, length)

    def _cool(self, wanted: int) -> None:
        """Give back the pages of so many bytes of free space and no more: somebody waits."""
        while wanted > 0 and (largest := self._warm.largest):
            length = min(largest, wanted)
            offset = self._warm.take_best(length)
            assert offset is not None
            self.arena.give_back(offset, length)
            self._cold.add(offset, length)
            wanted -= length

    @property
    def warm(self) -> int:
        """Bytes that are free and have pages."""
        return self._warm.total

    def wants_to_spill(self) -> int:
        """How many bytes are used beyond what is comfortable; 0 for none."""
        return max(0, self.used + self.granted - int(SPILL_SHARE * self.capacity))

    def close(self) -> None:
        """End of the session: only memory that somebody still views stays."""
        with self._lock:
            self._settle()
            self.closed = True
            self._cool(self._warm.total)
            self.arena.close()
