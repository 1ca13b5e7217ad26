"""Contenders that are ``concurrent.futures`` executors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

from benchmarks.contenders.base import Call, Contender


class ExecutorContender(Contender):
    """Drives an executor; a subclass says which."""

    _executor: Executor

    def make_executor(self, workers: int) -> Executor:
        raise NotImplementedError

    def start(self, workers: int) -> None:
        self._executor = self.make_executor(workers)

    def close(self) -> None:
        self._executor.shutdown()

    def submitter(self, function: Call) -> Call:
        return partial(self._executor.submit, function)

    def fetch_one(self, handle: Future[Any]) -> Any:
        return handle.result()

    def awaitable(self, handle: Future[Any]) -> Awaitable[Any]:
        return asyncio.wrap_future(handle)
