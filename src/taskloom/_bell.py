"""What one thread wakes another one with that sleeps in ``poll`` or in an event loop."""

from __future__ import annotations

import os
from typing import Final

_RING: Final = (1).to_bytes(8, "little")


def descriptors() -> tuple[int, int]:
    """To read from and to write to: the same one where the system has eventfd.

    Raises:
        OSError: none is left.
    """
    if hasattr(os, "eventfd"):
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return fd, fd
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    return read_fd, write_fd


class Bell:
    """Wakes a thread that watches its descriptor; rung twice, it wakes once.

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(self) -> None:
        self._read_fd = self._write_fd = -1
        self._read_fd, self._write_fd = descriptors()
        # Of a read, for which as much memory is taken; a pipe may hold several rings.
        self._size = 8 if self._read_fd == self._write_fd else 4096
        self._rung = False

    def fileno(self) -> int:
        return self._read_fd

    def ring(self) -> None:
        """From any thread."""
        if not self._rung:
            self._rung = True
            os.write(self._write_fd, _RING)

    def ring_again(self) -> None:
        """By the one who was woken: he has not seen to all of it."""
        os.write(self._write_fd, _RING)

    def hush(self) -> None:
        """By the one who was woken, before he looks for what there is to do."""
        try:
            os.read(self._read_fd, self._size)
        except BlockingIOError:
            pass  # who rings has not got so far, or two rang at once
        finally:  # a signal may come, and with it Ctrl-C: it must ring the next time all the same
            self._rung = False

    def close(self) -> None:
        """By the last who knows it; also when it is collected."""
        fds = {self._read_fd, self._write_fd} - {-1}
        self._read_fd = self._write_fd = -1
        for fd in fds:
            os.close(fd)

    __del__ = close
