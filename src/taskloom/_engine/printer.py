"""Brings what workers print to the driver's own stdout and stderr.

The engine's thread only queues lines, so a slow terminal or a closed pipe never holds up the
graph.  They are written by a thread of their own, or by whoever fetches a result: before ``get``
returns, everything that was printed before the result is on the stream (LOG-3).
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from taskloom._config import Config
from taskloom._engine.terminal import harmless, is_terminal

MAX_BACKLOG: Final = 100_000
"""Lines that may wait for a slow stream; what comes on top of that is dropped and counted."""


class Printer:
    def __init__(self) -> None:
        self.backlog: deque[tuple[int, Callable[[], str] | str]] = deque()
        # True while a line that is no longer in the backlog may not be on its stream yet.  Set
        # before the line is taken, so who looks at the backlog first and then here misses none.
        self.writing = False
        self._dropped = 0
        # Held while writing; the user's stream may itself come here again (or a signal handler).
        self._lock = threading.RLock()
        self._wake = threading.Lock()
        self._wake.acquire()
        self._awake = False
        self._thread: threading.Thread | None = None
        self._closed = False

    def push(self, stream: int, text: Callable[[], str] | str) -> None:
        """Queue a line for stdout (1) or stderr (2); text that is costly may be a function."""
        if len(self.backlog) >= MAX_BACKLOG:
            self._dropped += 1
            return
        self.backlog.append((stream, text))
        if self._thread is None and not self._closed:
            self._start_thread()
        if not self._awake:
            self._awake = True
            self._wake.release()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._serve, name="taskloom-print", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # the interpreter is ending: what is queued is written by close()
        self._thread = thread

    def flush(self) -> None:
        """Write what is queued; on return it is on the streams."""
        with self._lock:
            self._write_all()

    def close(self) -> None:
        """Write what is left and end the thread."""
        self._closed = True
        self.flush()
        if self._thread is not None:
            if not self._awake:
                self._awake = True
                self._wake.release()
            self._thread.join(5)  # it may hang on a pipe that nobody reads
            self._thread = None

    def _serve(self) -> None:
        while not self._closed:
            self._wake.acquire()
            self._awake = False
            self.flush()

    def _write_all(self) -> None:
        outermost, self.writing = not self.writing, True
        try:
            self._write_lines()
        finally:
            if outermost:
                self.writing = False

    def _write_lines(self) -> None:
        used: dict[int, bool] = {}  # streams, and whether each is a terminal
        for _ in range(len(self.backlog)):  # not what comes meanwhile: it may never end
            if not self.backlog:
                break  # written by whoever came in between, in this thread
            number, text = self.backlog.popleft()
            if number not in used:
                used[number] = is_terminal(sys.stdout if number == 1 else sys.stderr)
            if not isinstance(text, str):
                try:
                    text = text()
                except Exception as error:  # a stranger's: the other lines must go out
                    text = f"(taskloom) a message could not be made: {error!r}"
            self._write(number, harmless(text) if used[number] else text)
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._write(2, f"(taskloom) {dropped} lines of workers were dropped")
        for number in used:
            stream = sys.stdout if number == 1 else sys.stderr
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass  # closed or gone: the program's own affair

    def _write(self, number: int, text: str) -> None:
        stream = sys.stdout if number == 1 else sys.stderr
        try:
            stream.write(text + "\n")
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        except (OSError, ValueError, AttributeError):
            pass  # as above


def line_prefix(config: Config, name: str, pid: int, stream: int) -> str:
    """What stands before a line that a worker has printed: who it was.

    Args:
        config: of the session: whether there is to be one, and in color.
        name: of the task or the actor.
        pid: of the worker.
        stream: 1 for stdout, 2 for stderr.
    """
    if not config.worker_log_prefix:
        return ""
    color = config.color_prefix
    if color is None:
        target = sys.stdout if stream == 1 else sys.stderr
        color = target is not None and not target.closed and target.isatty()
    return f"\x1b[36m({name} pid={pid})\x1b[0m " if color else f"({name} pid={pid}) "
