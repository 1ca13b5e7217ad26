"""What one thread wakes another one with that sleeps in ``poll`` or in an event loop."""

from __future__ import annotations

import os
from typing import Final

_RING: Final = (1).to_bytes(8, "little")


class Bell:
    """Wakes a thread that watches its descriptor; rung twice, it wakes once.

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(self) -> None:
        self._read_fd = self._write_fd = -1
        self._size = 8  # of a read: as much memory is taken for it
        if hasattr(os, "eventfd"):
            self._read_fd = self._write_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self._read_fd, self._write_fd = os.pipe()
            self._size = 4096  # rings that came together
            os.set_blocking(self._read_fd, False)
            os.set_blocking(self._write_fd, False)
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
