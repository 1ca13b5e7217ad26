"""What the driver and the zygote tell each other, and the page they share with the workers.

Downwards: ``FACTS_HEAD`` with the descriptor of the page, the pickled facts, then an ``ORDER``
with four descriptors (data, control, stdout, stderr) for each worker to fork.  Upwards:
``REPORT``; one that says STARTED brings a pidfd where the system has them.

The page holds, for each worker, the ``seq`` of the last task it has begun.  The worker writes it
before each call, so that the driver knows what ran when a worker died without a word.
"""

from __future__ import annotations

import struct
from typing import Final

FACTS_HEAD: Final = struct.Struct("<Q")
ORDER: Final = struct.Struct("<iii")  # worker number, kind, slot in the page
REPORT: Final = struct.Struct("<iii")  # what, worker number, pid or wait status or errno
READY, STARTED, ENDED, FORK_FAILED = range(4)

PAGE_BYTES: Final = 64 * 1024
STARTED_SEQ: Final = struct.Struct("<Q")


def started_offset(slot: int) -> int:
    """Where in the page the worker with a slot writes."""
    return slot * STARTED_SEQ.size
