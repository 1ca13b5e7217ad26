"""All that is to happen later, behind one timer of the loop."""

from __future__ import annotations

import heapq
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import Final

from taskloom._core.alarms import Alarm

LONGEST_S: Final = 3600.0
"""The loop is asked for no more than this at once: what is a year away needs no exact timer."""
_NUDGE_S: Final = 0.001  # loops round to milliseconds; ringing too early would ring twice
_FEW: Final = 64


class Timers:
    """A heap of alarms, and one timer for the first of them: none when there is no alarm.

    An alarm that was forgotten stays in the heap until its time comes, or until more than half
    of the heap is forgotten: then all of those go at once.

    Args:
        loop: of the engine.
        ring: is given each alarm that is due.
        settle: is called after those of one moment have rung.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        ring: Callable[[Alarm], None],
        settle: Callable[[], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._loop = loop
        self._ring = ring
        self._settle = settle
        self._clock = clock
        self._heap: list[tuple[float, int, Alarm]] = []
        self._numbers = count()  # alarms of one moment ring in the order in which they were set
        self._forgotten = 0
        self._timer: TimerHandle | None = None
        self._timer_at = 0.0

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, alarm: Alarm, delay_s: float) -> None:
        """Have an alarm ring after ``delay_s`` seconds."""
        when = self._clock() + delay_s
        heapq.heappush(self._heap, (when, next(self._numbers), alarm))
        if self._timer is None or when < self._timer_at:
            self._wind()

    def forget(self) -> None:
        """One of those that were set is not needed any more (``alarm.is_set`` is false)."""
        self._forgotten += 1
        if self._forgotten > _FEW and self._forgotten * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].is_set]
            heapq.heapify(self._heap)
            self._forgotten = 0
            self._wind()

    def close(self) -> None:
        """Nothing rings any more."""
        self._heap.clear()
        self._wind()

    def _wind(self) -> None:
        """Have the loop call when the first alarm is due; not at all when there is none."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer_at = self._heap[0][0]
            delay_s = max(0.0, self._timer_at - self._clock()) + _NUDGE_S
            self._timer = self._loop.call_later(min(delay_s, LONGEST_S), self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        now = self._clock()
        due: list[Alarm] = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        for alarm in due:
            if alarm.is_set:
                self._ring(alarm)
            else:
                self._forgotten = max(0, self._forgotten - 1)
        self._wind()
        if due:
            self._settle()
