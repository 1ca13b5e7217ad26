"""What a contender must be able to do for the questions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Call = Callable[..., Any]
"""Submits one task and returns the contender's own handle of it."""

AsyncCall = Callable[..., Awaitable[Any]]
"""Submits one task; awaiting what it returns gives the value."""


class Contender(ABC):
    """Runs functions in worker processes.

    The methods hand out the contender's own callables wherever they can, so that the interface
    itself costs nothing while the clock runs.
    """

    def prepare(self, **init: object) -> None:
        """Take options for :meth:`start` that a question needs."""
        if init:
            raise NotImplementedError

    @abstractmethod
    def start(self, workers: int) -> None:
        """Start a pool of ``workers`` processes of one CPU each."""

    @abstractmethod
    def close(self) -> None:
        """End all processes."""

    @abstractmethod
    def submitter(self, function: Call) -> Call:
        """A callable that submits one call of ``function``."""

    @abstractmethod
    def fetch_one(self, handle: Any) -> Any:
        """Block until the task is done; its value."""

    def fetch(self, handles: Sequence[Any]) -> list[Any]:
        """Block until all tasks are done; their values in order."""
        return [self.fetch_one(handle) for handle in handles]

    def put(self, value: object) -> Any:
        """Keep a value where tasks can read it; a handle of it."""
        raise NotImplementedError

    def submitter_of_many(self, function: Call, count: int) -> Call:
        """A callable that submits a call with ``count`` results; it returns their handles."""
        raise NotImplementedError

    def awaitable(self, handle: Any) -> Awaitable[Any]:
        """Something that the running asyncio loop can wait for."""
        raise NotImplementedError

    def async_caller(self, function: Call) -> AbstractAsyncContextManager[AsyncCall]:
        """``async with contender.async_caller(f) as call: await call(...)``."""
        return self._async_caller(function)

    @asynccontextmanager
    async def _async_caller(self, function: Call) -> AsyncIterator[AsyncCall]:
        submit, awaitable = self.submitter(function), self.awaitable
        yield lambda *args: awaitable(submit(*args))

    def actor_class(self, cls: type) -> Any:
        """``cls`` as a class of actors, with Ray's interface."""
        raise NotImplementedError

    def caller_class(self) -> Any:
        """A class of actors that take actors and have ``call(calls)``: the sum of ``inc(n)``."""
        raise NotImplementedError

    def nested(self, tasks: int, calls: int) -> list[int]:
        """Run ``tasks`` tasks that each submit ``inc(start + i)`` for ``calls`` values of i.

        Returns:
            For each task the sum of what it fetched; task number n starts at n * calls.
        """
        raise NotImplementedError

    def nested_matrices(self, runs: int, size: int) -> list[int]:
        """The matrix program whose tasks submit tasks: one result per run."""
        raise NotImplementedError
