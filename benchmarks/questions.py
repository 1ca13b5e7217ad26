"""The questions: what is asked of every contender, and how the answer is measured.

A question is a function that is called in a process of its own with a contender that has been
started and warmed up.  It verifies what the contender computes and returns numbers by the names
of its metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from benchmarks import (
    actor_questions,
    asyncio_questions,
    endurance_questions,
    fairness,
    graph_questions,
    outside,
    ping_pong,
    programs,
    store_questions,
    stream_questions,
)
from benchmarks.contenders import Entry
from benchmarks.contenders.base import Contender
from benchmarks.processes import CpuMeter
from benchmarks.question import Answer, Metric, Question
from benchmarks.sizes import Sizes
from benchmarks.timing import percentile, rounds, verify

# -- submit, fetch ---------------------------------------------------------------------------------


def get_latency(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    submit, fetch_one = contender.submitter(programs.inc), contender.fetch_one
    clock = time.perf_counter
    for n in range(sizes.latency_calls // 10):
        verify("inc", fetch_one(submit(n)), n + 1)
    values, latencies_s = [], []
    with CpuMeter() as cpu:
        for n in range(sizes.latency_calls):
            started = clock()
            value = fetch_one(submit(n))
            latencies_s.append(clock() - started)
            values.append(value)
    verify("inc", values, list(range(1, sizes.latency_calls + 1)))
    return {**_latency(latencies_s), "cpu_us": cpu.seconds / sizes.latency_calls * 1e6}


def await_latency(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    return _latency(asyncio_questions.await_latencies_s(contender, sizes))


def _latency(latencies_s: list[float]) -> Answer:
    return {
        "p50": percentile(latencies_s, 50) * 1e6,
        "p99": percentile(latencies_s, 99) * 1e6,
    }


def noop_throughput(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    submit = contender.submitter(programs.noop)
    submit_s, all_s, cpu_s = [], [], []
    for _ in rounds(most=5, budget_s=2.0):
        with CpuMeter() as cpu:
            started = time.perf_counter()
            handles = [submit() for _ in range(sizes.tasks)]
            submitted = time.perf_counter()
            values = contender.fetch(handles)
            ended = time.perf_counter()
        verify("no-ops", values, [None] * sizes.tasks)
        submit_s.append(submitted - started)
        all_s.append(ended - started)
        cpu_s.append(cpu.seconds)
    return {
        "rate": sizes.tasks / median(all_s),
        "submit_us": median(submit_s) / sizes.tasks * 1e6,
        "cpu_us": median(cpu_s) / sizes.tasks * 1e6,
    }


def inc_throughput(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    submit = contender.submitter(programs.inc)
    times_s, cpu_s = [], []
    for _ in rounds(most=5, budget_s=2.0):
        with CpuMeter() as cpu:
            started = time.perf_counter()
            values = contender.fetch([submit(n) for n in range(sizes.tasks)])
            times_s.append(time.perf_counter() - started)
        verify("inc", values, list(range(1, sizes.tasks + 1)))
        cpu_s.append(cpu.seconds)
    return {"rate": sizes.tasks / median(times_s), "cpu_us": median(cpu_s) / sizes.tasks * 1e6}


def nested(contender: Contender, entry: Entry, sizes: Sizes) -> Answer:
    tasks, calls = sizes.outer_tasks, sizes.inner_calls
    wanted = [sum(range(n * calls + 1, (n + 1) * calls + 1)) for n in range(tasks)]
    times_s, cpu_s = [], []
    for _ in rounds(most=5, budget_s=2.0):
        with CpuMeter() as cpu:
            started = time.perf_counter()
            values = contender.nested(tasks, calls)
            times_s.append(time.perf_counter() - started)
        verify("nested sums", values, wanted)
        cpu_s.append(cpu.seconds)
    return {
        "rate": tasks * (calls + 1) / median(times_s),
        "seconds": median(times_s),
        "cpu_us": median(cpu_s) / (tasks * (calls + 1)) * 1e6,
    }


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
_CPU = Metric(name="cpu_us", title="CPU a task", unit="us", is_main=False)
_MATRIX = (
    Metric(name="speed_up", title="speed-up", unit="x", better="higher"),
    Metric(name="seconds", title="parallel", unit="s", is_main=False),
    Metric(name="sequential", title="sequential", unit="s", is_main=False),
)
_GRAPH = (
    _RATE,
    Metric(name="seconds", title="seconds", unit="s", is_main=False),
)
_GRAPH_CPU = (*_GRAPH, _CPU)

_SECONDS = (Metric(name="seconds", title="seconds", unit="s"),)
_WITH_PUT = ("taskloom", "ray")

_STORE_QUESTIONS = (
    Question(
        name="put_get",
        title="put and get an array, against numpy's copy of it",
        metrics=(
            Metric(name="of_memcpy", title="of memcpy", unit="x", better="higher"),
            Metric(name="put_get", title="put+get", unit="GB/s", better="higher", is_main=False),
            Metric(name="memcpy", title="memcpy", unit="GB/s", better="higher", is_main=False),
        ),
        inside=store_questions.put_get,
        only=_WITH_PUT,
    ),
    Question(
        name="get_mapped",
        title="get an array that is there",
        metrics=(
            Metric(name="p50_large", title="p50, large", unit="us"),
            Metric(name="p50_1_mib", title="p50, 1 MiB", unit="us", is_main=False),
        ),
        inside=store_questions.get_mapped,
        only=_WITH_PUT,
    ),
    Question(
        name="broadcast",
        title="one array to many tasks",
        metrics=(_RATE,),
        inside=store_questions.broadcast,
        only=_WITH_PUT,
    ),
    Question(
        name="many_arguments",
        title="one task with many refs as arguments",
        metrics=_SECONDS,
        inside=store_questions.many_arguments,
        only=_WITH_PUT,
    ),
    Question(
        name="many_returns",
        title="one task with many results",
        metrics=_SECONDS,
        inside=store_questions.many_returns,
        only=_WITH_PUT,
    ),
    Question(
        name="many_gets",
        title="get of many refs",
        metrics=_SECONDS,
        inside=store_questions.many_gets,
        only=_WITH_PUT,
    ),
    Question(
        name="huge",
        title="big: put and get one value of gigabytes",
        metrics=(
            *_SECONDS,
            Metric(name="of_bare", title="/ writing a file", unit="x", is_main=False),
            Metric(name="peak_of_value", title="peak / value", unit="x", is_main=False),
        ),
        inside=store_questions.huge,
        only=("taskloom",),
        is_big=True,
        init=lambda sizes: {"object_store_memory": 5 * sizes.huge_mib * 2**18},
    ),
    Question(
        name="spill",
        title="big: four times the store in, and out again",
        metrics=(
            *_SECONDS,
            Metric(name="in", title="in", unit="s", is_main=False),
            Metric(name="out", title="out", unit="s", is_main=False),
        ),
        inside=store_questions.spill,
        only=_WITH_PUT,
        is_big=True,
        init=lambda sizes: {"object_store_memory": sizes.store_mib * 2**20},
    ),
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
        metrics=(_P50, _P99, _CPU),
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
            _CPU,
        ),
        inside=noop_throughput,
    ),
    Question(
        name="inc",
        title="inc(i), submit to results",
        metrics=(_RATE, _CPU),
        inside=inc_throughput,
    ),
    Question(
        name="chain",
        title="chain of dependent tasks",
        metrics=_GRAPH_CPU,
        inside=graph_questions.chain,
    ),
    Question(
        name="tree",
        title="binary tree reduction, leaves included",
        metrics=_GRAPH_CPU,
        inside=graph_questions.tree,
    ),
    Question(
        name="nested",
        title="tasks that submit and get tasks",
        metrics=_GRAPH_CPU,
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

_WITH_ACTORS = ("taskloom", "ray")
_CALLS = (
    Metric(name="rate", title="calls/s", unit="1/s", better="higher"),
    Metric(name="cpu_us", title="CPU a call", unit="us", is_main=False),
)
_ACTOR_QUESTIONS = (
    Question(
        name="actor_latency",
        title="latency of one call of an actor at a time: call, get",
        metrics=(_P50, _P99),
        inside=actor_questions.latency,
        only=_WITH_ACTORS,
    ),
    Question(
        name="actor_calls",
        title="calls of one actor, submit to results",
        metrics=_CALLS,
        inside=actor_questions.one_to_one,
        only=_WITH_ACTORS,
    ),
    Question(
        name="actor_async_calls",
        title="calls of one async actor, submit to results",
        metrics=_CALLS,
        inside=actor_questions.one_to_one_async,
        only=_WITH_ACTORS,
    ),
    Question(
        name="actor_fan",
        title="calls of as many actors as workers, submit to results",
        metrics=_CALLS,
        inside=actor_questions.one_to_many,
        only=_WITH_ACTORS,
    ),
    Question(
        name="actor_mesh",
        title="actors that call actors, as many of each as workers",
        metrics=_CALLS,
        inside=actor_questions.many_to_many,
        only=_WITH_ACTORS,
    ),
    Question(
        name="actor_creation",
        title="many actors made, all alive at once",
        metrics=(
            Metric(name="rate", title="actors/s", unit="1/s", better="higher"),
            Metric(name="each", title="PSS of each", unit="MB"),
        ),
        inside=actor_questions.creation,
        only=_WITH_ACTORS,
    ),
    Question(
        name="stream_items",
        title="small items of one generator, each fetched as it comes",
        metrics=(Metric(name="rate", title="items/s", unit="1/s", better="higher"),),
        inside=stream_questions.items,
        only=_WITH_ACTORS,
    ),
    Question(
        name="stream_first_item",
        title="from the call of a generator to the value of its first item",
        metrics=(_P50, _P99),
        inside=stream_questions.first_item,
        only=_WITH_ACTORS,
    ),
)

_ELSEWHERE = (*ping_pong.QUESTIONS, *fairness.QUESTIONS, *endurance_questions.QUESTIONS)

QUESTIONS = {
    question.name: question
    for question in (*_QUESTIONS, *_ELSEWHERE, *_ACTOR_QUESTIONS, *_STORE_QUESTIONS)
}
