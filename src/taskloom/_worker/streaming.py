"""Runs generators: what they yield goes to the driver item by item, while they run.

Items that come fast travel together, but none waits for more than about a millisecond: one that
comes that long after the last flush goes out at once, and of the others the control thread takes
care, so that none is stuck behind a step that takes long (unless C code holds the GIL all the
time).

There are two kinds: a *stream*, which any number of items may come from, and a generator with a
number of returns, whose items fill its refs one by one.  Of the latter the last item waits for the
end, because one item too many is an error of the call (REM-7).
"""

from __future__ import annotations

import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, cast

from taskloom import _current
from taskloom._wire import messages as m
from taskloom._wire.frames import Message
from taskloom._wire.serialization import Payload, pack
from taskloom._worker.answers import packed
from taskloom._worker.stream_source import fetch
from taskloom.generator import END, STOP

if TYPE_CHECKING:
    from taskloom._worker.client import WorkerBackend
    from taskloom._worker.functions import Running, Spec
    from taskloom._worker.link import Link
    from taskloom._worker.output import Output
    from taskloom.ref import ObjectRef

HOLD_S: Final = 0.001
"""An item that comes this long after the last flush goes out at once."""
_GENERATORS: Final = (types.GeneratorType, types.AsyncGeneratorType)


def yields(spec: Spec, value: object) -> bool:
    """Whether what a call has returned is to be run here, item by item."""
    return spec.stream is not None or (spec.num_returns > 1 and type(value) in _GENERATORS)


class Writer:
    """Runs the generator of one call, and sends what it yields.

    Args:
        link: the line to the driver.
        output: what was printed before an item goes out before it.
        current: the call.
        start: when it began.
    """

    def __init__(self, link: Link, output: Output, current: Running, start: float) -> None:
        self._link = link
        self._output = output
        self._current = current
        self._start = start
        self._home = cast("WorkerBackend", _current.require())
        self._count = 0  # of the items
        self._limit = current.spec.stream or 0
        self._taken = 0  # as far as it is known
        self._sent_at = 0.0
        # Of a generator with a number of returns: which item is kept for the end.
        self._last = current.spec.num_returns - 1 if current.spec.stream is None else -1
        self._kept: tuple[Payload, tuple[int, ...]] | None = None

    def drive(self, items: Iterable[object]) -> Message:
        """Run a generator to its end in this thread; the answer of the call.

        Raises:
            BaseException: what it has raised.
            Misbehaved: an item cannot be pickled.
            ValueError: there are more or fewer items than returns.
        """
        # In an actor nobody interrupts a call that was cancelled: it is asked after each item.
        is_told = bool(self._home._actor_facts)
        iterator = iter(items)
        try:
            for item in iterator:
                self._send(item)
                stops = is_told and self._current.cancelled
                if self._limit and self._count - self._taken >= self._limit:
                    room = self._ask_for_room()
                    fetch(self._home, room, None)
                    stops = not self._has_room(room)
                if stops:
                    self._link.on_cancelled()  # no interrupt need come any more
                    raise KeyboardInterrupt
        finally:
            if isinstance(iterator, types.GeneratorType):
                iterator.close()
        return self._answer()

    async def drive_async(
        self, items: AsyncGenerator[object, None], rest: Callable[[], Awaitable[object]]
    ) -> Message:
        """The same for an async generator, in its loop.

        Args:
            items: the generator.
            rest: gives the loop a turn: a generator that never waits must not hold up all others.
        """
        try:
            async for item in items:
                if self._send(item):
                    await rest()
                if self._limit and self._count - self._taken >= self._limit:
                    room = self._ask_for_room()
                    await room.ready()
                    if not self._has_room(room):
                        seconds = perf_counter() - self._start
                        return (m.FAILED, self._current.seq, None, False, seconds)
        finally:
            await items.aclose()
        return self._answer()

    def _send(self, item: object) -> bool:
        """Send an item now or before long; whether it was now."""
        spec, index = self._current.spec, self._count
        if index > self._last >= 0:
            raise ValueError(f"Task returned more than num_returns={spec.num_returns} objects.")
        payload, keys = self._pack(item)
        if index == self._last:
            self._kept = payload, keys
            self._count += 1
            return False
        if self._output.touched:
            with self._home._shield():
                self._output.flush()
        self._link.post((m.ITEM, self._current.seq, index, payload, keys or None))
        self._count += 1
        now = perf_counter()
        if now - self._sent_at >= HOLD_S:
            self._sent_at = now
            with self._home._shield():
                self._link.flush()
            return True
        if not self._link.lingering:
            with self._home._shield():
                self._link.flush_before_long()
        return False

    def _pack(self, item: object) -> tuple[Payload, tuple[int, ...]]:
        return packed(item, f"item {self._count} of {self._current.spec.name}()", "item")

    def _answer(self) -> Message:
        spec, seconds = self._current.spec, perf_counter() - self._start
        if spec.stream is not None:
            return (m.DONE, self._current.seq, pack(None)[0], None, seconds)
        if self._kept is None:
            raise ValueError(
                f"Task returned {self._count} objects, but num_returns={spec.num_returns}."
            )
        payload, keys = self._kept
        before: list[Any] = [None] * self._last  # they are there already
        return (m.DONE, self._current.seq, [*before, payload], [*before, keys], seconds)

    # -- back-pressure ------------------------------------------------------------------------

    def _ask_for_room(self) -> ObjectRef[object]:
        """An object that is done when the generator may go on."""
        with self._home._shield():
            room = self._home._new_object()
            self._link.post((m.ITEM_ROOM, self._current.seq, self._count, room._key))
        return room

    def _has_room(self, room: ObjectRef[object]) -> bool:
        """Take note of what was said; False when the generator is to stop."""
        outcome = room._record.outcome
        if type(outcome) is not bytes:
            raise outcome.revive()
        if outcome == END:
            self._limit = 0
        elif outcome != STOP:
            self._taken = int(outcome)
        return bool(outcome != STOP)
