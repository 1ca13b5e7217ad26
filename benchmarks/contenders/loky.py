"""loky: a process pool that survives, and pickles with cloudpickle."""

from __future__ import annotations

from concurrent.futures import Executor

import loky

from benchmarks.contenders.executors import ExecutorContender


class Loky(ExecutorContender):
    def make_executor(self, workers: int) -> Executor:
        executor: Executor = loky.get_reusable_executor(max_workers=workers)
        return executor


def make() -> Loky:
    return Loky()
