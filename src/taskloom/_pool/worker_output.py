"""The driver's end of a worker's stdout and stderr: bytes in, lines with a speaker out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Final

MARK: Final = b"\x1etaskloom "  # see _worker/output.py, which writes it
MARK_END: Final = b"\x1e\n"
MAX_LINE_BYTES: Final = 64 * 1024
LAST_LINES: Final = 20

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

    def drain(self) -> bool:
        """Read what is there; False when nobody can write any more."""
        while self.fd >= 0:
            try:
                data = os.read(self.fd, 256 * 1024)
            except BlockingIOError:
                return True
            if not data:
                self._flush_rest()
                return False
            self._take(data)
        return False

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
