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

START: Final = 5_000
"""So many pending calls are a long queue."""
STEP: Final = 1_000
"""New pending calls after which the collector is relieved of them."""
OWN_FROZEN: Final = 5_000
"""More frozen objects than these are the program's doing; Python itself freezes some hundred."""
RUN_DOWN: Final = 100
"""So few pending calls are no longer a queue: the collector gets everything back."""


class Backlog:
    def __init__(self) -> None:
        self._next = START
        self._frozen = False

    def note(self, pending: int) -> None:
        """Tell how many calls are pending now.  Any thread may; a race costs one freeze more."""
        if pending >= self._next:
            self._freeze(pending)
        elif self._frozen:
            self._next = min(self._next, pending + STEP)
            if pending < RUN_DOWN:
                self._frozen = False
                self._next = START
                gc.unfreeze()

    def _freeze(self, pending: int) -> None:
        self._next = pending + STEP
        if not self._frozen and (gc.get_freeze_count() > OWN_FROZEN or not gc.isenabled()):
            return  # the program has its own way with the collector
        self._frozen = True
        gc.freeze()
