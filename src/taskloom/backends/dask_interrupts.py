"""The end of calls that run in a worker, when somebody asks for it.

Code in the main thread is interrupted by a signal; code in another thread, which is where Dask's
own workers run tasks, between two instructions of Python; a coroutine is cancelled by its loop.
An interrupt must hit the call that it is meant for and nothing else: neither the next call in the
same thread nor Dask's own code around it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Final

from taskloom.backends import cluster_context
from taskloom.backends.cluster_limits import interrupt, notice_interrupts

_lock: Final = threading.Lock()
_running: dict[int, Interruptible] = {}
_doomed: OrderedDict[int, None] = OrderedDict()
"""Calls whose end was asked for before they had begun."""
_LAST_WORD_S: Final = 0.2
"""How long a process goes on that is to be ended."""
_MOST_DOOMED: Final = 10_000


class Interruptible:
    """``with Interruptible(task) as guard:`` a call can be interrupted inside, and only there.

    A KeyboardInterrupt that we have sent does not leave the block.

    Attributes:
        is_doomed: its end was asked for already.
        was_cancelled: its end was asked for since.
    """

    def __init__(self, task: int) -> None:
        self._task = task
        self._thread = threading.get_ident()
        self._cancel: Callable[[], object] | None = None
        self._was_sent = False
        self.is_doomed = False
        self.was_cancelled = False

    def __enter__(self) -> Interruptible:
        notice_interrupts()
        with _lock:
            self.is_doomed = self._task in _doomed
            _doomed.pop(self._task, None)
            _running[self._task] = self
        return self

    def cancel_by(self, cancel: Callable[[], object]) -> None:
        """From now on ``cancel`` is called instead of an interrupt."""
        with _lock:
            self._cancel = cancel

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> bool:
        is_ours = self.is_doomed or self._was_sent
        try:
            with _lock:
                _running.pop(self._task, None)
            cluster_context.cancelled.discard(self._task)
            if self._was_sent:
                _let_it_come()
        except KeyboardInterrupt:
            is_ours = True
        return is_ours and kind is KeyboardInterrupt

    def end(self) -> None:
        """Ask for the end; the lock is held."""
        cluster_context.cancelled.add(self._task)
        self.was_cancelled = True
        if self._cancel is not None:
            self._cancel()
            return
        self._was_sent = True
        interrupt(self._thread)


def _let_it_come() -> None:
    # An interrupt that came while the call ended is raised within the next instructions.
    for _ in range(1000):
        pass


def end_call(task: int) -> bool:
    """Ask for the end of a call; False: it has not begun, and does nothing when it does."""
    with _lock:
        running = _running.get(task)
        if running is not None:
            running.end()
            return True
        _doomed[task] = None
        while len(_doomed) > _MOST_DOOMED:
            _doomed.popitem(last=False)
        return False


def end_process(task: int) -> bool:
    """End this process in a moment, if the call still runs in it then; whether it runs now."""
    with _lock:
        is_running = task in _running
    if is_running:
        timer = threading.Timer(_LAST_WORD_S, _end_process, (task,))
        timer.daemon = True
        timer.start()
    return is_running


def _end_process(task: int) -> None:
    if task in _running:
        os.kill(os.getpid(), signal.SIGKILL)
