"""What ``map`` returns: an iterator that submits as it goes, for ``for`` and ``async for``."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from taskloom import _current
from taskloom._arrivals import Arrivals, OneConsumer, wait_in_task, waiting
from taskloom.ref import ObjectRef
from taskloom.remote_function import RemoteFunction

if TYPE_CHECKING:
    from taskloom._waiting import Waiter

R = TypeVar("R")

CALLS_PER_CPU: Final = 16
"""How many calls are kept in flight for each CPU, unless told: enough to send short tasks in
batches, few enough to take only a little more from an endless iterable than is used."""
COROUTINE_CALLS: Final = 128
"""The least for ``async def`` functions: they wait more than they compute."""


class _Ended:
    """Wakes a consumer who would wait in vain: the async items have ended, or the map is closed."""


class _Failed:
    """The outcome of a call that could not be submitted."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


_Entry = ObjectRef[Any] | int | _Failed | _Ended


class _Flow:
    """What an iterator and the task that reads its async items both know.

    ``in_flight`` counts what has been submitted and not been yielded.  ``entries`` holds the
    refs in the order of submission when ``ordered``, else the keys of those that are done.
    ``ended``: no more items.  ``closed``: nobody wants values any more, either.
    """

    def __init__(self, submit: Callable[[Any], Any], ordered: bool, limit: int) -> None:
        self.submit_item = submit
        self.ordered = ordered
        self.limit = limit
        self.in_flight = 0
        self.ended = False
        self.closed = False
        self.error: BaseException | None = None
        self.entries: Arrivals[_Entry] = Arrivals()
        self.pending: dict[int, ObjectRef[Any]] = {}  # only when not ordered
        self.room: Arrivals[None] = Arrivals()

    def submit(self, item: object) -> None:
        self.in_flight += 1
        try:
            ref = self.submit_item(item)
            if not isinstance(ref, ObjectRef):
                raise TypeError(
                    f"map() needs a function with one return value; .remote() gave {type(ref)}"
                )
        except Exception as error:
            self.entries.put(_Failed(error))
            return
        if self.ordered:
            self.entries.put(ref)
        else:
            self.pending[ref._key] = ref
            ref._keeper().subscribe((ref,), self.entries.put)

    def end(self, error: BaseException | None = None) -> None:
        self.ended = True
        if not self.closed:
            self.error = error

    def make_room(self) -> None:
        # Not below zero: it may have been closed while the value was waited for.
        self.in_flight = max(0, self.in_flight - 1)
        if not self.room:
            self.room.put(None)

    def close(self) -> None:
        self.ended = self.closed = True
        self.error = None
        self.in_flight = 0
        self.pending = {}
        entries, self.entries = self.entries, Arrivals()
        entries.put(_Ended())

    async def pump(self, items: AsyncIterable[Any]) -> None:
        """Read async items and submit them while there is room."""
        try:
            async for item in items:
                if self.ended:
                    return
                self.submit(item)
                while self.in_flight >= self.limit:
                    await self.room.aget()
        except BaseException as error:
            # A cancellation as well: it may be the items' own, and is then the consumer's too.
            self.end(error)
            if not isinstance(error, Exception):
                raise
        else:
            self.end()
        finally:
            self.entries.put(_Ended())


