"""``cancel(force=True)``: the worker that runs the task ends, and no other task suffers.

The worker ends itself: only there a lock says that the task still runs and the next one has not
begun.  A worker that does not hear - it is stopped, or C code holds the GIL - is killed from here,
once the shared page shows that it is still at that task.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Final

from taskloom._pool.process import WorkerProcess

FIRST_LOOK_S: Final = 0.05
LAST_LOOK_S: Final = 1.0


class ForcedCancels:
    """Looks after workers that were told to end.

    Args:
        loop: for the timers; there are none while nothing is forced.
        started_seq: the ``seq`` of the last task that a worker has begun.
    """

    def __init__(
        self, loop: AbstractEventLoop, started_seq: Callable[[WorkerProcess], int]
    ) -> None:
        self._loop = loop
        self._started_seq = started_seq

    def add(self, worker: WorkerProcess, seq: int) -> None:
        """The worker has been told to end if it runs ``seq``."""
        self._loop.call_later(FIRST_LOOK_S, self._look, worker, seq, FIRST_LOOK_S)

    def _look(self, worker: WorkerProcess, seq: int, waited_s: float) -> None:
        if seq not in worker.record.inflight:
            return
        if self._started_seq(worker) == seq:
            worker.kill()
        else:  # it stands behind another one that keeps the worker from hearing
            again_s = min(2 * waited_s, LAST_LOOK_S)
            self._loop.call_later(again_s, self._look, worker, seq, again_s)
