"""Questions about streams, asked of those that have Ray's API."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from benchmarks import programs
from benchmarks.contenders import Entry
from benchmarks.contenders.base import Contender
from benchmarks.sizes import Sizes
from benchmarks.timing import percentile, rounds, verify

Answer = dict[str, float]


def items(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """Many small items of one generator, each fetched as it comes."""
    submit: Any = contender.submitter(programs.count_up)
    fetch_one = contender.fetch_one

    def run() -> None:
        total = 0
        for ref in submit(sizes.items):
            total += fetch_one(ref)
        verify("sum", total, sum(range(sizes.items)))

    run()  # everybody is there, and known
    times_s = []
    for _ in rounds(most=5, budget_s=2.0):
        started = time.perf_counter()
        run()
        times_s.append(time.perf_counter() - started)
    return {"rate": sizes.items / median(times_s)}


def first_item(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    """From the call of a generator to the value of its first item."""
    submit: Any = contender.submitter(programs.count_up)
    fetch_one, clock = contender.fetch_one, time.perf_counter
    times_s = []
    for n in range(-(sizes.latency_calls // 10), sizes.latency_calls):
        started = clock()
        generator = submit(1)
        value = fetch_one(next(generator))
        if n >= 0:
            times_s.append(clock() - started)
        verify("items", [value, *map(fetch_one, generator)], [0])
    return {"p50": percentile(times_s, 50) * 1e6, "p99": percentile(times_s, 99) * 1e6}
