"""Values on their way through a cluster.

The cluster's library sees one of three things: ``bytes``, which is the pickle of a small value and
the cheapest thing that there is for it; a :class:`Carried`; or a ``Failure``.  The user's value is
pickled by us and by nobody else, so that what pickles, and what a ref or a context variable inside
becomes, is the same everywhere.

A Carried hands its buffers to the library's own pickler as they are (pickle protocol 5), so that a
large array is copied once: into the memory of the cluster.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from taskloom._store.stored import Parts
from taskloom._wire import serialization

NOTHING: Final[Mapping[int, Any]] = {}


class Carried:
    """The pickle of a value, the buffers beside it, and the places of the refs inside.

    Args:
        pieces: of the pickle, in order, bytes-like.
        buffers: what the pickle left outside, in its order.
        places: {key: where that object is}, for each ref inside.
    """

    __slots__ = ("buffers", "pieces", "places")

    def __init__(
        self, pieces: Sequence[Any], buffers: Sequence[Any], places: Mapping[int, Any]
    ) -> None:
        self.pieces = pieces
        self.buffers = buffers
        self.places = places

    def __reduce__(self) -> tuple[Callable[..., Carried], tuple[Any, ...]]:
        return _arrive, (
            tuple(map(pickle.PickleBuffer, self.pieces)),
            tuple(map(_buffer, self.buffers)),
            dict(self.places),
        )

    @property
    def size_bytes(self) -> int:
        """How large it is, without the places."""
        return sum(memoryview(part).nbytes for part in (*self.pieces, *self.buffers))

    def open(self) -> tuple[Any, Sequence[Any]]:
        """The pickle and the buffers."""
        pieces = self.pieces
        return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), self.buffers


def _buffer(buffer: Any) -> pickle.PickleBuffer:
    return buffer if type(buffer) is pickle.PickleBuffer else pickle.PickleBuffer(buffer)


def _arrive(pieces: Sequence[Any], buffers: Sequence[Any], places: dict[int, Any]) -> Carried:
    # What arrives may be shared by all who unpack it, so nobody may write to it (STO-1).
    return Carried(pieces, tuple(memoryview(buffer).toreadonly() for buffer in buffers), places)


def carry(value: object, place_of: Callable[[int], Any]) -> bytes | Carried:
    """A value as it travels.  It may be a view of the caller's memory: send it before he goes on.

    Args:
        value: anything.
        place_of: where the object with a key is: asked for each ref inside.

    Raises:
        Whatever pickling raised: see ``serialization.refuse``.
    """
    if type(value) in serialization.UNSIZED or type(value) is int:
        return serialization.pack_plain(value)
    parts, keys = serialization.pickled(value)
    return carry_parts(parts, {key: place_of(key) for key in keys} if keys else NOTHING)


def carry_parts(parts: Parts, places: Mapping[int, Any]) -> bytes | Carried:
    """The same for what is pickled already."""
    if not places and not parts.buffers and parts.shape.size <= serialization.INLINE_BYTES:
        return b"".join(parts.pieces)
    return Carried(parts.pieces, parts.buffers, places)


def size_of(outcome: Any) -> int:
    """How many bytes an outcome has, roughly."""
    if isinstance(outcome, bytes):
        return len(outcome)
    return outcome.size_bytes if isinstance(outcome, Carried) else len(outcome.blob)
