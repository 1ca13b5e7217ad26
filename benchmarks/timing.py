"""Small tools of those who measure: rounds, percentiles, and the check of every result."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence


class WrongResultError(AssertionError):
    """A contender returned something else than the right values: its time is worth nothing."""


def verify(what: str, got: object, wanted: object) -> None:
    """Raise unless ``got`` equals ``wanted``."""
    if got != wanted:
        raise WrongResultError(f"{what}: got {_short(got)}, wanted {_short(wanted)}")


def rounds(*, most: int, budget_s: float) -> Iterator[int]:
    """Count rounds until there were ``most`` or the time is used up; there is always one."""
    deadline = time.perf_counter() + budget_s
    for number in range(most):
        gc.collect()  # no round pays for the garbage of the one before
        yield number
        if time.perf_counter() > deadline:
            return


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent * 10) // 1000) - 1)]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
