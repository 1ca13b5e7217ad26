"""Coroutines as tasks of the calling process: each in an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
import types
from collections.abc import Callable, Generator, Sequence
from contextlib import aclosing
from contextvars import copy_context
from typing import Any

from taskloom import _waiting


def run_coroutine(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    limit_s: float | None,
    most: int,
) -> object:
    """The result of a coroutine function, in a loop of its own, cancelled after ``limit_s``.

    Of an async generator function it is a generator of its items, at most ``most``; an error
    comes after those before it.

    Where a loop is running already there cannot be another one in the same thread; then a
    helper thread runs it, and the caller's loop stands still meanwhile, as for any task here.
    """

    async def main() -> object:
        async with asyncio.timeout(limit_s):
            value = function(*args, **kwargs)
            if most > 2 and isinstance(value, types.AsyncGeneratorType):
                return await items_of(value, most)
            return await value

    def run() -> object:
        # With a factory the runner leaves the thread's current event loop as it was.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(main())

    return outside_of_loops(run)


async def items_of(
    items: types.AsyncGeneratorType[object, None], most: int
) -> Generator[object, None, None]:
    """A generator of what an async generator yields, ``most`` items of it, and of its error."""
    found: list[object] = []
    error: BaseException | None = None
    async with aclosing(items):
        try:
            async for item in items:
                found.append(item)
                if len(found) == most:
                    break
        except Exception as raised:
            error = raised
    return _replay(found, error)


def _replay(found: list[object], error: BaseException | None) -> Generator[object, None, None]:
    yield from found
    if error is not None:
        raise error


def outside_of_loops(work: Callable[[], object]) -> object:
    """What ``work`` returns or raises, in a thread in which no loop is running."""
    if not _waiting.has_running_loop():
        return work()
    results: list[object] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(
        target=copy_context().run, args=(run,), name="taskloom-coroutine", daemon=True
    )
    thread.start()
    thread.join()
    if errors:
        raise errors.pop()
    return results[0]
