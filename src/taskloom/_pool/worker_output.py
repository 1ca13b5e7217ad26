"""The driver's end of a worker's stdout and stderr: bytes in, lines with a speaker out."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import Final

MARK: Final = b"\x1etaskloom "  # see _worker/output.py, which writes it
MARK_END: Final = b"\x1e\n"
MAX_LINE_BYTES: Final = 64 * 1024
LAST_LINES: Final = 20
MAX_READ_BYTES: Final = 256 * 1024
_WAITING: Final = struct.Struct("i")
_NOTHING: Final = bytes(_WAITING.size)

OnLine = Callable[[str, str], None]
"""Called with the speaking task's name ("" unknown) and a line without its newline."""


class OutputPipe:
    """One stream of one worker.

    Args:
        fd: the reading end; closed by :meth:`close`.
        on_line: receives each line.
    """

    def __init__(self, fd: int, on_line: OnLine) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._on_line = on_line
        self._rest = b""
        self._speaker = ""
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)

    def read(self) -> bool:
        """Read once, something is there; False when nobody can write any more."""
        try:
            data = os.read(self.fd, MAX_READ_BYTES)
        except BlockingIOError:
            return True
        self._take(data)
        return bool(data)

    def drain(self) -> None:
        """Read what is there now, and no more: others may write faster than we read."""
        if self.fd >= 0:
            waiting = _WAITING.unpack(fcntl.ioctl(self.fd, termios.FIONREAD, _NOTHING))[0]
            while waiting > 0:
                data = os.read(self.fd, min(waiting, MAX_READ_BYTES))
                self._take(data)
                waiting -= len(data)

    def flush(self) -> None:
        """A task has ended: what it printed without a newline is a line all the same."""
        self._flush_rest()

    def close(self) -> None:
        if self.fd >= 0:
            self._flush_rest()
            os.close(self.fd)
            self.fd = -1

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take_line(line)
        while len(self._rest) > MAX_LINE_BYTES:
            head, self._rest = self._rest[:MAX_LINE_BYTES], self._rest[MAX_LINE_BYTES:]
            self._take_line(head)

    def _take_line(self, line: bytes) -> None:
        at = line.find(MARK)
        if at >= 0 and line.endswith(b"\x1e"):
            if at:
                self._say(line[:at])  # the one before had not ended its line
            self._speaker = line[at + len(MARK) : -1].decode(errors="replace")
        else:
            self._say(line)

    def _flush_rest(self) -> None:
        if self._rest and MARK not in self._rest:
            rest, self._rest = self._rest, b""
            self._say(rest)

    def _say(self, line: bytes) -> None:
        for start in range(0, max(len(line), 1), MAX_LINE_BYTES):
            text = line[start : start + MAX_LINE_BYTES].decode(errors="replace").rstrip("\r")
            self.last_lines.append(text)
            self._on_line(self._speaker, text)
