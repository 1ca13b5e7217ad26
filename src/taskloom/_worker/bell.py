"""What one thread of a worker wakes another one with."""

from __future__ import annotations

import os


class Bell:
    """Wakes a thread that sleeps in ``poll``; rung twice, it wakes once."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._read_fd = self._write_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self._read_fd, self._write_fd = os.pipe()
            os.set_blocking(self._write_fd, False)
        self._rung = False

    def fileno(self) -> int:
        return self._read_fd

    def ring(self) -> None:
        if not self._rung:
            self._rung = True
            os.write(self._write_fd, b"\1\0\0\0\0\0\0\0")

    def hush(self) -> None:
        os.read(self._read_fd, 4096)
        self._rung = False
