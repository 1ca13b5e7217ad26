"""What taskloom wants to reach, judged with the medians of one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.summary import Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound for one of taskloom's numbers, alone or as a multiple of a rival's."""

    title: str
    question: str
    metric: str
    bound: float
    sense: Literal["at least", "at most"]
    rival: str | None = None  # None: the bound is absolute, in the metric's own unit
    unit: str = "x"


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
        title="no-op throughput / ProcessPoolExecutor",
        question="noop",
        metric="rate",
        rival="ppe",
        sense="at least",
        bound=3,
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
        title="get latency p50 / ProcessPoolExecutor",
        question="get_latency",
        metric="p50",
        rival="ppe",
        sense="at most",
        bound=0.6,
    ),
    Goal(
        title="chain throughput / ProcessPoolExecutor",
        question="chain",
        metric="rate",
        rival="ppe",
        sense="at least",
        bound=3,
    ),
    Goal(
        title="cold start / ProcessPoolExecutor",
        question="cold_start",
        metric="to_result",
        rival="ppe",
        sense="at most",
        bound=2.5,
    ),
    Goal(
        title="memory of all processes",
        question="memory",
        metric="pss",
        sense="at most",
        bound=80,
        unit="MB",
    ),
    Goal(
        title="lag of the user's loop, p99",
        question="loop_lag",
        metric="p99",
        sense="at most",
        bound=10,
        unit="ms",
    ),
)


def judge(summary: Summary) -> list[Verdict]:
    """Every goal, with taskloom's number in this run."""
    verdicts = []
    for goal in GOALS:
        value = summary.median(goal.question, "taskloom", goal.metric)
        if goal.rival is not None and value is not None:
            rival = summary.median(goal.question, goal.rival, goal.metric)
            value = value / rival if rival else None
        verdicts.append(Verdict(goal=goal, value=value))
    return verdicts
