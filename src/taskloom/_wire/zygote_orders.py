"""What the driver and the zygote tell each other, and the page they share with the workers.

Downwards: ``FACTS_HEAD`` with the descriptors of the page and of the arena, the pickled facts,
then an ``ORDER`` with four descriptors (data, control, stdout, stderr) for each worker to fork.
Upwards: ``REPORT``; one that says STARTED brings a pidfd where the system has them.

The page holds, for each worker, the ``seq`` of the last task it has begun, and when it was begun if
that task has a time limit.  The worker writes it before each call, so that the driver knows what
ran when a worker died without a word, and for how long something has been running.

In the other direction stands how often the worker was told to stop or to give back something.  The
driver writes it before anybody can see that a call is cancelled; a worker that has not heard as
much yet listens before it begins anything.
"""

from __future__ import annotations

import struct
from typing import Final

FACTS_HEAD: Final = struct.Struct("<Q")
ORDER: Final = struct.Struct("<iii")  # worker number, kind, slot in the page
REPORT: Final = struct.Struct("<iii")  # what, worker number, pid or wait status or errno
READY, STARTED, ENDED, FORK_FAILED = range(4)

PAGE_BYTES: Final = 96 * 1024
STARTED_SEQ: Final = struct.Struct("<Q")
STARTED_AT: Final = struct.Struct("<d")  # by time.monotonic(), one clock for all processes
TOLD: Final = struct.Struct("=Q")
SLOT_BYTES: Final = STARTED_SEQ.size + STARTED_AT.size + TOLD.size


def started_offset(slot: int) -> int:
    """Where in the page the worker with a slot writes the number of the task."""
    return slot * SLOT_BYTES


def started_at_offset(slot: int) -> int:
    """Where it writes when it was begun."""
    return slot * SLOT_BYTES + STARTED_SEQ.size


def told_offset(slot: int) -> int:
    """Where the driver writes how often the worker was told to stop or give back something."""
    return slot * SLOT_BYTES + STARTED_SEQ.size + STARTED_AT.size
