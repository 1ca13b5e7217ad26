"""A contender with Ray's API: taskloom and Ray run the very same lines."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from types import ModuleType
from typing import Any

from benchmarks import programs
from benchmarks.contenders.base import Call, Contender


class RayApi(Contender):
    """Drives ``api``, a module that is or behaves like ``ray``.

    Args:
        api: the imported module.
        init: further keyword arguments of its ``init``.
    """

    def __init__(self, api: ModuleType, **init: object) -> None:
        self._api: Any = api
        self._init = init

    @property
    def api(self) -> Any:
        """The module, for work that is written in Ray's own words."""
        return self._api

    def prepare(self, **init: object) -> None:
        self._init = {**self._init, **init}

    def start(self, workers: int) -> None:
        self._api.init(num_cpus=workers, **self._init)

    def close(self) -> None:
        self._api.shutdown()

    def submitter(self, function: Call) -> Call:
        submit: Call = self._api.remote(function).remote
        return submit

    def fetch_one(self, handle: Any) -> Any:
        return self._api.get(handle)

    def fetch(self, handles: Sequence[Any]) -> list[Any]:
        values: list[Any] = self._api.get(handles)
        return values

    def put(self, value: object) -> Any:
        return self._api.put(value)

    def submitter_of_many(self, function: Call, count: int) -> Call:
        submit: Call = self._api.remote(num_returns=count)(function).remote
        return submit

    def awaitable(self, handle: Any) -> Awaitable[Any]:
        awaitable: Awaitable[Any] = handle
        return awaitable

    def actor_class(self, cls: type) -> Any:
        return self._api.remote(cls)

    def caller_class(self) -> Any:
        api = self._api

        class Caller:
            """Calls others, many at a time."""

            def __init__(self, actors: list[Any]) -> None:
                self.actors = actors

            def call(self, calls: int) -> int:
                actors = self.actors
                refs = [actors[n % len(actors)].inc.remote(n) for n in range(calls)]
                return sum(api.get(refs))

        return api.remote(Caller)

    def nested(self, tasks: int, calls: int) -> list[int]:
        api = self._api
        inc = api.remote(programs.inc)

        def sum_of_calls(start: int) -> int:
            return sum(api.get([inc.remote(start + i) for i in range(calls)]))

        outer = api.remote(sum_of_calls)
        values: list[int] = api.get([outer.remote(n * calls) for n in range(tasks)])
        return values

    def nested_matrices(self, runs: int, size: int) -> list[int]:
        api = self._api
        multiply = api.remote(num_cpus=2)(programs.perform_naive_matrix_multiplication)
        compute_sum = api.remote(num_cpus=1)(programs.compute_matrix_sum)

        def expensive_computation(size: int) -> int:
            value: int = api.get(compute_sum.remote(multiply.remote(size)))
            return value

        expensive = api.remote(expensive_computation)
        values: list[int] = api.get([expensive.remote(size) for _ in range(runs)])
        return values
