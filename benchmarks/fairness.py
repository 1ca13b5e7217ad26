"""Tasks of 0, 1 and 50 ms in a random order: does everybody get on, and are both workers used?

The tasks sleep, so that the processors are free for the engine and only its schedule is measured.
Every task tells its worker, its beginning and its end on the clock that all processes share; from
that the ideal is computed, and how long a worker had nothing to do while tasks were waiting.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from benchmarks import programs
from benchmarks.asyncio_questions import run
from benchmarks.contenders import Entry
from benchmarks.contenders.base import Call, Contender
from benchmarks.programs import Lap
from benchmarks.question import Answer, Metric, Question
from benchmarks.sizes import Sizes
from benchmarks.timing import percentile, rounds, verify

_KINDS = {0.0: programs.no_nap, 0.001: programs.short_nap, 0.05: programs.long_nap}
_SLICE = 20
"""Calls that the user's coroutine makes before it gives way."""


def mixed(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """One function for each length, then one function for all, then results one by one."""
    naps = _order(sizes)
    submitters = {seconds: contender.submitter(kind) for seconds, kind in _KINDS.items()}
    nap = contender.submitter(programs.nap)

    def submit_by_kind(number: int, seconds: float) -> object:
        return submitters[seconds](number)

    by_kind, by_argument = [], []
    for _ in rounds(most=3, budget_s=10.0):
        by_kind.append(_schedule(contender, submit_by_kind, naps, sizes))
        by_argument.append(_schedule(contender, nap, naps, sizes))
    lateness_s = run(_lateness_s(contender, naps))
    return {
        "of_ideal": median(ratio for ratio, _ in by_kind),
        "of_ideal_one": median(ratio for ratio, _ in by_argument),
        "idle": median(idle_s for _, idle_s in by_kind) * 1e3,
        "idle_one": median(idle_s for _, idle_s in by_argument) * 1e3,
        "late_p99": percentile(lateness_s, 99) * 1e3,
        "late_max": max(lateness_s) * 1e3,
    }


def _order(sizes: Sizes) -> list[float]:
    naps = [0.0] * sizes.no_naps + [0.001] * sizes.short_naps + [0.05] * sizes.long_naps
    random.Random(1).shuffle(naps)
    return naps


def _schedule(
    contender: Contender, submit: Call, naps: Sequence[float], sizes: Sizes
) -> tuple[float, float]:
    """How many times the ideal it took, and the longest a worker was idle needlessly."""
    contender.fetch([submit(number, seconds) for number, seconds in enumerate((0.0, 0.001, 0.05))])
    started = time.monotonic()
    handles = [submit(number, seconds) for number, seconds in enumerate(naps)]
    submitted = time.monotonic()
    laps: list[Lap] = contender.fetch(handles)
    elapsed_s = time.monotonic() - started
    _verify(laps, naps)
    return elapsed_s / ideal_s(laps, sizes.workers), longest_idle_s(laps, sizes.workers, submitted)


def _verify(laps: Sequence[Lap], naps: Sequence[float]) -> None:
    verify("numbers", [lap[0] for lap in laps], list(range(len(naps))))
    hasty = [lap for lap, nap in zip(laps, naps, strict=True) if lap[3] - lap[2] < nap]
    verify("tasks that slept too little", hasty, [])


def ideal_s(laps: Sequence[Lap], workers: int) -> float:
    """No schedule is shorter: all workers busy from first to last, or the longest task alone."""
    lengths = [ended - begun for _, _, begun, ended in laps]
    return max(sum(lengths) / workers, *lengths)


def longest_idle_s(laps: Sequence[Lap], workers: int, since: float) -> float:
    """The longest time in which a worker did nothing although a task had not begun yet.

    Args:
        laps: what the tasks told.
        workers: how many there are; one that ran nothing was idle all the time.
        since: when the last task had been submitted; what was before does not count.
    """
    until = max(begun for _, _, begun, _ in laps)
    busy: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for _, pid, begun, ended in laps:
        busy[pid].append((begun, ended))
    idle_s = [0.0] if len(busy) >= workers else [until - since]
    for spans in busy.values():
        free = since
        for begun, ended in sorted(spans):
            idle_s.append(min(begun, until) - free)
            free = max(free, ended)
        idle_s.append(until - free)
    return max(idle_s)


async def _lateness_s(contender: Contender, naps: Sequence[float]) -> list[float]:
    """How long after its end each result was in the hands of a coroutine that awaits it."""

    async def late_s(call: Call, number: int) -> float:
        lap: Lap = await call(number)
        now = time.monotonic()
        verify("number", lap[0], number)
        return now - lap[3]

    async with (
        contender.async_caller(programs.no_nap) as none,
        contender.async_caller(programs.short_nap) as short,
        contender.async_caller(programs.long_nap) as long,
        asyncio.TaskGroup() as group,
    ):
        calls = dict(zip(_KINDS, (none, short, long), strict=True))
        waiting = []
        for number, seconds in enumerate(naps):
            waiting.append(group.create_task(late_s(calls[seconds], number)))
            if number % _SLICE == 0:
                await asyncio.sleep(0)
    return [task.result() for task in waiting]


QUESTIONS = (
    Question(
        name="mixed",
        title="mixed tasks: time / ideal schedule",
        metrics=(
            Metric(name="of_ideal", title="time / ideal", unit="x"),
            Metric(name="of_ideal_one", title="one function for all", unit="x"),
            Metric(name="idle", title="idle while tasks wait", unit="ms", is_main=False),
            Metric(name="idle_one", title="the same, one function", unit="ms", is_main=False),
            Metric(name="late_p99", title="result late, p99", unit="ms", is_main=False),
            Metric(name="late_max", title="result late, max", unit="ms", is_main=False),
        ),
        inside=mixed,
    ),
)
