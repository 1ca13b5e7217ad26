"""Generators in a worker of a cluster: their items as outcomes, whatever attempt made them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from time import perf_counter
from types import AsyncGeneratorType
from typing import Any, Final

from taskloom._wire.remote_errors import Failure, system_failure
from taskloom.backends.cluster_driver import Outcome
from taskloom.backends.cluster_limits import Limit
from taskloom.backends.cluster_run import (
    EXITS,
    Runner,
    failure_of,
    function_of,
    inherited,
)
from taskloom.exceptions import StreamingGeneratorReplayInconsistentError

_ENDED: Final = object()


class StreamFailed(Exception):
    """What a generator raises on the cluster when ours has failed: it carries our failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class StreamRunner(Runner):
    """One call of a generator function with all its attempts; see :class:`Runner`."""

    def items(self) -> Iterator[Outcome]:
        """The items.

        Raises:
            StreamFailed: the generator has raised for good.
        """
        failure = inherited(self.fills)
        attempts, made = self.job.attempts, 0
        while failure is None:
            context, count, items = self.context(attempts), 0, None
            left_s = self.spec.pace.timeout_s if self.spec.pace is not None else None
            try:
                items = context.run(self._begin)
                while True:
                    began = perf_counter()
                    item = context.run(self._advance, items, left_s, attempts + 1)
                    if left_s is not None:
                        left_s -= perf_counter() - began
                    if item is _ENDED:
                        break
                    count += 1
                    if count > made:
                        outcome = self.keep(item, f"item {made} of {self.spec.name}()")
                        made += 1
                        yield outcome
                if count < made:
                    failure = self._inconsistent(made, count)
                    break
                return
            except GeneratorExit:
                _close(items)
                raise
            except EXITS:
                raise
            except BaseException as error:
                attempts += 1
                failure = self.verdict(error, attempts)
        assert failure is not None
        raise StreamFailed(failure)

    def _inconsistent(self, made: int, count: int) -> Failure:
        return system_failure(
            StreamingGeneratorReplayInconsistentError(
                f"{self.spec.name} was tried again after {made} items, and now it has ended after "
                f"{count}"
            )
        )

    def _begin(self) -> Any:
        args, kwargs = self.arguments()
        value = (self._method or function_of(self.spec))(*args, **kwargs)
        return _driven(value) if isinstance(value, AsyncGeneratorType) else iter(value)

    def _advance(self, items: Iterator[object], left_s: float | None, attempt: int) -> object:
        if left_s is None:
            return next(items, _ENDED)
        with Limit(self.spec.name, left_s, attempt):
            return next(items, _ENDED)

    # -- in a loop ----------------------------------------------------------------------------

    async def items_async(self) -> AsyncIterator[Outcome]:
        """The same for an async generator, in the running loop; it is not tried again."""
        failure = inherited(self.fills)
        context = self.context(self.job.attempts)
        made = 0
        if failure is None:
            try:
                args, kwargs = self.arguments()
                items: Any = context.run((self._method or function_of(self.spec)), *args, **kwargs)
                loop = asyncio.get_running_loop()
                while True:
                    step = loop.create_task(_step(items), context=context)
                    item = await step
                    if item is _ENDED:
                        return
                    yield self.keep(item, f"item {made} of {self.spec.name}()")
                    made += 1
            except (GeneratorExit, *EXITS):
                raise
            except asyncio.CancelledError:
                failure = self.home.calls.cancelled(self.job)
            except BaseException as error:
                failure = failure_of(error, self.spec)
        raise StreamFailed(failure)


async def _step(items: Any) -> object:
    return await anext(items, _ENDED)


def _driven(items: AsyncGeneratorType[object, None]) -> Iterator[object]:
    """The items of an async generator, in a loop of its own."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        try:
            while (item := runner.run(_step(items))) is not _ENDED:
                yield item
        finally:
            runner.run(items.aclose())


def _close(items: Any) -> None:
    close: Callable[[], None] | None = getattr(items, "close", None)
    if close is not None:
        close()
