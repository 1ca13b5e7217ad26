"""How a worker waits for its next task: awake for a moment when that is likely to be enough.

To wake a process costs about as much as all else that happens to a small call.  Whoever makes
one call after another is back within some 40 us, so a worker that has just seen that stays awake
for as long as that may take (measured: ``get(f.remote())`` 42 us where it was 59, two quiet cores).
A worker to which nothing has come in that time sleeps, and sleeps at once from then on, until
calls follow each other so closely again.  So a change of pace costs ``AWAKE_S`` of a CPU at most,
and who else wants that CPU gets it: the worker offers it all the time.

Plain twin: a worker on a machine with one CPU, which always sleeps.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from time import perf_counter
from typing import Final

AWAKE_S: Final = 0.000_1
"""How long a worker stays awake, and how soon a task must come for that to be worth it."""

# As they were before any user code ran in this process.
_yield: Final = os.sched_yield
_affinity: Final = getattr(os, "sched_getaffinity", None)


def _is_free_to_move() -> bool:
    """False in a process that was pinned to one CPU; the sender of its tasks mostly was, too."""
    return _affinity is None or len(_affinity(0)) > 1


class Alertness:
    """Watches a descriptor for the next task.

    Args:
        fd: can be read when a task has come, or the driver has gone.
        cpus: how many the session may use; of one only, the sender of the task has need.
        clock: seconds.
    """

    def __init__(self, fd: int, cpus: int, clock: Callable[[], float] = perf_counter) -> None:
        self._poller = select.poll()
        self._poller.register(fd, select.POLLIN)
        self._has_several_cpus = cpus > 1
        self._clock = clock
        self._is_worth_it = False
        self._begun = 0  # tasks, when there was nothing to do the last time
        self._since = 0.0

    def rest(self, begun: int) -> None:
        """Nothing is left to do.  Returns when something has come, or it is time to sleep.

        Args:
            begun: the number of the last task that this worker has begun.
        """
        ran, self._begun = begun - self._begun, begun
        self._since = self._clock()
        # Not after many at once: then the driver and other workers have work for every CPU.
        if self._is_worth_it and ran == 1:
            poll, clock, end = self._poller.poll, self._clock, self._since + AWAKE_S
            while not poll(0) and clock() < end:
                _yield()  # the kernel may have put whom we have woken on this CPU

    def rise(self) -> float:
        """A task has come.  Returns: when, by the clock."""
        now = self._clock()
        self._is_worth_it = (
            now - self._since < AWAKE_S and self._has_several_cpus and _is_free_to_move()
        )
        return now
