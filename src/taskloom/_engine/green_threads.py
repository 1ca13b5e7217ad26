"""Programs whose threads are not the system's: an engine in one would never get its turn."""

from __future__ import annotations

import sys
from typing import Final

_NEEDED: Final = ("thread", "threading", "select", "subprocess", "os")


def refuse_green_threads() -> None:
    """Say so when gevent or eventlet has put its own threads and sockets in place of Python's.

    Raises:
        RuntimeError: it has.
    """
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and any(map(gevent.is_module_patched, _NEEDED)):
        raise RuntimeError(_REFUSAL.format("gevent.monkey.patch_all()"))
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and any(map(eventlet.is_monkey_patched, _NEEDED)):
        raise RuntimeError(_REFUSAL.format("eventlet.monkey_patch()"))


_REFUSAL: Final = (
    "{} has replaced threads, select, os or subprocess, and taskloom's engine needs those of "
    "Python itself: start the session in a program that does not patch them, or use "
    "init(local_mode=True)"
)
