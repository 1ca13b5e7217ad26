"""How much work a worker gets at once: about a millisecond, judged by what was measured.

A task whose run time is unknown or long travels alone, so that it never stands behind another
one while some worker is idle.  Short ones travel in batches, so that the trip costs little.
"""

from __future__ import annotations

from typing import Final

from taskloom._core.node import Node
from taskloom._spec import FunctionKey

BUDGET_S: Final = 0.001
"""Work to have in flight for one worker."""
OVERHEAD_S: Final = 0.000_010
"""What a task costs a worker besides its body."""
MAX_BATCH: Final = 64
LOOP_CAPACITY: Final = 1000
"""Coroutines that one LOOP worker runs at once (as an async actor of Ray)."""
_WEIGHT: Final = 0.2
_KNOWN_FUNCTIONS: Final = 10_000


class RunTimes:
    """The run time of each function: a mean that follows rises at once and falls slowly."""

    def __init__(self) -> None:
        self._mean_s: dict[FunctionKey, float] = {}
        self._windows: dict[FunctionKey, int] = {}

    def note(self, function: FunctionKey, seconds: float) -> None:
        mean = self._mean_s.get(function)
        if mean is None:
            if len(self._mean_s) >= _KNOWN_FUNCTIONS:
                self._mean_s.clear()  # a program that makes functions without end: start anew
                self._windows.clear()
            mean = seconds
        elif seconds > mean:
            mean = (mean + seconds) / 2
        else:
            mean += (seconds - mean) * _WEIGHT
        self._mean_s[function] = mean
        window = int(BUDGET_S / (mean + OVERHEAD_S))
        self._windows[function] = 1 if window < 1 else MAX_BATCH if window > MAX_BATCH else window

    def window(self, function: FunctionKey) -> int:
        """How many calls of a function one worker may have in flight."""
        return self._windows.get(function, 1)


def is_heavy(node: Node) -> bool:
    """True when the arguments of a call are large: then it travels alone.

    Large payloads say so; the core knows no more of them.
    """
    args = node.args
    if type(args) is not bytes and getattr(args, "is_large", False):
        return True
    return any(
        type(dep.outcome) is not bytes and getattr(dep.outcome, "is_large", False)
        for dep in node.deps
    )
