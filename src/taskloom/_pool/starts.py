"""How often workers may fail to start before the session gives up: never a fork storm."""

from __future__ import annotations

from typing import Final

MAX_FAILED_STARTS: Final = 5
"""Starts that may fail in a row before the session gives up."""

MAX_KILLED_STARTS: Final = 20
"""The same for those that somebody else killed: a system short of memory may recover."""


class FailedStarts:
    """Counts workers that ended before they began their first task.

    "In a row" means that no worker of the session has begun a task in between, however long that
    took: a machine on which workers cannot live is given up, one on which now and then a worker
    is killed early is not.
    """

    def __init__(self) -> None:
        self.count = 0
        self._killed = 0
        self._begun_then = 0

    def add(self, tasks_begun: int, *, killed: bool = False) -> bool:
        """One more; whether it is time to give up.

        Args:
            tasks_begun: by all workers since the session began; only whether it grows counts.
            killed: it ended by SIGKILL, which workers do not send themselves.
        """
        if tasks_begun > self._begun_then:
            self._begun_then = tasks_begun
            self.count = self._killed = 0
        self.count += 1
        self._killed += killed
        return self.count - self._killed >= MAX_FAILED_STARTS or self.count >= MAX_KILLED_STARTS
