"""What the loom wants to be reminded of.

The loom has no clock.  It hands an :class:`Alarm` and a number of seconds to the outbox
(``wake_later``) and hears ``Reactor.on_alarm`` when they are over.  A node has one alarm at most:

* RETRY while it is in BACKOFF: its next attempt may begin.
* LIMIT while an attempt with a ``timeout=`` is with a worker.  Set when it is handed out.  It may
  stand behind others there, so the first ring only asks how long it has been running, and the
  next one is set for what is left.
* GRACE from the moment when a worker was told to stop it: cancelled, or out of time.
* SILENCE from the end of that time, for a coroutine, until its worker must have said a word.

A node lets go of its alarm (``node.alarm`` is another one, or None) and tells the outbox, who
forgets it when it likes: an alarm that its node does not have any more rings for nobody.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskloom._core.node import Node


class AlarmKind(IntEnum):
    RETRY = 0
    LIMIT = 1
    GRACE = 2
    SILENCE = 3


class Alarm:
    """One reminder; ``began`` is when a coroutine began, by the clock of its worker."""

    __slots__ = ("began", "kind", "node")

    def __init__(self, kind: AlarmKind, node: Node) -> None:
        self.kind = kind
        self.node = node
        self.began: float | None = None

    @property
    def is_set(self) -> bool:
        return self.node.alarm is self

    def __repr__(self) -> str:
        return f"<Alarm {self.kind.name} of {self.node!r}>"
