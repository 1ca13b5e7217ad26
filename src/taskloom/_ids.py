"""Names of tasks and objects: minted without asking anybody, unique within a session.

Inside a process an id is an ``int`` *key*, because integers hash and travel cheaply::

    key = (process number << 36 | counter) << 20 | index

The driver is process 0 and every worker gets a number of its own, so two processes never mint
the same key.  Index 0 names the task itself; its return values are 1, 2, 3, ...

To the outside a key is shown as Ray shows an object id: 28 bytes, 56 hex digits, made of the
session's 12 random bytes, the 12 bytes of the task and 4 bytes of the index.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final, NewType, cast

TaskKey = NewType("TaskKey", int)
ObjectKey = NewType("ObjectKey", int)

INDEX_BITS: Final = 20
COUNTER_BITS: Final = 36
PROCESS_SHIFT: Final = INDEX_BITS + COUNTER_BITS
MAX_RETURNS: Final = (1 << INDEX_BITS) - 2
_INDEX_MASK: Final = (1 << INDEX_BITS) - 1
_OVERFLOW_SHIFT: Final = 80  # leaves 24 bits for the number of a process

SESSION_BYTES: Final = 12
TASK_BYTES: Final = 24
OBJECT_BYTES: Final = 28
NIL_KEY: Final = ObjectKey((1 << 96) - 1)


class Mint:
    """Makes task keys for one process.  Thread-safe: ``next`` on a count is atomic."""

    __slots__ = ("next_task",)

    def __init__(self, process_number: int) -> None:
        first = (process_number << COUNTER_BITS | 1) << INDEX_BITS
        keys = cast("Iterator[TaskKey]", itertools.count(first, 1 << INDEX_BITS))
        self.next_task: Callable[[], TaskKey] = keys.__next__


def task_of(key: int) -> TaskKey:
    """The task that makes the object ``key``."""
    return TaskKey(key >> INDEX_BITS << INDEX_BITS)


def object_of(task: TaskKey, index: int) -> ObjectKey:
    """The ``index``-th return value (from 0) of ``task``."""
    return ObjectKey(task + index + 1)


def item_of(task: int, index: int) -> ObjectKey:
    """The ``index``-th item (from 0) of the stream of ``task``; its return value stands before.

    There may be more items than an index can count: what is beyond goes above all other bits.
    """
    number = index + 2
    return ObjectKey(task + (number & _INDEX_MASK) + (number >> INDEX_BITS << _OVERFLOW_SHIFT))


def process_of(key: int) -> int:
    """The number of the process that minted ``key``."""
    return key >> PROCESS_SHIFT


def object_bytes(session: bytes, key: int) -> bytes:
    """The 28 bytes by which users see an object."""
    if key == NIL_KEY:
        return b"\xff" * OBJECT_BYTES
    index = key & ((1 << INDEX_BITS) - 1)
    return session + (key >> INDEX_BITS).to_bytes(12, "big") + index.to_bytes(4, "little")


def task_bytes(session: bytes, key: int) -> bytes:
    """The 24 bytes by which users see a task."""
    return object_bytes(session, key)[:TASK_BYTES]


def parse_object_bytes(data: bytes) -> tuple[bytes, ObjectKey]:
    """Session and key of 28 bytes made by :func:`object_bytes`.

    Raises:
        ValueError: the length is not 28 bytes, or the index is out of range.
    """
    if len(data) != OBJECT_BYTES:
        raise ValueError(f"an object id has {OBJECT_BYTES} bytes, got {len(data)}")
    if data == b"\xff" * OBJECT_BYTES:
        return b"\xff" * SESSION_BYTES, NIL_KEY
    session, task, index = data[:12], data[12:24], data[24:]
    number = int.from_bytes(index, "little")
    if number >> INDEX_BITS:
        raise ValueError(f"not an object id of taskloom: index {number} is out of range")
    return session, ObjectKey(int.from_bytes(task, "big") << INDEX_BITS | number)


ACTOR_BYTES: Final = 16


def actor_bytes(session: bytes, key: int) -> bytes:
    """The 16 bytes by which users see an actor, given the key of its object."""
    return (key >> INDEX_BITS).to_bytes(12, "big") + session[:4]
