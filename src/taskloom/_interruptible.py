"""Sleeping so that Ctrl-C is always heard.

Python's own ``lock.acquire()`` can sleep through a signal: one that arrives after the last look
for signals and before the thread is asleep in the kernel wakes nobody (19 of 20,000 that were
aimed at that moment were lost so), nor does one that the kernel gives to another thread.
"""

from __future__ import annotations

import threading
from time import monotonic

_LOOK_S = 0.05
"""How often a main thread that sleeps looks for signals: Ctrl-C promises to act in 0.1 s."""


def nap_s(left_s: float | None) -> float | None:
    """How long the calling thread may sleep before it looks again, None for as long as it likes.

    Only the main thread hears signals; others sleep through.

    Args:
        left_s: seconds until it must wake in any case; None: never.
    """
    if threading.current_thread() is not threading.main_thread():
        return left_s
    return _LOOK_S if left_s is None else min(left_s, _LOOK_S)


def acquire(lock: threading.Lock, timeout_s: float | None) -> bool:
    """Take ``lock``; False when it was not free within ``timeout_s`` seconds (None: for ever)."""
    until = None if timeout_s is None else monotonic() + timeout_s
    while True:
        nap = nap_s(timeout_s)
        if lock.acquire(timeout=-1 if nap is None else nap):
            return True
        if until is not None and (timeout_s := until - monotonic()) <= 0:
            return False
