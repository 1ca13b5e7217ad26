"""The questions: what is asked of every contender, and how the answer is measured.

A question is a function that is called in a process of its own with a contender that has been
started and warmed up.  It verifies what the contender computes and returns numbers by the names
of its metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

from benchmarks import asyncio_questions, graph_questions, outside, programs
from benchmarks.contenders import Entry
from benchmarks.contenders.base import Contender
from benchmarks.sizes import Sizes
from benchmarks.timing import percentile, rounds, verify

Answer = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of an answer."""

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"] = "lower"
    is_main: bool = True  # compared with the others; else shown only


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, of whom, and who measures it."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    inside: Callable[[Contender, Entry, Sizes], Answer] | None = None
    outside: Callable[[str], Answer] | None = None
    only: tuple[str, ...] | None = None  # names of contenders; None: everybody
    needs_nesting: bool = False
    needs_warm_cache: bool = False  # measures imports: byte code must be cached before
    is_big: bool = False

    def suits(self, entry: Entry) -> bool:
        """True when ``entry`` can answer it."""
        if self.only is not None and entry.name not in self.only:
            return False
        return entry.nests or not self.needs_nesting


# -- submit, fetch ---------------------------------------------------------------------------------


def get_latency(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    submit, fetch_one = contender.submitter(programs.inc), contender.fetch_one
    clock = time.perf_counter
    for n in range(sizes.latency_calls // 10):
        verify("inc", fetch_one(submit(n)), n + 1)
    values, latencies_s = [], []
    for n in range(sizes.latency_calls):
        started = clock()
        value = fetch_one(submit(n))
        latencies_s.append(clock() - started)
        values.append(value)
    verify("inc", values, list(range(1, sizes.latency_calls + 1)))
    return _latency(latencies_s)


def await_latency(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    return _latency(asyncio_questions.await_latencies_s(contender, sizes))


def _latency(latencies_s: list[float]) -> Answer:
    return {
        "p50": percentile(latencies_s, 50) * 1e6,
        "p99": percentile(latencies_s, 99) * 1e6,
    }


def noop_throughput(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    submit = contender.submitter(programs.noop)
    submit_s, all_s = [], []
    for _ in rounds(most=5, budget_s=2.0):
        started = time.perf_counter()
        handles = [submit() for _ in range(sizes.tasks)]
        submitted = time.perf_counter()
        values = contender.fetch(handles)
        ended = time.perf_counter()
        verify("no-ops", values, [None] * sizes.tasks)
        submit_s.append(submitted - started)
        all_s.append(ended - started)
    return {"rate": sizes.tasks / median(all_s), "submit_us": median(submit_s) / sizes.tasks * 1e6}


def inc_throughput(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    submit = contender.submitter(programs.inc)
    times_s = []
    for _ in rounds(most=5, budget_s=2.0):
        started = time.perf_counter()
        values = contender.fetch([submit(n) for n in range(sizes.tasks)])
        times_s.append(time.perf_counter() - started)
        verify("inc", values, list(range(1, sizes.tasks + 1)))
    return {"rate": sizes.tasks / median(times_s)}


def nested(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    tasks, calls = sizes.outer_tasks, sizes.inner_calls
    wanted = [sum(range(n * calls + 1, (n + 1) * calls + 1)) for n in range(tasks)]
    times_s = []
    for _ in rounds(most=5, budget_s=2.0):
        started = time.perf_counter()
        values = contender.nested(tasks, calls)
        times_s.append(time.perf_counter() - started)
        verify("nested sums", values, wanted)
    return {"rate": tasks * (calls + 1) / median(times_s), "seconds": median(times_s)}


# -- the matrix program ----------------------------------------------------------------------------


def matrices(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    submit = contender.submitter(programs.expensive_computation)

    def run() -> list[int]:
        values = contender.fetch([submit(sizes.matrix_size) for _ in range(sizes.matrix_runs)])
        return list(values)

    return _against_sequential(run, sizes)


def nested_matrices(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    return _against_sequential(
        lambda: contender.nested_matrices(sizes.matrix_runs, sizes.matrix_size), sizes
    )


def _against_sequential(run: Callable[[], list[int]], sizes: Sizes) -> Answer:
    wanted = [sizes.matrix_size**3] * sizes.matrix_runs
    started = time.perf_counter()
    values = [programs.expensive_computation(sizes.matrix_size) for _ in range(sizes.matrix_runs)]
    sequential_s = time.perf_counter() - started
    verify("matrix sums, sequential", values, wanted)
    started = time.perf_counter()
    values = run()
    parallel_s = time.perf_counter() - started
    verify("matrix sums", values, wanted)
    return {
        "speed_up": sequential_s / parallel_s,
        "seconds": parallel_s,
        "sequential": sequential_s,
    }


# -- the list --------------------------------------------------------------------------------------

_RATE = Metric(name="rate", title="tasks/s", unit="1/s", better="higher")
_P50 = Metric(name="p50", title="p50", unit="us")
_P99 = Metric(name="p99", title="p99", unit="us")
_MATRIX = (
    Metric(name="speed_up", title="speed-up", unit="x", better="higher"),
    Metric(name="seconds", title="parallel", unit="s", is_main=False),
    Metric(name="sequential", title="sequential", unit="s", is_main=False),
)
_GRAPH = (
    _RATE,
    Metric(name="seconds", title="seconds", unit="s", is_main=False),
)

_QUESTIONS = (
    Question(
        name="cold_start",
        title="cold start: from `python program.py` to its first result, 2 workers",
        metrics=(
            Metric(name="to_result", title="to result", unit="ms"),
            Metric(name="to_end", title="to end", unit="ms", is_main=False),
        ),
        outside=outside.first_result,
        needs_warm_cache=True,
    ),
    Question(
        name="memory",
        title="memory of all processes, 2 workers used and idle (PSS)",
        metrics=(
            Metric(name="pss", title="PSS", unit="MB"),
            Metric(name="processes", title="processes", unit="", is_main=False),
        ),
        outside=outside.memory,
        needs_warm_cache=True,
    ),
    Question(
        name="get_latency",
        title="latency of one task at a time: submit, get",
        metrics=(_P50, _P99),
        inside=get_latency,
    ),
    Question(
        name="await_latency",
        title="latency of one task at a time: submit, await on a uvloop loop",
        metrics=(_P50, _P99),
        inside=await_latency,
    ),
    Question(
        name="noop",
        title="no-op tasks, submit to results",
        metrics=(
            _RATE,
            Metric(name="submit_us", title="submit one", unit="us", is_main=False),
        ),
        inside=noop_throughput,
    ),
    Question(
        name="inc",
        title="inc(i), submit to results",
        metrics=(_RATE,),
        inside=inc_throughput,
    ),
    Question(
        name="chain",
        title="chain of dependent tasks",
        metrics=_GRAPH,
        inside=graph_questions.chain,
    ),
    Question(
        name="tree",
        title="binary tree reduction, leaves included",
        metrics=_GRAPH,
        inside=graph_questions.tree,
    ),
    Question(
        name="nested",
        title="tasks that submit and get tasks",
        metrics=_GRAPH,
        inside=nested,
        needs_nesting=True,
    ),
    Question(
        name="matrix",
        title="matrix program, one task a run, against sequential",
        metrics=_MATRIX,
        inside=matrices,
    ),
    Question(
        name="matrix_nested",
        title="matrix program, tasks in tasks, multiplication asks for 2 CPUs",
        metrics=_MATRIX,
        inside=nested_matrices,
        needs_nesting=True,
    ),
    Question(
        name="loop_lag",
        title="lag of the user's uvloop loop while tasks are in flight",
        metrics=(
            Metric(name="p99", title="p99", unit="ms"),
            Metric(name="max", title="max", unit="ms", is_main=False),
            Metric(name="gc_max", title="longest gc", unit="ms", is_main=False),
            Metric(name="alone_p99", title="p99 without engine", unit="ms", is_main=False),
            Metric(name="queue_seconds", title="to queue", unit="s", is_main=False),
            Metric(name="drain_seconds", title="to drain", unit="s", is_main=False),
        ),
        inside=asyncio_questions.loop_lag,
        only=("taskloom",),
    ),
    Question(
        name="big_chain",
        title="big: chain",
        metrics=_GRAPH,
        inside=graph_questions.big_chain,
        only=("taskloom",),
        is_big=True,
    ),
    Question(
        name="big_fan",
        title="big: fan-out and fan-in",
        metrics=_GRAPH,
        inside=graph_questions.big_fan,
        only=("taskloom",),
        is_big=True,
    ),
    Question(
        name="big_bipartite",
        title="big: every sink depends on every source",
        metrics=(
            Metric(name="rate", title="edges/s", unit="1/s", better="higher"),
            Metric(name="seconds", title="seconds", unit="s", is_main=False),
        ),
        inside=graph_questions.big_bipartite,
        only=("taskloom",),
        is_big=True,
    ),
)

QUESTIONS = {question.name: question for question in _QUESTIONS}
