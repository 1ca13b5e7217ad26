"""The bare floor (``benchmarks.floor``) as a contender."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any

from benchmarks.contenders.base import Call, Contender
from benchmarks.floor import Floor, Ref


class FloorContender(Contender):
    _floor: Floor

    def start(self, workers: int) -> None:
        self._floor = Floor(workers)

    def close(self) -> None:
        self._floor.close()

    def submitter(self, function: Call) -> Call:
        return partial(self._floor.submit, function)

    def fetch_one(self, handle: Ref) -> Any:
        return self._floor.get((handle,))[0]

    def fetch(self, handles: Sequence[Ref]) -> list[Any]:
        return self._floor.get(handles)

    def awaitable(self, handle: Ref) -> Awaitable[Any]:
        return self._floor.wait(handle)


def make() -> FloorContender:
    return FloorContender()
