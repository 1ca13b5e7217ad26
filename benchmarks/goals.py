"""What taskloom wants to reach, judged with the medians of one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.summary import Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound for one of taskloom's numbers, alone or as a multiple of another number of the run.

    The other number is the rival's, or taskloom's own if only ``of`` is given; it answers the
    same question unless ``of`` names another one.
    """

    title: str
    question: str
    metric: str
    bound: float
    sense: Literal["at least", "at most"]
    rival: str | None = None  # None, and no other question either: the bound is absolute
    of: str | None = None
    unit: str = "x"

    @property
    def is_ratio(self) -> bool:
        return self.rival is not None or self.of is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a goal stands in one run; ``value`` is None when it was not measured."""

    goal: Goal
    value: float | None

    @property
    def word(self) -> str:
        if self.value is None:
            return "not measured"
        if self.goal.sense == "at least":
            is_met = self.value >= self.goal.bound
        else:
            is_met = self.value <= self.goal.bound
        return "met" if is_met else "missed"


GOALS = (
    Goal(
        title="no-op throughput / bare floor",
        question="noop",
        metric="rate",
        rival="floor",
        sense="at least",
        bound=0.4,
    ),
    Goal(
        title="no-op throughput / ProcessPoolExecutor",
        question="noop",
        metric="rate",
        rival="ppe",
        sense="at least",
        bound=6,
    ),
    Goal(
        title="no-op throughput / Ray",
        question="noop",
        metric="rate",
        rival="ray",
        sense="at least",
        bound=30,
    ),
    Goal(
        title="inc throughput / ProcessPoolExecutor",
        question="inc",
        metric="rate",
        rival="ppe",
        sense="at least",
        bound=3,
    ),
    Goal(
        title="get latency p50 / bare ping-pong",
        question="get_latency",
        metric="p50",
        rival="floor",
        of="ping_pong",
        sense="at most",
        bound=2,
    ),
    Goal(
        title="get latency p50 / ProcessPoolExecutor",
        question="get_latency",
        metric="p50",
        rival="ppe",
        sense="at most",
        bound=0.45,
    ),
    Goal(
        title="await latency p50 / get latency p50",
        question="await_latency",
        metric="p50",
        of="get_latency",
        sense="at most",
        bound=1,
    ),
    Goal(
        title="chain throughput / Ray",
        question="chain",
        metric="rate",
        rival="ray",
        sense="at least",
        bound=30,
    ),
    Goal(
        title="chain throughput / ProcessPoolExecutor",
        question="chain",
        metric="rate",
        rival="ppe",
        sense="at least",
        bound=6,
    ),
    Goal(
        title="tree throughput / Ray",
        question="tree",
        metric="rate",
        rival="ray",
        sense="at least",
        bound=40,
    ),
    Goal(
        title="nested throughput / Ray",
        question="nested",
        metric="rate",
        rival="ray",
        sense="at least",
        bound=60,
    ),
    Goal(
        title="time of mixed tasks / ideal schedule",
        question="mixed",
        metric="of_ideal",
        sense="at most",
        bound=1.1,
    ),
    Goal(
        title="the same, one function for all lengths",
        question="mixed",
        metric="of_ideal_one",
        sense="at most",
        bound=1.1,
    ),
    Goal(
        title="a worker idle while tasks wait",
        question="mixed",
        metric="idle",
        sense="at most",
        bound=5,
        unit="ms",
    ),
    Goal(
        title="the same, one function for all lengths",
        question="mixed",
        metric="idle_one",
        sense="at most",
        bound=5,
        unit="ms",
    ),
    Goal(
        title="results of mixed tasks, late at p99",
        question="mixed",
        metric="late_p99",
        sense="at most",
        bound=5,
        unit="ms",
    ),
    Goal(
        title="cold start / ProcessPoolExecutor",
        question="cold_start",
        metric="to_result",
        rival="ppe",
        sense="at most",
        bound=1.8,
    ),
    Goal(
        title="memory of all processes",
        question="memory",
        metric="pss",
        sense="at most",
        bound=60,
        unit="MB",
    ),
    Goal(
        title="wake-ups of an idle engine",
        question="idle",
        metric="rate",
        sense="at most",
        bound=0,
        unit="1/s",
    ),
    Goal(
        title="memory of a live small ref",
        question="live_refs",
        metric="bytes",
        sense="at most",
        bound=400,
        unit="B",
    ),
    Goal(
        title="1,000,000 tasks behind held workers, then run",
        question="backlog",
        metric="seconds",
        sense="at most",
        bound=40,
        unit="s",
    ),
    Goal(
        title="memory of a pending task",
        question="backlog",
        metric="bytes",
        sense="at most",
        bound=1000,
        unit="B",
    ),
    Goal(
        title="chain of 100,000",
        question="big_chain",
        metric="seconds",
        sense="at most",
        bound=10,
        unit="s",
    ),
    Goal(
        title="fan-out and fan-in of 100,000",
        question="big_fan",
        metric="seconds",
        sense="at most",
        bound=6,
        unit="s",
    ),
    Goal(
        title="1,000,000 edges",
        question="big_bipartite",
        metric="seconds",
        sense="at most",
        bound=20,
        unit="s",
    ),
    Goal(
        title="soak: memory, last / first million",
        question="soak",
        metric="growth",
        sense="at most",
        bound=1.02,
    ),
    Goal(
        title="soak: rate, last / second million",
        question="soak",
        metric="pace",
        sense="at least",
        bound=0.95,
    ),
    Goal(
        title="lag of the user's loop, p99",
        question="loop_lag",
        metric="p99",
        sense="at most",
        bound=10,
        unit="ms",
    ),
    Goal(
        title="actor calls, one at a time: latency p50 / Ray",
        question="actor_latency",
        metric="p50",
        rival="ray",
        sense="at most",
        bound=0.125,
    ),
    Goal(
        title="actor calls, many at a time / Ray",
        question="actor_calls",
        metric="rate",
        rival="ray",
        sense="at least",
        bound=12,
    ),
    Goal(
        title="latency of an actor's call, p50 / of a task's get",
        question="actor_latency",
        metric="p50",
        of="get_latency",
        sense="at most",
        bound=1.3,
    ),
    Goal(
        title="calls of one actor / tasks",
        question="actor_calls",
        metric="rate",
        of="inc",
        sense="at least",
        bound=0.8,
    ),
    Goal(
        title="calls of one async actor / tasks",
        question="actor_async_calls",
        metric="rate",
        of="inc",
        sense="at least",
        bound=0.6,
    ),
    Goal(
        title="200 actors made",
        question="actor_creation",
        metric="rate",
        sense="at least",
        bound=60,
        unit="actors/s",
    ),
    Goal(
        title="200 actors, each",
        question="actor_creation",
        metric="each",
        sense="at most",
        bound=12,
        unit="MB",
    ),
    Goal(
        title="stream of 100,000 small items",
        question="stream_items",
        metric="rate",
        sense="at least",
        bound=30_000,
        unit="items/s",
    ),
    Goal(
        title="first item of a stream, p50 / of a task's get",
        question="stream_first_item",
        metric="p50",
        of="get_latency",
        sense="at most",
        bound=2,
    ),
    Goal(
        title="put+get of an array / memcpy",
        question="put_get",
        metric="of_memcpy",
        sense="at least",
        bound=0.85,
    ),
    Goal(
        title="one array to 20 tasks",
        question="broadcast",
        metric="rate",
        sense="at least",
        bound=1000,
        unit="tasks/s",
    ),
    Goal(
        title="get of a mapped array",
        question="get_mapped",
        metric="p50_large",
        sense="at most",
        bound=50,
        unit="us",
    ),
    Goal(
        title="10,000 refs as arguments of one task",
        question="many_arguments",
        metric="seconds",
        sense="at most",
        bound=3,
        unit="s",
    ),
    Goal(
        title="3,000 results of one task",
        question="many_returns",
        metric="seconds",
        sense="at most",
        bound=2,
        unit="s",
    ),
    Goal(
        title="get of 10,000 refs",
        question="many_gets",
        metric="seconds",
        sense="at most",
        bound=1,
        unit="s",
    ),
    Goal(
        title="8 GiB put and got",
        question="huge",
        metric="seconds",
        sense="at most",
        bound=6,
        unit="s",
    ),
    Goal(
        title="8 GiB put and got: peak / value",
        question="huge",
        metric="peak_of_value",
        sense="at most",
        bound=1.2,
    ),
)


def judge(summary: Summary) -> list[Verdict]:
    """Every goal, with taskloom's number in this run."""
    return [Verdict(goal=goal, value=_value(goal, summary)) for goal in GOALS]


def _value(goal: Goal, summary: Summary) -> float | None:
    value = summary.median(goal.question, "taskloom", goal.metric)
    if value is None or not goal.is_ratio:
        return value
    other = summary.median(goal.of or goal.question, goal.rival or "taskloom", goal.metric)
    return value / other if other else None
