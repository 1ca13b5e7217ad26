"""Large values: where they lie, who keeps them there, and how they are read.

One value is one stretch of bytes: its pickle, then each of the buffers that pickle protocol 5
left outside, all aligned.  On its way it has four faces::

    Draft     the writer has space and is filling it; unsent, the space is his again
    Sealed    what a worker tells the driver: written, here
    Block     the driver's; when nobody refers to it any more, the space is free
    Received  what the driver tells a worker: read it here; dies with the last view of it

The driver counts what it has sent to each worker and the worker reports each ``Received`` that
has died, so a Block lives as long as anybody, anywhere, looks at it.
"""

from __future__ import annotations

import pickle
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from taskloom._store.arena import ALIGNMENT, Arena, padded

THRESHOLD: Final = 100_000
"""Bytes above which a value goes to the store; as in Ray (``max_direct_call_object_size``)."""


class Shape(NamedTuple):
    """How a stored value is cut: the length of its pickle and of each buffer, bytes."""

    data_bytes: int
    buffer_bytes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Of the value, without what aligns it; bytes."""
        return self.data_bytes + sum(self.buffer_bytes)

    @property
    def length(self) -> int:
        """Of the stretch of memory, bytes."""
        return padded(self.data_bytes, ALIGNMENT) + sum(
            padded(size, ALIGNMENT) for size in self.buffer_bytes
        )

    def cut(self, memory: memoryview) -> tuple[memoryview, list[memoryview]]:
        """The pickle and the buffers in a stretch that begins with them."""
        at = padded(self.data_bytes, ALIGNMENT)
        buffers = []
        for size in self.buffer_bytes:
            buffers.append(memory[at : at + size])
            at += padded(size, ALIGNMENT)
        return memory[: self.data_bytes], buffers


class Parts(NamedTuple):
    """A pickled value that has no place yet; the buffers are still the caller's memory."""

    pieces: Sequence[Any]
    buffers: Sequence[memoryview]
    shape: Shape

    @classmethod
    def of(cls, pieces: Sequence[Any], buffers: Sequence[Any]) -> Parts:
        raw = [buffer.raw() for buffer in buffers]
        data_bytes = sum(len(piece) for piece in pieces)
        return cls(pieces, raw, Shape(data_bytes, tuple(view.nbytes for view in raw)))

    def stretch(self) -> list[Any]:
        """What to write, one behind the other."""
        out = [*self.pieces, *_filling(self.shape.data_bytes)]
        for view in self.buffers:
            out.append(view)
            out += _filling(view.nbytes)
        return out


def _filling(size: int) -> list[bytes]:
    missing = -size % ALIGNMENT
    return [bytes(missing)] if missing else []


def _read_only(exporter: Any, start: int, length: int) -> memoryview:
    # ``raw`` gives it the format "B"; a ctypes array exports another one, which cannot be cast.
    return pickle.PickleBuffer(exporter).raw()[start : start + length].toreadonly()


class Stored:
    """A value that can be read where it lies.

    Args:
        arena: the memory.
        offset: where it begins, bytes.
        shape: how it is cut.
    """

    __slots__ = ("__weakref__", "_window", "arena", "offset", "shape")

    def __init__(self, arena: Arena, offset: int, shape: Shape) -> None:
        self.arena = arena
        self.offset = offset
        self.shape = shape
        self._window: weakref.ref[Any] | None = None

    @property
    def size_bytes(self) -> int:
        return self.shape.size

    @property
    def is_viewed(self) -> bool:
        """Whether this process has arrays, or the like, that lie in it."""
        return self._window is not None and self._window() is not None

    def open(self) -> tuple[memoryview, list[memoryview]]:
        """The pickle and the buffers: read-only views, which keep this object alive."""
        window = self._window() if self._window is not None else None
        if window is None:
            window = self.arena.window(self)
            self._window = weakref.ref(window)
        return self.shape.cut(_read_only(window, self.offset, self.shape.length))


# -- the driver's side ------------------------------------------------------------------------

outgoing: list[Any] = []
"""Blocks and spilled values pickled by the engine's thread since somebody looked: the channel
that sends the frame pins them for its worker (``_pool/transport``)."""


class Block(Stored):
    """A value in the store; its memory is free when the last reference to it goes.

    Args:
        release: called with ``(offset, length)``, on any thread; must take no lock.
    """

    __slots__ = ("keys", "length", "pinned", "release")

    def __init__(
        self,
        arena: Arena,
        offset: int,
        shape: Shape,
        length: int,
        release: Callable[[int, int], None],
    ) -> None:
        super().__init__(arena, offset, shape)
        self.length = length  # of the memory, whole pages
        self.release = release
        self.keys: list[int] = []  # of the objects it is the value of
        self.pinned = 0  # how often workers were sent it and have not reported back

    def __del__(self) -> None:
        self.release(self.offset, self.length)

    @property
    def pin(self) -> int:
        """What workers call it when they are through with it."""
        return self.offset

    def __reduce__(self) -> tuple[Callable[..., Received], tuple[Any, ...]]:
        outgoing.append(self)
        return _receive, (self.offset, *self.shape)

    def __repr__(self) -> str:
        return f"<block of {self.shape.size} bytes at {self.offset:#x}>"


class Sealed(NamedTuple):
    """What a worker has written into space it was granted."""

    offset: int
    length: int
    shape: Shape


# -- the worker's side ------------------------------------------------------------------------


class _ProcessStore:
    """What unpickling needs of a worker process: there is one store in it."""

    arena: Arena
    finished: Callable[[int], None]
    keep: Callable[[Parts], Draft] | None = None


process_store = _ProcessStore()


class Received(Stored):
    """A value of the driver's store in a worker; the driver keeps it until this has died."""

    __slots__ = ()

    def __del__(self) -> None:
        process_store.finished(self.offset)


def _receive(offset: int, data_bytes: int, buffer_bytes: tuple[int, ...]) -> Received:
    return Received(process_store.arena, offset, Shape(data_bytes, buffer_bytes))


class Draft:
    """Space that a worker fills; the driver's from the moment it is sent.

    Args:
        sealed: what is written where.
        unsent: where ``(offset, length)`` of one that was never sent go.
    """

    __slots__ = ("_sealed", "_sent", "_unsent")

    def __init__(self, sealed: Sealed, unsent: deque[tuple[int, int]]) -> None:
        self._sealed = sealed
        self._unsent = unsent
        self._sent = False

    def __reduce__(self) -> tuple[Callable[..., Sealed], tuple[Any, ...]]:
        self._sent = True
        offset, length, shape = self._sealed
        return _seal, (offset, length, *shape)

    def __del__(self) -> None:
        if not self._sent:
            self._unsent.append((self._sealed.offset, self._sealed.length))


def _seal(offset: int, length: int, data_bytes: int, buffer_bytes: tuple[int, ...]) -> Sealed:
    return Sealed(offset, length, Shape(data_bytes, buffer_bytes))
