"""Interrupts in a worker of a cluster: ``timeout=``, and ``cancel`` of code that sleeps.

No cluster has a limit of time, so the worker keeps it itself.  A coroutine is cancelled by its own
loop; plain code gets a KeyboardInterrupt where it stands: in the main thread by a signal, which
ends a ``sleep`` or a system call as well; in another thread between two instructions of Python.

Ray cancels with ``_thread.interrupt_main()``, which a sleeping function does not notice.
:func:`notice_interrupts` makes a real signal of it.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Final

from taskloom.backends import cluster_context
from taskloom.exceptions import TaskTimeoutError

_NOTICE_S: Final = 0.02
"""How long running code has to notice an interrupt before it is taken for asleep."""
_LAST_NOTICE_S: Final = 1.0
"""Each next wait for that takes twice as long as the one before, up to this."""
_MOST_WAKES: Final = 20
"""So many signals wake it; then it has a handler of its own, or is in code that does not look."""


class Limit:
    """``with Limit(name, seconds, attempt):`` raises TaskTimeoutError out of what takes longer.

    Args:
        name: of the task.
        limit_s: how many seconds the block may take; None: any number.
        attempt: which it is, from 1.
    """

    __slots__ = (
        "_attempt", "_is_late", "_is_over", "_limit_s", "_lock", "_name", "_thread", "_timer",
    )  # fmt: skip

    def __init__(self, name: str, limit_s: float | None, attempt: int) -> None:
        self._name = name
        self._limit_s = limit_s
        self._attempt = attempt
        self._is_late = False
        self._is_over = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Limit:
        if self._limit_s is not None:
            self._lock = threading.Lock()
            self._thread = threading.get_ident()
            self._timer = threading.Timer(max(self._limit_s, 0), self._interrupt)
            self._timer.name = "taskloom-timeout"
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        timer = self._timer
        if timer is None:
            return
        try:
            timer.cancel()
            with self._lock:
                self._is_over = True
            if self._is_late and kind is None:
                _let_it_come()
        except KeyboardInterrupt:
            pass  # it came after the end of the block
        if self._is_late:
            raise timed_out(self._name, self._limit_s or 0.0, self._attempt) from None

    def _interrupt(self) -> None:
        """In the timer's thread."""
        with self._lock:
            if not self._is_over:
                self._is_late = True
                interrupt(self._thread)


class OutOfTime(TaskTimeoutError):
    """Our own TaskTimeoutError, not one that user code has raised."""

    def plain(self) -> TaskTimeoutError:
        """The same as users know it."""
        return TaskTimeoutError.of(self.task_name, self.timeout_s or 0.0, self.attempt)


def timed_out(name: str, limit_s: float, attempt: int) -> OutOfTime:
    """The error of an attempt that took too long."""
    found = OutOfTime.of(name, limit_s, attempt)
    assert isinstance(found, OutOfTime)
    return found


def interrupt(thread: int) -> None:
    """Raise KeyboardInterrupt in a thread of this process."""
    if thread == threading.main_thread().ident:
        _thread.interrupt_main()
        _wake_main()
    else:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt)
        )


def _let_it_come() -> None:
    # It was sent while the block ended: it is raised within the next instructions.
    for _ in range(1000):
        pass


# -- interrupts that code has not noticed -----------------------------------------------------


_WAKE: Final = signal.SIGRTMIN + 5
"""Ends a system call and does nothing else.  Not SIGINT: Ray's workers have that blocked."""
_noticed: Final = threading.Event()
_write_end: list[int] = []


def notice_interrupts() -> None:
    """In the main thread, before user code runs: wake it from a sleep when it is interrupted.

    Whoever raises the flag of SIGINT writes to the wake-up descriptor; if the handler has not run
    a moment later, the main thread sleeps, and a real signal wakes it.  A signal is lost on a
    thread that has looked for interrupts for the last time and is about to fall asleep: on a busy
    machine it may be there for long.  So there is another one until the handler has run.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if not _write_end:
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _on_interrupt)
        signal.signal(_WAKE, _do_nothing)
        _write_end.append(write_end)
        threading.Thread(
            target=_watch, args=(read_end,), name="taskloom-interrupts", daemon=True
        ).start()
    signal.set_wakeup_fd(_write_end[0], warn_on_full_buffer=False)  # loops take it for themselves


def _on_interrupt(_number: int, _frame: FrameType | None) -> None:
    _noticed.set()
    # The handler runs in the context of what it interrupts, so it knows which task that is.
    task = cluster_context.here.get().task_key
    if task is not None:
        cluster_context.cancelled.add(task)
    raise KeyboardInterrupt


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    pass


def _wake_main() -> None:
    main = threading.main_thread().ident
    if _write_end and main is not None:
        signal.pthread_kill(main, _WAKE)


def _watch(read_end: int) -> None:
    while True:
        if signal.SIGINT in os.read(read_end, 64):
            for turn in range(_MOST_WAKES):
                if _noticed.wait(min(_NOTICE_S * 2**turn, _LAST_NOTICE_S)):
                    break
                _wake_main()
            _noticed.clear()
