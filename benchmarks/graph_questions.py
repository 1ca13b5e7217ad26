"""Questions about tasks that depend on one another.

Who keeps a graph himself is given the graph; the others go back to the program for every level,
which is what their users have to do.
"""

from __future__ import annotations

import time
from statistics import median

from benchmarks import programs
from benchmarks.contenders import Entry
from benchmarks.contenders.base import Contender
from benchmarks.processes import CpuMeter
from benchmarks.sizes import Sizes
from benchmarks.timing import rounds, verify

Answer = dict[str, float]


def chain(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    submit, fetch_one = contender.submitter(programs.inc), contender.fetch_one
    times_s, cpu_s = [], []
    for _ in rounds(most=5, budget_s=2.0):
        with CpuMeter() as cpu:
            started = time.perf_counter()
            link = submit(0)
            for _ in range(sizes.chain - 1):
                link = submit(link if entry.takes_refs else fetch_one(link))
            value = fetch_one(link)
            times_s.append(time.perf_counter() - started)
        verify("end of the chain", value, sizes.chain)
        cpu_s.append(cpu.seconds)
    return _rates(sizes.chain, times_s, cpu_s)


def tree(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    leaf, add = contender.submitter(programs.inc), contender.submitter(programs.add)
    wanted = sum(range(1, sizes.leaves + 1))
    times_s, cpu_s = [], []
    for _ in rounds(most=5, budget_s=2.0):
        with CpuMeter() as cpu:
            started = time.perf_counter()
            level = [leaf(n) for n in range(sizes.leaves)]
            while len(level) > 1:
                if not entry.takes_refs:
                    level = contender.fetch(level)
                level = [add(*pair) for pair in zip(level[::2], level[1::2], strict=True)]
            value = contender.fetch_one(level[0])
            times_s.append(time.perf_counter() - started)
        verify("root of the tree", value, wanted)
        cpu_s.append(cpu.seconds)
    return _rates(2 * sizes.leaves - 1, times_s, cpu_s)


def _rates(tasks: int, times_s: list[float], cpu_s: list[float]) -> Answer:
    seconds = median(times_s)
    return {"rate": tasks / seconds, "seconds": seconds, "cpu_us": median(cpu_s) / tasks * 1e6}


# -- graphs that only a real graph engine should be asked for --------------------------------------


def big_chain(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    submit = contender.submitter(programs.inc)
    started = time.perf_counter()
    link = submit(0)
    for _ in range(sizes.big_chain - 1):
        link = submit(link)
    value = contender.fetch_one(link)
    elapsed_s = time.perf_counter() - started
    verify("end of the chain", value, sizes.big_chain)
    return {"rate": sizes.big_chain / elapsed_s, "seconds": elapsed_s}


def big_fan(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    add, total = contender.submitter(programs.add), contender.submitter(programs.total)
    started = time.perf_counter()
    source = add(1, 1)
    value = contender.fetch_one(total(*[add(source, n) for n in range(sizes.big_fan)]))
    elapsed_s = time.perf_counter() - started
    verify("sum of the fan", value, sum(range(2, sizes.big_fan + 2)))
    return {"rate": sizes.big_fan / elapsed_s, "seconds": elapsed_s}


def big_bipartite(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    inc, total = contender.submitter(programs.inc), contender.submitter(programs.total)
    side = sizes.big_side
    started = time.perf_counter()
    sources = [inc(n) for n in range(side)]
    values = contender.fetch([total(*sources) for _ in range(side)])
    elapsed_s = time.perf_counter() - started
    verify("sums of the sinks", values, [sum(range(1, side + 1))] * side)
    return {"rate": side * side / elapsed_s, "seconds": elapsed_s}
