"""Questions that a program with an asyncio loop of its own would ask."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

from benchmarks import programs
from benchmarks.contenders import Entry
from benchmarks.contenders.base import Contender
from benchmarks.loops import new_event_loop
from benchmarks.sizes import Sizes
from benchmarks.timing import percentile, verify

T = TypeVar("T")

_TICK_S = 0.002
_SLICE = 50
"""Calls that the user's own coroutine makes before it gives way: about a millisecond at most."""


def await_latencies_s(contender: Contender, sizes: Sizes) -> list[float]:
    """Seconds of each ``await`` of one task, one after another."""
    return run(_await_one_by_one(contender, sizes.latency_calls))


async def _await_one_by_one(contender: Contender, calls: int) -> list[float]:
    clock = time.perf_counter
    values, latencies_s = [], []
    async with contender.async_caller(programs.inc) as call:
        for n in range(calls // 10):
            verify("inc", await call(n), n + 1)
        for n in range(calls):
            started = clock()
            value = await call(n)
            latencies_s.append(clock() - started)
            values.append(value)
    verify("inc", values, list(range(1, calls + 1)))
    return latencies_s


def loop_lag(contender: Contender, entry: Entry, sizes: Sizes) -> dict[str, float]:
    """How late the timers of the user's loop are while very many tasks are in flight.

    The workers are held until the last task has been queued, so that all are in flight at once.
    The user's coroutine is a polite one: it gives way after a few calls.
    """
    return run(_loop_lag(contender, sizes))


async def _loop_lag(contender: Contender, sizes: Sizes) -> dict[str, float]:
    async with Ticker() as alone:
        await asyncio.sleep(1.0)
    with GarbagePauses() as garbage:
        async with Ticker() as ticker:
            queue_s, drain_s = await _queue_then_drain(contender, sizes)
    return {
        "p99": percentile(ticker.lags_s, 99) * 1e3,
        "max": max(ticker.lags_s) * 1e3,
        "gc_max": max(garbage.pauses_s, default=0.0) * 1e3,
        "alone_p99": percentile(alone.lags_s, 99) * 1e3,
        "queue_seconds": queue_s,
        "drain_seconds": drain_s,
    }


async def _queue_then_drain(contender: Contender, sizes: Sizes) -> tuple[float, float]:
    """Seconds to queue all tasks behind held workers, and seconds to await all results."""
    submit, hold = contender.submitter(programs.inc), contender.submitter(programs.wait_for_file)
    with tempfile.TemporaryDirectory() as directory:
        gate = Path(directory, "gate")
        held = [hold(str(gate)) for _ in range(sizes.workers)]
        started = time.perf_counter()
        handles = []
        for n in range(sizes.in_flight):
            handles.append(submit(n))
            if n % _SLICE == 0:
                await asyncio.sleep(0)
        queued = time.perf_counter()
        await asyncio.to_thread(gate.touch)
        values = []
        for n, handle in enumerate(handles):
            values.append(await contender.awaitable(handle))
            if n % _SLICE == 0:
                await asyncio.sleep(0)
        drained = time.perf_counter()
        await asyncio.gather(*map(contender.awaitable, held))
    for n, value in enumerate(values):
        verify("inc", value, n + 1)
        if n % _SLICE == 0:
            await asyncio.sleep(0)
    return queued - started, drained - queued


class GarbagePauses:
    """How long each collection of garbage stopped this process."""

    def __init__(self) -> None:
        self.pauses_s: list[float] = []
        self._started = 0.0

    def __enter__(self) -> Self:
        gc.callbacks.append(self._on_collection)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._on_collection)

    def _on_collection(self, phase: str, _info: object) -> None:
        if phase == "start":
            self._started = time.perf_counter()
        else:
            self.pauses_s.append(time.perf_counter() - self._started)


class Ticker:
    """A coroutine that sleeps for a tick again and again, and notes how late it is woken.

    A loop that is blocked for long would otherwise give one bad sample where a ticker on time
    gives many good ones: so the ticks that were missed meanwhile are counted as late too.
    """

    def __init__(self) -> None:
        self.lags_s: list[float] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._tick(), name="ticker")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _tick(self) -> None:
        clock = time.perf_counter
        while True:
            due = clock() + _TICK_S
            await asyncio.sleep(_TICK_S)
            lag_s = max(0.0, clock() - due)
            self.lags_s.append(lag_s)
            while (lag_s := lag_s - _TICK_S) > 0:
                self.lags_s.append(lag_s)


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
