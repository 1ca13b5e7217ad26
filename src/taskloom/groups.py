"""Many refs at once: completion order, lazy mapping, waiting without fetching.

The iterators of this module are iterables for ``for`` and for ``async for`` alike, in asyncio
and in trio.  They stand on the backend's ``subscribe``: engine threads put what is done into an
``Arrivals``, and the one consumer sleeps until something is there.  Nothing polls.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from taskloom._arrivals import Arrivals, OneConsumer, wait_in_task, waiting
from taskloom._blocking import FOREVER_S, seconds
from taskloom._mapping import Results
from taskloom.generator import ObjectRefGenerator, waitable
from taskloom.ref import ObjectRef
from taskloom.remote_function import remote

if TYPE_CHECKING:
    from taskloom.backends.base import Backend

T = TypeVar("T")


# -- arguments --------------------------------------------------------------------------------


def check_wait(refs: object, num_returns: object, timeout: object, name: str = "wait") -> list[Any]:
    """The refs and generators, when the arguments of ``wait`` or ``wait_async`` are right (WAIT-2).

    Raises:
        TypeError: not a list of refs; a number that is none.
        ValueError: refs are given twice; a number is out of range.
    """
    expected = f"{name}() expected a list of ray.ObjectRef"
    if isinstance(refs, ObjectRef):
        raise TypeError(f"{expected}, got a single ray.ObjectRef {refs!r}")
    if not isinstance(refs, list):
        raise TypeError(f"{expected}, got {type(refs)}")
    if timeout is not None and not seconds(timeout) >= 0:  # so that NaN is refused too
        raise ValueError(f"The 'timeout' argument must be nonnegative. Received {timeout}")
    check_refs(refs, name, ObjectRef | ObjectRefGenerator)
    if not refs:
        return refs
    if not isinstance(num_returns, int):
        raise TypeError(f"num_returns must be an int, got {num_returns!r}")
    if num_returns <= 0:
        raise ValueError(f"Invalid number of objects to return {num_returns}.")
    if num_returns > len(refs):
        raise ValueError(
            "num_returns cannot be greater than the number of ray_waitables provided to "
            f"ray.{name}."
        )
    return refs


def check_refs(refs: Sequence[object], name: str, kinds: Any = ObjectRef) -> None:
    """Raise unless ``refs`` are refs, or of other ``kinds``, each given once.

    Raises:
        TypeError: one is not a ref.
        ValueError: one is given twice.
    """
    for ref in refs:
        if not isinstance(ref, kinds):
            raise TypeError(
                f"{name}() expected a list of ray.ObjectRef, got list containing {type(ref)}"
            )
    if len(set(refs)) != len(refs):
        raise ValueError(f"{name.capitalize()} requires a list of unique ray_waitables.")


def _common_home(refs: Sequence[ObjectRef[Any]]) -> Backend:
    """The backend that keeps all of ``refs`` (at least one).

    Raises:
        ValueError: a ref belongs to another session, or to none.
    """
    home = refs[0]._keeper()
    for ref in refs:
        if ref._keeper() is not home:
            raise ValueError(f"{ref!r} belongs to another session than {refs[0]!r}")
    return home


# -- waiting ----------------------------------------------------------------------------------


async def wait_async(
    refs: list[T], num_returns: int = 1, timeout: float | None = None
) -> tuple[list[T], list[T]]:
    """``wait`` for coroutines, in asyncio and trio: no value is fetched, no error raised.

    Args:
        refs: refs, each once, and generators of refs (for their next item, or their end).
        num_returns: how many to wait for.
        timeout: seconds; None waits for ever, 0 asks what is done now.

    Returns:
        (ready, unready): at most ``num_returns`` refs that are done, and all others, both in
        the order of ``refs``.  Failed and cancelled ones count as done.

    Raises:
        TypeError, ValueError: as ``wait`` (WAIT-2).
    """
    given = check_wait(refs, num_returns, timeout, "wait_async")
    timeout = None if timeout is None else seconds(timeout)
    if not given:
        return [], []
    named = {waitable(one): one for one in given}
    checked = list(named)
    home = _common_home(checked)
    if timeout == 0:
        await waiting().let_others_run()  # who asks again and again must not stop his own loop
        done, rest = home.wait(checked, num_returns, 0)
        return [named[ref] for ref in done], [named[ref] for ref in rest]
    if _count_done(checked, home, num_returns) < num_returns:
        if timeout is not None and timeout > FOREVER_S:
            timeout = None
        await waiting().wait_for_some(checked, home, num_returns, timeout)
    ready: list[T] = []
    unready: list[T] = []
    for ref, one in named.items():
        (ready if len(ready) < num_returns and home.is_done(ref) else unready).append(one)
    return ready, unready


def _count_done(refs: Sequence[ObjectRef[Any]], home: Backend, enough: int) -> int:
    count = 0
    for ref in refs:
        if home.is_done(ref):
            count += 1
            if count == enough:
                break
    return count


# -- as_completed -----------------------------------------------------------------------------


@overload
def as_completed(
    refs: Iterable[ObjectRef[T]], *, yield_obj_refs: Literal[False] = ...
) -> Completions[T]: ...
@overload
def as_completed(
    refs: Iterable[ObjectRef[T]], *, yield_obj_refs: Literal[True]
) -> Completions[ObjectRef[T]]: ...
@overload
def as_completed(
    refs: Iterable[ObjectRef[Any]], *, yield_obj_refs: bool = ...
) -> Completions[Any]: ...
def as_completed(
    refs: Iterable[ObjectRef[Any]], *, yield_obj_refs: bool = False
) -> Completions[Any]:
    """Values in the order in which they are done, one by one.

    ::

        for value in taskloom.as_completed(refs): ...
        async for value in taskloom.as_completed(refs): ...      # asyncio or trio

    Args:
        refs: refs, each once.
        yield_obj_refs: give the refs instead of their values, to see which one is done and to
            handle its error.

    Returns:
        An iterator, sync and async.  The error of a failed task is raised in its place, and
        iteration can go on after it.

    Raises:
        TypeError: not an iterable of refs.
        ValueError: a ref is given twice, or belongs to another session.
    """
    if isinstance(refs, ObjectRef):
        raise TypeError(
            f"as_completed() expected a list of ray.ObjectRef, got a single ray.ObjectRef {refs!r}"
        )
    listed = list(refs)
    check_refs(listed, "as_completed")
    return Completions(listed, yield_obj_refs)


class Completions(Iterator[T], AsyncIterator[T]):
    """What :func:`as_completed` returns.  For one consumer at a time."""

    def __init__(self, refs: Sequence[ObjectRef[Any]], yield_obj_refs: bool) -> None:
        # The subscription knows the arrivals, not this object: when it is dropped, it ends.
        self._stop: Callable[[], None] | None = None
        self._turn = OneConsumer()
        self._yield_refs = yield_obj_refs
        self._pending = {ref._key: ref for ref in refs}
        self._arrivals: Arrivals[int | None] = Arrivals()  # None: closed
        if refs:
            self._home = _common_home(refs)
            self._stop = self._home.subscribe(refs, self._arrivals.put)

    def __iter__(self) -> Completions[T]:
        return self

    def __aiter__(self) -> Completions[T]:
        return self

    def __next__(self) -> T:
        with self._turn:
            if not self._pending:
                raise StopIteration
            if not self._arrivals:
                wait_in_task(self._home, self._pending)
            key = self._arrivals.get()
            if key is None:
                raise StopIteration
            return self._outcome(key)

    async def __anext__(self) -> T:
        with self._turn:
            if not self._pending:
                raise StopAsyncIteration
            key = await self._arrivals.aget()
            if key is None:
                raise StopAsyncIteration
            return self._outcome(key)

    def _outcome(self, key: int) -> T:
        ref = self._pending.pop(key)
        if not self._pending:
            self._stop = None
        return cast("T", ref if self._yield_refs else self._home.result(ref))

    def close(self) -> None:
        """Stop; the tasks go on."""
        self._pending = {}
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
            self._arrivals.put(None)  # wakes a consumer who waits right now

    async def aclose(self) -> None:
        """:meth:`close`, for ``contextlib.aclosing``."""
        self.close()

    def __del__(self) -> None:
        self.close()


# -- map --------------------------------------------------------------------------------------


def map(
    fn: Any,
    items: Iterable[Any] | AsyncIterable[Any],
    *,
    ordered: bool = True,
    limit: int | None = None,
    return_exceptions: bool = False,
) -> Results[Any]:
    """Call ``fn.remote(item)`` for each item, lazily; the values as an iterator.

    ::

        for value in taskloom.map(f, range(10)): ...
        async for value in taskloom.map(f, endless()): ...       # asyncio or trio

    Items are taken only while fewer than ``limit`` calls are in flight, so ``items`` may be
    endless.  With ``async for`` it may also be an async iterable, which is then read beside
    the loop body.  Submitting starts with the first step of the iteration.

    Args:
        fn: a remote function, what its ``.options()`` returns, an actor's method, or a plain
            function, which is made remote.
        items: one item for each call.
        ordered: values in the order of the items; False gives them as they are done.
        limit: how many calls may be submitted and not yet yielded.  By default 16 for each
            CPU, and at least 128 for an ``async def`` function.
        return_exceptions: yield the error of a failed call instead of raising it.

    Returns:
        An iterator, sync and async.  The error of a failed call is raised in its place and
        iteration can go on after it.  An error of ``items`` itself is raised after the values
        of the items before it.  Closing or dropping the iterator stops submitting; what has
        been submitted still runs.

    Raises:
        TypeError: ``fn`` is not callable, ``items`` is not iterable, ``limit`` is not an int.
        ValueError: ``limit`` is less than 1.
    """
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"the limit of map() must be an int, got {limit!r}")
        if limit < 1:
            raise ValueError(f"the limit of map() must be at least 1, got {limit}")
    if not hasattr(fn, "remote"):
        fn = remote(fn)
    return Results(fn, items, ordered=ordered, limit=limit, return_exceptions=return_exceptions)