class Results(Iterator[R], AsyncIterator[R]):
    """What :func:`map` returns.  For one consumer at a time."""

    def __init__(
        self,
        fn: Any,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool,
        limit: int | None,
        return_exceptions: bool = False,
        yield_obj_refs: bool = False,
    ) -> None:
        self._stop_pump: Callable[[], Waiter] | None = None
        self._turn = OneConsumer()
        self._source: Iterator[Any] | None = None
        self._async_source: AsyncIterable[Any] | None = None
        if isinstance(items, AsyncIterable) and not isinstance(items, Iterable):
            self._async_source = items
        else:
            self._source = iter(items)
        self._limit = limit
        self._fn = fn
        self._flow = _Flow(fn.remote, ordered, limit or 0)
        self._return_exceptions = return_exceptions
        self._yield_refs = yield_obj_refs

    def __iter__(self) -> Results[R]:
        if self._async_source is not None:
            raise TypeError("the items of this map() are an async iterable: use `async for`")
        return self

    def __aiter__(self) -> Results[R]:
        return self

    def __next__(self) -> R:
        flow = self._flow
        with self._turn:
            self._fill()
            if not flow.in_flight:
                self._finish()
                raise StopIteration
            if not flow.entries:
                home = next(iter(flow.pending.values()))._keeper()
                wait_in_task(home, flow.pending)
            entry = flow.entries.get()
            if isinstance(entry, _Ended):
                raise StopIteration
            if not isinstance(entry, ObjectRef):
                return self._outcome(entry)
            try:
                # `get`, not an Arrivals: in a task it lends the task's CPUs while it blocks.
                value = entry._keeper().get((entry,), None)[0]
            except Exception as error:
                return self._failed(error)
            except BaseException:
                flow.entries.put_back(entry)  # Ctrl-C: the value is not lost
                raise
            flow.make_room()
            return cast("R", value)

    async def __anext__(self) -> R:
        flow = self._flow
        with self._turn:
            if self._async_source is None:
                self._fill()
            elif self._stop_pump is None and not flow.ended:
                self._start_pump(self._async_source)
            while flow.in_flight or not flow.ended:
                entry = await flow.entries.aget()
                if isinstance(entry, _Ended):
                    continue
                if isinstance(entry, ObjectRef):
                    try:
                        await entry.ready()
                    except BaseException:
                        flow.entries.put_back(entry)  # cancelled: the value is not lost
                        raise
                return self._outcome(entry)
            self._finish()
            raise StopAsyncIteration

    def _start_pump(self, items: AsyncIterable[Any]) -> None:
        flow = self._flow
        flow.limit = self._window()
        self._stop_pump = waiting().run_beside(lambda: flow.pump(items))

    def _fill(self) -> None:
        """Submit while there are items and room."""
        flow = self._flow
        if not flow.limit:
            flow.limit = self._window()
        source = self._source
        if source is None:
            raise TypeError("the items of this map() are an async iterable: use `async for`")
        while not flow.ended and flow.in_flight < flow.limit:
            try:
                item = next(source)
            except StopIteration:
                flow.end()
            except Exception as error:
                flow.end(error)
            else:
                flow.submit(item)

    def _window(self) -> int:
        if self._limit is not None:
            return self._limit
        cpus = int(_current.require().cluster_resources().get("CPU", 1))
        window = CALLS_PER_CPU * max(cpus, 1)
        fn = self._fn
        waits = isinstance(fn, RemoteFunction) and fn._callee.is_coroutine
        return max(window, COROUTINE_CALLS) if waits else window

    def _outcome(self, entry: _Entry) -> R:
        if isinstance(entry, _Failed):
            return self._failed(entry.error)
        pending = self._flow.pending
        ref = pending.pop(entry) if isinstance(entry, int) else cast("ObjectRef[R]", entry)
        try:
            value = ref if self._yield_refs else ref._keeper().result(ref)
        except Exception as error:
            return self._failed(error)
        self._flow.make_room()
        return cast("R", value)

    def _failed(self, error: Exception) -> R:
        self._flow.make_room()
        if self._return_exceptions:
            return cast("R", error)
        try:
            raise error
        finally:
            del error  # its traceback holds this frame: a circle

    def _finish(self) -> None:
        """Raise the error of the items, once."""
        error, self._flow.error = self._flow.error, None
        if error is None:
            return
        try:
            raise error
        finally:
            del error

    def close(self) -> None:
        """Stop submitting; what has been submitted still runs."""
        self._stop()

    async def aclose(self) -> None:
        """:meth:`close`, and wait until the reading of async items has ended."""
        ended = self._stop()
        if ended is not None:
            await ended.wait()

    def _stop(self) -> Waiter | None:
        self._flow.close()
        stop, self._stop_pump = self._stop_pump, None
        return None if stop is None else stop()

    def __del__(self) -> None:
        if getattr(self, "_stop_pump", None) is not None:
            self._stop()
