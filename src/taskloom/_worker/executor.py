"""Runs ``def`` tasks: the main thread of a PROCESS worker.

Tasks are read from the data stream and run one after another.  Results go out together, but
never wait behind a task that is not known to be short.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context
from time import perf_counter
from types import FrameType
from typing import Any, Final

from taskloom._wire import messages as m
from taskloom._wire.calls import decode_call
from taskloom._wire.context_vars import unpack_context
from taskloom._wire.frames import Message
from taskloom._wire.remote_errors import Failure, capture
from taskloom._wire.returns import split_returns
from taskloom._wire.serialization import (
    Payload,
    dumps,
    explain,
    loads,
    pack,
    unpack_function,
)
from taskloom._worker.environment import TaskEnvironment
from taskloom._worker.link import Link
from taskloom._worker.output import Output

SHORT_S: Final = 0.000_2
"""A function that took less than this last time is short: results may wait for it."""
HOLD_S: Final = 0.001
"""How long results may be held to travel together."""


class Spec:
    """What the worker knows of the calls of one remote function with one set of options."""

    __slots__ = (
        "function_key", "function_name", "is_coroutine", "last_s", "name", "num_returns",
        "once", "request", "retry", "threads",
    )  # fmt: skip

    def __init__(self, message: Message) -> None:
        (_, _, self.function_key, self.function_name, self.name, self.num_returns, retry,
         self.threads, self.request, self.once) = message  # fmt: skip
        self.retry: bool | tuple[type[BaseException], ...] = (
            loads(retry) if isinstance(retry, bytes) else retry
        )
        self.last_s = 1.0  # seconds; long until it is known


class Running:
    """The task that runs now, for those who ask from inside it."""

    __slots__ = ("accelerators", "attempt", "cancelled", "key", "seq", "spec")

    def __init__(
        self, spec: Spec, key: int, seq: int, attempt: int, accelerators: dict[str, Any] | None
    ) -> None:
        self.spec = spec
        self.key = key
        self.seq = seq
        self.attempt = attempt
        self.accelerators = accelerators or {}
        self.cancelled = False


class Functions:
    """The functions and specs that the driver has defined here."""

    def __init__(self) -> None:
        self._blobs: dict[bytes, bytes] = {}
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self.specs: dict[int, Spec] = {}

    def on_message(self, message: Message) -> None:
        op = message[0]
        if op == m.SPEC:
            self.specs[message[1]] = Spec(message)
        elif op == m.FUNCTION:
            self._blobs[message[1]] = message[2]
        elif op == m.FORGET_SPEC:
            self.specs.pop(message[1], None)
        elif op == m.FORGET_FUNCTION:
            self._blobs.pop(message[1], None)
            self._functions.pop(message[1], None)

    def get(self, spec: Spec) -> Callable[..., Any]:
        """The function of a spec, unpickled at its first call."""
        function = self._functions.get(spec.function_key)
        if function is None:
            function = unpack_function(self._blobs[spec.function_key])
            self._functions[spec.function_key] = function
            del self._blobs[spec.function_key]
        return function


class Executor:
    """The main loop.

    Args:
        link: the line to the driver.
        output: the worker's stdout and stderr.
        note_started: writes a ``seq`` where the driver finds it if this process dies.
    """

    def __init__(self, link: Link, output: Output, note_started: Callable[[int], None]) -> None:
        self._link = link
        self._output = output
        self._note_started = note_started
        self._functions = Functions()
        self._queue: deque[Message] = deque()
        self._lock = threading.Lock()  # started / revoked: main thread against control thread
        self._started = 0
        self._revoked_to = 0
        self._cancelled: set[int] = set()
        self._interruptible = 0
        self._unheard = 0  # the task whose interrupt the main thread has not noticed yet
        self._environment = TaskEnvironment()
        self._contexts: tuple[bytes | None, Context] = (None, Context())
        self.running: Running | None = None
        self._last: tuple[int, Any] = (0, None)  # object key and payload of the last result
        link.on_message = self._on_message
        link.on_returned = self._on_returned
        link.on_control = self._on_control
        link.current_seq = lambda: self._started
        link.on_cancelled = self._on_cancelled
        link.on_tick = self._on_tick
        signal.signal(signal.SIGINT, self._on_interrupt)

    def run(self) -> None:
        """Serve until the driver hangs up (raises DriverGone)."""
        queue, link, functions = self._queue, self._link, self._functions
        link.post((m.READY, os.getpid()))
        held_since = 0.0
        while True:
            if not queue:
                link.flush()
                while not queue:
                    link.read()
                held_since = perf_counter()
            task = queue.popleft()
            if task[1] <= self._revoked_to:
                continue  # taken back; its spec may be forgotten already
            spec = functions.specs[task[4]]
            if spec.last_s > SHORT_S or perf_counter() - held_since > HOLD_S:
                link.flush()
                held_since = perf_counter()
            self._execute(task, spec)

    def _on_message(self, message: Message) -> None:
        if message[0] == m.RUN:
            self._queue.append(message)
        else:
            self._functions.on_message(message)

    # -- one task -----------------------------------------------------------------------------

    def _execute(self, task: Message, spec: Spec) -> None:
        _, seq, key, attempt, _, payload, holes, fills, context_blob, accelerators = task
        with self._lock:
            if seq <= self._revoked_to:
                return
            self._started = seq
            self._note_started(seq)
            if seq in self._cancelled or (fills and not self._take_last(fills)):
                self._cancelled.discard(seq)
                self._link.post((m.FAILED, seq, None, False, spec.last_s))
                return
            self.running = Running(spec, key, seq, attempt, accelerators)
        self._output.task = spec.name
        self._environment.enter(spec.threads, accelerators)
        start = perf_counter()
        try:
            function = self._functions.get(spec)
            start = perf_counter()  # what it costs each time, arguments and result included
            args, kwargs = decode_call(payload, holes, fills)
            context = Context() if context_blob is None else self._context(context_blob)
            self._interruptible = seq
            if seq in self._cancelled:  # while its arguments were unpickled
                raise KeyboardInterrupt
            value = context.run(function, *args, **kwargs)
            self._interruptible = 0
            del args, kwargs
            message = answer_of(seq, spec, value, start)
            spec.last_s = message[4]
            self._last = (key + 1, message[2])  # a task that follows this one may need it
            del value
        except BaseException as error:
            self._interruptible = 0
            spec.last_s = seconds = perf_counter() - start
            message = self._failed(seq, spec, error, seconds)
        with self._lock:
            self.running = None
            self._unheard = 0
            self._cancelled.discard(seq)
        self._output.flush()
        self._link.post(message)
        if spec.once:  # what may not run again must not be lost with this worker
            self._link.flush()

    def _take_last(self, fills: list[Any]) -> bool:
        """Put the last result where a fill names it; False when it is not the one named."""
        key, payload = self._last
        for index, fill in enumerate(fills):
            if type(fill) is int:
                if fill != key:
                    return False
                fills[index] = payload
        return True

    def _failed(self, seq: int, spec: Spec, error: BaseException, seconds: float) -> Message:
        if seq in self._cancelled and isinstance(error, KeyboardInterrupt):
            self._cancelled.discard(seq)
            return (m.FAILED, seq, None, False, seconds)
        return (m.FAILED, seq, failure_of(error, spec), wants_retry(error, spec), seconds)

    def _context(self, blob: bytes) -> Context:
        known, base = self._contexts
        if known != blob:
            base = unpack_context(blob, loads)
            self._contexts = (blob, base)
        return base.copy()

    # -- give back, cancel --------------------------------------------------------------------

    def _on_returned(self, high: int) -> None:
        with self._lock:
            self._revoked_to = max(self._revoked_to, high)

    def _on_control(self, message: Message) -> None:
        """In the control thread: what a busy worker must hear at once."""
        op, seq = message
        if op == m.TAKE_BACK:
            with self._lock:
                low = self._started
                self._revoked_to = max(self._revoked_to, seq)
            self._link.post((m.RETURNED, low, seq))
            self._link.flush()  # and with it the results that were held back
        elif op == m.INTERRUPT:
            with self._lock:
                running = self.running
                if running is not None and running.seq == seq:
                    running.cancelled = True
                    self._cancelled.add(seq)
                    self._unheard = seq
                    self._link.ticking = True
                    signal.pthread_kill(self._link.main_thread, signal.SIGINT)
                elif seq > self._started:
                    self._cancelled.add(seq)  # it will not be started

    def _on_tick(self) -> bool:
        """In the control thread: repeat an interrupt that came just before a blocking call.

        The kernel interrupts the call only if the signal comes after it was entered.
        """
        with self._lock:
            running = self.running
            if running is None or not self._unheard or running.seq != self._unheard:
                return False
            signal.pthread_kill(self._link.main_thread, signal.SIGINT)
            return True

    def _on_interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        """In the main thread, between two byte codes: exactly the task that was cancelled."""
        if self._interruptible and self._interruptible in self._cancelled:
            self._unheard = 0
            if self._link.shielded:
                self._link.deferred = True
            else:
                self._interruptible = 0  # once is enough: the task may be cleaning up
                raise KeyboardInterrupt

    def _on_cancelled(self) -> bool:
        """In the main thread: the driver answered a wait by saying that the task is cancelled.

        Returns: whether that is news; False when it was interrupted already.
        """
        running = self.running
        if running is None or not self._interruptible:
            return False
        running.cancelled = True
        self._cancelled.add(running.seq)
        self._interruptible = 0
        return True


def answer_of(seq: int, spec: Spec, value: object, start: float) -> Message:
    """The DONE message for what a task that began at ``start`` returned.

    Raises:
        TypeError: the value cannot be pickled; the text names the path to the member.
        ValueError: it is not as many values as ``num_returns`` says (REM-7).
    """
    if spec.num_returns == 1:
        payload, keys = _pack_return(value, spec)
        return (m.DONE, seq, payload, keys or None, perf_counter() - start)
    packed = [
        _pack_return(item, spec) for item in split_returns(value, spec.num_returns, spec.name)
    ]
    payloads, contained = [p for p, _ in packed], [keys for _, keys in packed]
    return (m.DONE, seq, payloads, contained, perf_counter() - start)


def _pack_return(value: object, spec: Spec) -> tuple[Payload, tuple[int, ...]]:
    try:
        return pack(value)
    except Exception as error:
        raise explain(error, value, f"the return value of {spec.name}()", "value") from error


def failure_of(error: BaseException, spec: Spec) -> Failure:
    """What user code raised, as it travels."""
    return capture(
        error,
        function_name=spec.name,
        pid=os.getpid(),
        proctitle=f"taskloom::{spec.name}",
        dumps=dumps,
        loads=loads,
    )


def wants_retry(error: BaseException, spec: Spec) -> bool:
    """Whether the user asked for another attempt after this exception (REM-17)."""
    if not isinstance(error, Exception):
        return False
    return isinstance(error, spec.retry) if isinstance(spec.retry, tuple) else spec.retry
