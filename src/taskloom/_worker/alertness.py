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


class Alertness:
    """Watches a descriptor for the next task.

    Args:
        fd: can be read when a task has come, or the driver has gone.
        count_cpus: how many this process may use; of one only, the sender of the task has need.
            Asked once, when it matters for the first time.
        clock: seconds.
    """

    def __init__(
        self, fd: int, count_cpus: Callable[[], int], clock: Callable[[], float] = perf_counter
    ) -> None:
        self._poller = select.poll()
        self._poller.register(fd, select.POLLIN)
        self._count_cpus = count_cpus
        self._may_stay_awake: bool | None = None  # not known yet
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
                os.sched_yield()  # the kernel may have put whom we have woken on this CPU

    def rise(self) -> float:
        """A task has come.  Returns: when, by the clock."""
        now = self._clock()
        self._is_worth_it = now - self._since < AWAKE_S and self._can_afford_it()
        return now

    def _can_afford_it(self) -> bool:
        if self._may_stay_awake is None:
            self._may_stay_awake = self._count_cpus() > 1
        return self._may_stay_awake
