"""What ``capfd`` has captured so far, without taking it out."""

from __future__ import annotations

import os
from typing import Any


def printed(capfd: Any, stream: str = "out") -> str:
    """All that was written to ``stream`` ("out" or "err") and stays captured.

    For whoever waits for something to be printed: ``readouterr()`` reads the file and then empties
    it, and what another thread writes in between is lost.
    """
    file = getattr(capfd._capture, stream).tmpfile
    read = []
    while piece := os.pread(file.fileno(), 1 << 20, sum(map(len, read))):
        read.append(piece)
    return b"".join(read).decode(errors="replace")
