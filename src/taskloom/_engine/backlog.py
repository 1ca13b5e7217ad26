"""Keeps Python's garbage collector from walking through a long queue again and again.

A hundred thousand pending calls are some hundred thousand objects, all of them alive.  Each full
collection visits every one and stops all threads meanwhile, the user's event loop too: for 100 ms
and more, measured.  So while the queue is long, what is alive is moved out of the collector's way
(``gc.freeze``, a constant-time move of lists), and back when the queue has run down.

What this costs: garbage in cycles that was made before a freeze is collected after the queue has
run down, not before.  A program that uses ``gc.freeze`` itself, or has switched the collector off,
is left alone.
"""

from __future__ import annotations

import gc
from typing import Final

from taskloom._ids import INDEX_BITS

START: Final = 5_000
"""So many pending calls are a long queue."""
STEP: Final = 1_000
"""New pending calls after which the collector is relieved of them."""
OWN_FROZEN: Final = 5_000
"""More frozen objects than these are the program's doing; Python itself freezes some hundred."""
RUN_DOWN: Final = 100
"""So few pending calls are no longer a queue: the collector gets everything back."""
LOOK_EVERY: Final = 1023 << INDEX_BITS
"""One task key in 1,024 has none of these bits: then the caller looks how long the queue is."""

YIELD_EVERY: Final = 511 << INDEX_BITS
"""One in 512, those among them: then it lets the engine's thread run, if that has much to do."""


class Backlog:
    def __init__(self) -> None:
        self.limit = START  # so many pending calls are worth a :meth:`note`
        self.frozen = False  # and so is every change while this is True

    def note(self, pending: int) -> None:
        """Tell how many calls are pending now.  Any thread may; a race costs one freeze more."""
        if pending >= self.limit:
            self._freeze(pending)
        elif self.frozen:
            self.limit = min(self.limit, pending + STEP)
            if pending < RUN_DOWN:
                self.frozen = False
                self.limit = START
                gc.unfreeze()

    def _freeze(self, pending: int) -> None:
        self.limit = pending + STEP
        if not self.frozen and (gc.get_freeze_count() > OWN_FROZEN or not gc.isenabled()):
            return  # the program has its own way with the collector
        self.frozen = True
        gc.freeze()
