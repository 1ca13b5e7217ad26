"""Questions about actors, asked of those that have Ray's API."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks import programs
from benchmarks.contenders import Entry
from benchmarks.contenders.base import Contender
from benchmarks.processes import CpuMeter, children_pss_bytes
from benchmarks.sizes import Sizes
from benchmarks.timing import percentile, rounds, verify

Answer = dict[str, float]


def latency(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """One call at a time to one actor."""
    actor = contender.actor_class(programs.Echo).remote()
    fetch_one, clock = contender.fetch_one, time.perf_counter
    times_s = []
    for n in range(-(sizes.latency_calls // 10), sizes.latency_calls):
        started = clock()
        value = fetch_one(actor.inc.remote(n))
        if n >= 0:
            times_s.append(clock() - started)
        verify("inc", value, n + 1)
    return {"p50": percentile(times_s, 50) * 1e6, "p99": percentile(times_s, 99) * 1e6}


def one_to_one(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """Many calls at a time to one actor."""
    return _rate_of(contender, sizes, [contender.actor_class(programs.Echo).remote()])


def one_to_one_async(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """Many calls at a time to one actor whose method is a coroutine."""
    return _rate_of(contender, sizes, [contender.actor_class(programs.AsyncEcho).remote()])


def one_to_many(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """Many calls at a time, to as many actors as there are workers."""
    kind = contender.actor_class(programs.Echo)
    return _rate_of(contender, sizes, [kind.remote() for _ in range(sizes.workers)])


def _rate_of(contender: Contender, sizes: Sizes, actors: list[Any]) -> Answer:
    wanted = list(range(1, sizes.tasks + 1))

    def run() -> None:
        refs = [actors[n % len(actors)].inc.remote(n) for n in range(sizes.tasks)]
        verify("inc", contender.fetch(refs), wanted)

    seconds, cpu_s = _median_s(run)
    return {"rate": sizes.tasks / seconds, "cpu_us": cpu_s / sizes.tasks * 1e6}


def many_to_many(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """As many callers as workers, themselves actors, each call all of as many actors."""
    kind = contender.actor_class(programs.Echo)
    actors = [kind.remote() for _ in range(sizes.workers)]
    caller = contender.caller_class()
    callers = [caller.remote(actors) for _ in range(sizes.workers)]
    calls = sizes.tasks // sizes.workers

    def run() -> None:
        totals = contender.fetch([one.call.remote(calls) for one in callers])
        verify("sums", totals, [sum(range(1, calls + 1))] * sizes.workers)

    seconds, cpu_s = _median_s(run)
    calls *= sizes.workers
    return {"rate": calls / seconds, "cpu_us": cpu_s / calls * 1e6}


def creation(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """Many actors are made, and all are alive at once."""
    kind = contender.actor_class(programs.Echo)
    before = children_pss_bytes(os.getpid())
    started = time.perf_counter()
    actors = [kind.remote() for _ in range(sizes.actors)]
    verify("inc", contender.fetch([actor.inc.remote(1) for actor in actors]), [2] * sizes.actors)
    seconds = time.perf_counter() - started
    grown = children_pss_bytes(os.getpid()) - before
    return {"rate": sizes.actors / seconds, "each": grown / sizes.actors / 1e6}


def _median_s(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and seconds of processor time."""
    run()  # everybody is there, and known
    times_s, cpu_s = [], []
    for _ in rounds(most=5, budget_s=2.0):
        with CpuMeter() as cpu:
            started = time.perf_counter()
            run()
            times_s.append(time.perf_counter() - started)
        cpu_s.append(cpu.seconds)
    return median(times_s), median(cpu_s)
