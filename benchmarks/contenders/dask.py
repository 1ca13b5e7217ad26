"""Dask's ``distributed`` on one machine: worker processes of one thread, without the dashboard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from distributed import Client, LocalCluster, worker_client

from benchmarks import programs
from benchmarks.contenders.base import AsyncCall, Call, Contender


def _outer(start: int, calls: int) -> int:
    with worker_client() as client:
        futures = [client.submit(programs.inc, start + i, pure=False) for i in range(calls)]
        return sum(client.gather(futures))


def _expensive_computation(size: int) -> int:
    with worker_client() as client:
        product = client.submit(programs.perform_naive_matrix_multiplication, size, pure=False)
        value: int = client.submit(programs.compute_matrix_sum, product, pure=False).result()
        return value


class Dask(Contender):
    _cluster: Any
    _client: Any

    def start(self, workers: int) -> None:
        self._cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self._client = Client(self._cluster)
        self._client.wait_for_workers(workers)

    def close(self) -> None:
        self._client.close()
        self._cluster.close()

    def submitter(self, function: Call) -> Call:
        # pure=False: otherwise equal calls are one task, and nothing is left to measure.
        return partial(self._client.submit, function, pure=False)

    def fetch_one(self, handle: Any) -> Any:
        return handle.result()

    def fetch(self, handles: Sequence[Any]) -> list[Any]:
        values: list[Any] = self._client.gather(list(handles))
        return values

    @asynccontextmanager
    async def _async_caller(self, function: Call) -> AsyncIterator[AsyncCall]:
        async with Client(self._cluster.scheduler_address, asynchronous=True) as client:
            yield partial(client.submit, function, pure=False)

    def nested(self, tasks: int, calls: int) -> list[int]:
        submit = self.submitter(_outer)
        return self.fetch([submit(n * calls, calls) for n in range(tasks)])

    def nested_matrices(self, runs: int, size: int) -> list[int]:
        submit = self.submitter(_expensive_computation)
        return self.fetch([submit(size) for _ in range(runs)])


def make() -> Dask:
    return Dask()
