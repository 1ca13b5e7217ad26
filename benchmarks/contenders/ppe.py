"""``concurrent.futures.ProcessPoolExecutor``, with workers from a fork server.

The plain ``fork`` is not safe in programs with threads and is no longer Python's default.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import Executor, ProcessPoolExecutor

from benchmarks.contenders.executors import ExecutorContender


class ProcessPool(ExecutorContender):
    def make_executor(self, workers: int) -> Executor:
        return ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver"))


def make() -> ProcessPool:
    return ProcessPool()
