"""How values of certain classes are pickled, as the user said with ``register_serializer``.

A value of a registered class travels as the call ``deserializer(serializer(value))`` whose inner
part was made where it was packed.  The deserializer goes along with every value, so only who packs
needs to know; those who unpack need not.

A registration of the driver is sent to all workers, in the order of its other messages, and given
to those that start later.  A worker takes notice of it when it packs something for the first time
after it: the user's code behind it is not loaded in the middle of the engine's own work.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from taskloom._wire.careful import line_of
from taskloom.ref import ObjectRef

Pair = tuple[Callable[[Any], Any], Callable[[Any], Any]]

FIXED: Final = frozenset(
    {int, float, complex, str, bytes, bytearray, bool, type(None)}
    | {list, tuple, dict, set, frozenset, type, ObjectRef, ContextVar}
)
"""Classes whose pickle nobody can change: the pickler, or the engine, knows them by itself."""


class Serializers:
    """The registrations of this process."""

    def __init__(self) -> None:
        self.active = False  # what picklers ask for each object: is there anything to look up?
        self._pairs: dict[type, Pair] = {}
        self._arrived: deque[bytes] = deque()

    def register(self, cls: type, pair: Pair) -> None:
        self._pairs[cls] = pair
        self.active = True

    def deregister(self, cls: type) -> bool:
        """Forget a class; False when it was not registered."""
        found = self._pairs.pop(cls, None) is not None
        self.active = bool(self._pairs or self._arrived)
        return found

    def serializer_of(self, cls: type) -> Callable[[Any], Any] | None:
        pair = self._pairs.get(cls)
        return pair[0] if pair is not None else None

    def all(self) -> list[tuple[type, Pair]]:
        return list(self._pairs.items())

    def receive(self, blob: bytes) -> None:
        """Take what another process has registered: the pickle of (class, pair or None)."""
        self._arrived.append(blob)
        self.active = True

    def reduce(self, value: object, loads: Callable[[bytes], Any]) -> Any:
        """What a pickler's ``reducer_override`` gives for ``value``."""
        if self._arrived:
            self._apply_arrived(loads)
        pair = self._pairs.get(type(value))
        if pair is None:
            return NotImplemented
        serializer, deserializer = pair
        return deserializer, (serializer(value),)

    def _apply_arrived(self, loads: Callable[[bytes], Any]) -> None:
        while self._arrived:
            try:
                blob = self._arrived.popleft()
            except IndexError:
                return  # another thread was faster
            try:
                cls, pair = loads(blob)
            except BaseException as error:
                sys.stderr.write(
                    "taskloom: a serializer that the driver registered cannot be loaded here: "
                    f"{line_of(error)}\n"
                )
            else:
                if pair is None:
                    self.deregister(cls)
                else:
                    self.register(cls, pair)


serializers: Final = Serializers()
