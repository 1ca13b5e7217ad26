"""How much work a worker gets at once: about two milliseconds, judged by what was measured.

A task whose run time is unknown or long travels alone, so that it never stands behind another
one while some worker is idle.  Short ones travel in batches, so that the trip costs little.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from taskloom._core.node import Node, WorkerRecord
from taskloom._spec import FunctionKey

BUDGET_S: Final = 0.002_5
"""Work to have in flight for one worker.

So much that tasks of a millisecond come two at a time: with 1 ms each cost a round trip, and tasks
of 0, 1 and 50 ms took 1.12 to 1.15 of the ideal schedule, where it was 1.08 to 1.10 with this (and
1.07 since short ones are counted as the work that they are).  And half of the 5 ms that a task may
wait behind another one.
"""
OVERHEAD_S: Final = 0.000_002
"""What a task costs a worker besides what it measures (1.5 to 3 us)."""
MAX_BATCH: Final = 256
"""Half as many cost the engine a tenth more a task, twice as many gave nothing (measured)."""
LOOP_CAPACITY: Final = 1000
"""Coroutines that one LOOP worker runs at once (as an async actor of Ray)."""
_WEIGHT: Final = 0.2
_ROUNDING: Final = 1e-6
_LEAST: Final = 1 / MAX_BATCH
_KNOWN_FUNCTIONS: Final = 10_000


class RunTimes:
    """The run time of each function: a mean that follows rises at once and falls slowly."""

    def __init__(self) -> None:
        self._mean_s: dict[FunctionKey, float] = {}
        self._shares: dict[FunctionKey, float] = {}

    def note(self, function: FunctionKey, seconds: float) -> None:
        mean = self._mean_s.get(function)
        if mean is None and len(self._mean_s) >= _KNOWN_FUNCTIONS:
            self._mean_s.clear()  # a program that makes functions without end: start anew
            self._shares.clear()
        self._set(function, followed(mean, seconds))

    def _set(self, function: FunctionKey, mean: float) -> None:
        self._mean_s[function] = mean
        # As ``share_of``, without calls; kept, for it is asked for more often than it changes.
        share = (mean + OVERHEAD_S) / BUDGET_S
        self._shares[function] = _LEAST if share < _LEAST else 1.0 if share > 1 else share

    def note_all(self, function: FunctionKey, seconds: Iterable[float]) -> None:
        """The same for one call after another."""
        mean = self._mean_s.get(function)
        for one in seconds:
            if mean is None:  # the first of its function
                self.note(function, one)
                mean = one
            elif one > mean:  # as ``followed``, which would be a call for each
                mean = (mean + one) / 2
            else:
                mean += (one - mean) * _WEIGHT
        if mean is not None:
            self._set(function, mean)

    def share(self, function: FunctionKey) -> float:
        """How much of what one worker may have at hand a call of a function is."""
        return self._shares.get(function, 1.0)

    def room(self, worker: WorkerRecord, share: float) -> int:
        """How many more calls of ``share`` each a PROCESS worker may have.

        What it has counts as the work that it is by what is known now: a millisecond and twenty
        calls of 5 us leave room for another millisecond.
        """
        at_hand = worker.at_hand
        if not at_hand:
            return int(1 / share + _ROUNDING)
        if worker.oldest_seq <= worker.shut_behind:
            return 0
        shares, free = self._shares, 1.0
        for function, count in at_hand.items():
            free -= count * shares.get(function, 1.0)
        return int(free / share + _ROUNDING) if free > 0 else 0


def followed(mean: float | None, seconds: float) -> float:
    """A mean run time after one more call; None: it was the first."""
    if mean is None:
        return seconds
    if seconds > mean:
        return (mean + seconds) / 2
    return mean + (seconds - mean) * _WEIGHT


def share_of(mean: float | None) -> float:
    """How much of what one worker may have at hand a call of that run time is, None: not known."""
    return 1.0 if mean is None else min(max((mean + OVERHEAD_S) / BUDGET_S, _LEAST), 1.0)


def calls_at_hand(mean: float | None) -> int:
    """How many calls of that run time one worker may have in flight."""
    return int(1 / share_of(mean) + _ROUNDING)


def is_heavy(node: Node) -> bool:
    """True when the arguments of a call are large: then it travels alone.

    Large payloads say so; the core knows no more of them.
    """
    args = node.args
    if type(args) is not bytes and getattr(args, "is_large", False):
        return True
    for dep in node.deps:
        outcome = dep.outcome
        if type(outcome) is not bytes and getattr(outcome, "is_large", False):
            return True
    return False
