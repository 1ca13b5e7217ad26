"""Who gets another attempt, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from taskloom._core.node import Node
from taskloom._spec import Pace

AT_ONCE: Final = 3
"""So many retries follow at once, as in Ray, where no ``retry_delay`` is given."""
FIRST_PAUSE_S: Final = 0.02
LAST_PAUSE_S: Final = 1.0
"""Later ones wait, each twice as long as the one before: what always fails must not spin."""
_PAUSE_JITTER: Final = 0.5  # or a thousand tasks that failed together come back together
LONGEST_PAUSE_S: Final = 86_400.0
"""Where a growing ``retry_delay`` ends: a day, or the delay itself if that is longer."""


def may_retry(node: Node) -> bool:
    """True when the budget allows one more attempt after the one that has just failed.

    ``max_retries`` counts attempts after the first; -1 never ends.  Crashes of the worker and,
    where the user asked for it, exceptions draw on the same budget (REM-16, REM-17).
    """
    budget = node.spec.max_retries
    return budget < 0 or node.attempt <= budget


def pause_s(attempts: int, pace: Pace | None, dice: Callable[[], float]) -> float:
    """Seconds between a failed attempt and the next one.

    Args:
        attempts: how many there were, the one that has just failed included.
        pace: what the user asked for.
        dice: gives numbers from 0 to 1.
    """
    pause: float
    if pace is None or pace.retry_delay_s is None:
        if attempts <= AT_ONCE:
            return 0.0
        doublings = min(attempts - AT_ONCE - 1, 16)
        pause, jitter = min(FIRST_PAUSE_S * 2**doublings, LAST_PAUSE_S), _PAUSE_JITTER
    else:
        pause, jitter = pace.retry_delay_s, pace.retry_jitter
        longest = max(pause, LONGEST_PAUSE_S)
        try:
            pause = min(pause * pace.retry_backoff ** (attempts - 1), longest)
        except OverflowError:
            pause = longest
    return pause * (1 + jitter * (2 * dice() - 1)) if jitter else pause
