"""Medians, spreads and ratios of a run: what the reports print and the goals are judged by."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from benchmarks.question import Metric
from benchmarks.runner import Run


@dataclass(frozen=True, slots=True)
class Spread:
    """One number over the repeats of a run."""

    median: float
    low: float
    high: float
    repeats: int


class Summary:
    """Reads a run."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def spread(self, question: str, contender: str, metric: str) -> Spread | None:
        """The numbers of one contender; None when there is no complete answer."""
        cell = self.run.cells.get(question, {}).get(contender)
        if cell is None or cell.failure is not None or not cell.answers:
            return None
        values = [answer[metric] for answer in cell.answers if metric in answer]
        if not values:
            return None  # the results are older than this metric
        return Spread(median(values), min(values), max(values), len(values))

    def median(self, question: str, contender: str, metric: str) -> float | None:
        spread = self.spread(question, contender, metric)
        return None if spread is None else spread.median

    def advantage(self, question: str, contender: str, metric: Metric) -> float | None:
        """How many times better taskloom is than ``contender``; below 1 it is worse."""
        ours = self.median(question, "taskloom", metric.name)
        theirs = self.median(question, contender, metric.name)
        if not ours or not theirs:
            return None
        return ours / theirs if metric.better == "higher" else theirs / ours
