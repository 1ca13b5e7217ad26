"""Coroutines in a worker of a cluster that runs many of them in one loop.

The twin of ``cluster_run.Runner`` for the loop of an async actor, and of the process in which
``async def`` tasks run that ask for no CPU.
"""

from __future__ import annotations

import asyncio
from random import random
from time import perf_counter
from types import AsyncGeneratorType
from typing import Any

from taskloom._core.retries import pause_s
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom._wire.returns import split_returns
from taskloom.backends.cluster_driver import Outcome
from taskloom.backends.cluster_limits import OutOfTime, timed_out
from taskloom.backends.cluster_run import (
    EXITS,
    Runner,
    failure_of,
    function_of,
    inherited,
    is_retried,
)
from taskloom.backends.inline_loop import items_of
from taskloom.exceptions import TaskCancelledError


class AsyncRunner(Runner):
    """One call of a coroutine function, in the running loop; see :class:`Runner`."""

    async def run_async(self) -> list[Outcome]:
        """All attempts; the exits of an actor are raised on."""
        failure = inherited(self.fills)
        attempts = self.job.attempts
        while failure is None:
            began = perf_counter()
            error: BaseException | None = None
            try:
                return await self._attempt_async(attempts)
            except EXITS:
                if self._method is not None:
                    raise
                failure = system_failure(TaskCancelledError())
            except BaseException as raised:
                error = raised
            finally:
                self.seconds = perf_counter() - began
            attempts += 1
            if error is not None:
                failure = await self._verdict_async(error, attempts)
                del error  # its traceback holds this frame
        rest = self.spec.num_returns - len(self.early)
        return [*self.early, *[failure] * rest]

    async def _verdict_async(self, error: BaseException, attempts: int) -> Failure | None:
        if is_retried(self.spec, error, attempts):
            await asyncio.sleep(pause_s(attempts, self.spec.pace, random))
            return None
        if isinstance(error, OutOfTime):
            return system_failure(error.plain())
        return failure_of(error, self.spec)

    async def _attempt_async(self, attempt: int) -> list[Outcome]:
        spec = self.spec
        limit_s = spec.pace.timeout_s if spec.pace is not None else None
        function = self._method or function_of(spec)

        async def main() -> list[Outcome]:
            args, kwargs = self.arguments()
            value: Any = function(*args, **kwargs)
            if isinstance(value, AsyncGeneratorType) and spec.num_returns > 1:
                return self._fill(await items_of(value, spec.num_returns + 1))
            values = split_returns(await value, spec.num_returns, spec.name)
            return [self.keep(one, f"what {spec.name}() returned") for one in values]

        loop = asyncio.get_running_loop()
        task = loop.create_task(main(), name=spec.name, context=self.context(attempt))
        try:
            done, _ = await asyncio.wait({task}, timeout=limit_s)
        except asyncio.CancelledError:  # Ray's: the call was cancelled
            task.cancel()
            await asyncio.wait({task})
            if task.cancelled() or task.exception() is not None:
                return [self.home.calls.cancelled(self.job)] * spec.num_returns
            return task.result()
        if not done:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # seen
            raise timed_out(spec.name, limit_s or 0.0, attempt + 1)
        if task.cancelled():
            raise asyncio.CancelledError  # its own code has cancelled it: an error like others
        return task.result()
