"""``multiprocessing.Pool`` with ``apply_async``, workers from a fork server."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from multiprocessing.pool import AsyncResult, Pool
from typing import Any

from benchmarks.contenders.base import AsyncCall, Call, Contender


class MultiprocessingPool(Contender):
    _pool: Pool

    def start(self, workers: int) -> None:
        self._pool = multiprocessing.get_context("forkserver").Pool(workers)

    def close(self) -> None:
        self._pool.close()
        self._pool.join()

    def submitter(self, function: Call) -> Call:
        apply_async = self._pool.apply_async
        return lambda *args: apply_async(function, args)

    def fetch_one(self, handle: AsyncResult[Any]) -> Any:
        return handle.get()

    @asynccontextmanager
    async def _async_caller(self, function: Call) -> AsyncIterator[AsyncCall]:
        # An AsyncResult cannot be awaited: its callbacks, on the pool's thread, wake the loop.
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def call(*args: object) -> Awaitable[Any]:
            future: asyncio.Future[Any] = loop.create_future()
            self._pool.apply_async(
                function,
                args,
                callback=lambda value: wake(future.set_result, value),
                error_callback=lambda error: wake(future.set_exception, error),
            )
            return future

        yield call


def make() -> MultiprocessingPool:
    return MultiprocessingPool()
