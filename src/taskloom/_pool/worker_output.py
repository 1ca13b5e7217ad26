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
MAX_LINE_BYTES: Final = 64 * 1024
MAX_MARK_BYTES: Final = 4096
LAST_LINES: Final = 60
"""How many lines are kept for the error when the worker dies: a third of them may be ours."""
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
        self.rest = b""
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
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self._take_line(line)
        if len(self.rest) > MAX_LINE_BYTES:
            # A line without an end is said in pieces; a mark that has begun stays whole.
            at = self.rest.rfind(MARK[:1], len(self.rest) - MAX_MARK_BYTES)
            cut = at if at >= 0 else _end_of_characters(self.rest)
            head, self.rest = self.rest[:cut], self.rest[cut:]
            self._say(head)

    def _take_line(self, line: bytes) -> None:
        at = line.find(MARK)
        if at >= 0 and line.endswith(b"\x1e"):
            if at:
                self._say(line[:at])  # the one before had not ended its line
            self._speaker = line[at + len(MARK) : -1].decode(errors="replace")
        else:
            self._say(line)

    def _flush_rest(self) -> None:
        if self.rest and MARK not in self.rest:
            rest, self.rest = self.rest, b""
            self._say(rest)

    def _say(self, line: bytes) -> None:
        while True:
            cut = min(len(line), MAX_LINE_BYTES)
            while cut < len(line) and line[cut] & 0xC0 == 0x80 and cut > MAX_LINE_BYTES - 4:
                cut -= 1  # not in the middle of a character
            text = line[:cut].decode(errors="replace").rstrip("\r")
            self.last_lines.append(text)
            self._on_line(self._speaker, text)
            line = line[cut:]
            if not line:
                return


def _end_of_characters(data: bytes) -> int:
    """Where the last character begins, if it is longer than a byte and may not be whole."""
    last = len(data) - 1
    while last > len(data) - 4 and data[last] & 0xC0 == 0x80:
        last -= 1
    return last if data[last] >= 0xC0 else len(data)
