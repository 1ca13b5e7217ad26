"""A worker's stdout and stderr: pipes to the driver that say which task is talking.

What Python prints goes through streams of our own, which write a mark with the task's name into
the pipe when the speaker changes.  What C code and grandchildren write goes into the same pipe
without a mark and is taken to come from the task that spoke last, or runs.
"""

from __future__ import annotations

import fcntl
import io
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

MARK = b"\x1etaskloom "
"""Starts a mark; then the name, then ``\\x1e`` and a newline."""


class _MarkedPipe(io.RawIOBase):
    """The raw end of a stream: marks the speaker before it writes."""

    def __init__(self, fd: int, output: Output) -> None:
        self._number = fd
        # Of our own, above what a task may close by mistake.
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        lowest = min(64, limit // 2) if limit != resource.RLIM_INFINITY else 64
        self._fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
        self._output = output
        self._speaker = ""
        self._line_is_open = False

    def end_task(self) -> None:
        """End the last line, and take the mark back: who writes without one is somebody else."""
        tail = b"\n" if self._line_is_open else b""
        if self._speaker:
            tail += MARK + b"\x1e\n"
        self._speaker, self._line_is_open = "", False
        if tail:
            os.write(self._fd, tail)

    def fileno(self) -> int:
        return self._number

    def close(self) -> None:
        self._output.touched = True
        if not self.closed:
            super().close()
            os.close(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = len(data)
        speaker = self._output.speaker()
        if speaker != self._speaker:
            self._speaker = speaker
            name = speaker.replace("\n", " ").encode(errors="replace")
            data = b"".join((MARK, name, b"\x1e\n", data))
        self._line_is_open = data[-1:] != b"\n"
        self._output.touched = True
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        return size


class _Buffer(io.BufferedWriter):
    """Says that there may be something to flush."""

    def __init__(self, pipe: _MarkedPipe, output: Output) -> None:
        super().__init__(pipe)
        self._output = output

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        finally:  # not before: a flush in between would take the note away and find nothing
            self._output.touched = True


class _Text(io.TextIOWrapper):
    """The same for text."""

    def __init__(self, buffer: _Buffer, output: Output) -> None:
        super().__init__(buffer, encoding="utf-8", errors="replace", line_buffering=True)
        self._output = output

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        finally:
            self._output.touched = True


class Output:
    """Both streams.

    ``task`` is the name of the task that runs now; where many run at once, ``speaker`` is
    replaced by something that knows who asks.
    """

    def __init__(self) -> None:
        self.task = ""
        self.touched = False  # since the last flush: a stream was written to, or closed
        self.speaker: Callable[[], str] = lambda: self.task
        self._pipes: list[_MarkedPipe] = []
        self._out = self._open(1)
        self._err = self._open(2)

    def install(self) -> None:
        """Become ``sys.stdout`` and ``sys.stderr`` of this process."""
        sys.stdout = sys.__stdout__ = self._out  # type: ignore[misc]  # Final in typeshed
        sys.stderr = sys.__stderr__ = self._err  # type: ignore[misc]

    def flush(self) -> None:
        """Let nothing a task printed lag behind its result."""
        # Fast path: most tasks print nothing, and to flush streams for nothing is a fifth of what
        # a worker executes for a small task.  Plain twin: below.
        if not self.touched and sys.stdout is self._out and sys.stderr is self._err:
            return
        self.touched = False
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass  # the task closed or replaced it
        if self._out.closed or self._err.closed:
            for stream in (self._out, self._err):
                stream.close()
            self._pipes.clear()
            self._out, self._err = self._open(1), self._open(2)
            self.install()
        for pipe in self._pipes:
            pipe.end_task()

    def _open(self, fd: int) -> io.TextIOWrapper:
        pipe = _MarkedPipe(fd, self)
        self._pipes.append(pipe)
        return _Text(_Buffer(pipe, self), self)
