"""Runs ``def`` tasks: the main thread of a PROCESS worker.

Tasks are read from the data stream and run one after another.  Results go out together, but
never wait behind a task that is not known to be short.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # ``signal`` makes enums of all it returns
import gc
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context
from time import perf_counter
from types import FrameType
from typing import Any, Final

from taskloom._store.stored import Draft
from taskloom._wire import messages as m
from taskloom._wire.calls import NO_ARGUMENTS, decode_call
from taskloom._wire.context_vars import unpack_context
from taskloom._wire.frames import Message
from taskloom._wire.serialization import (
    loads,
)
from taskloom._worker.alertness import Alertness
from taskloom._worker.answers import answer_of, failure_of, wants_retry
from taskloom._worker.environment import Accelerators, TaskEnvironment
from taskloom._worker.functions import Functions, Running, Spec
from taskloom._worker.link import Link
from taskloom._worker.output import Output
from taskloom._worker.streaming import Writer, yields

_SIGINT: Final = int(signal.SIGINT)
_UNBLOCK: Final = int(signal.SIG_UNBLOCK)

SHORT_S: Final = 0.000_2
"""A function that took less than this last time is short: results may wait for it."""
HOLD_S: Final = 0.000_2
"""How long results may be held to travel together.

So long that sending costs little, and so short that the driver has something to do while the worker
still has something: with five times as much a lone actor is a third slower (measured).
"""
_RUNS: Final = frozenset({m.RUN, m.RUN_MANY})
_OUT_OF_REACH: Final = frozenset({"__del__", "_on_unraisable"})
_IMPORT: Final = "<frozen importlib._bootstrap>"


class Executor:
    """The main loop.

    Args:
        link: the line to the driver.
        output: the worker's stdout and stderr.
        note_started: writes a ``seq`` where the driver finds it if this process dies; with True
            also the time.
    """

    def __init__(
        self, link: Link, output: Output, note_started: Callable[[int, bool], None]
    ) -> None:
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
        self._interrupt = 0  # id of the KeyboardInterrupt that it got
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
        self._handler = self._on_interrupt
        self._listen()
        self._unraisable_hook = sys.unraisablehook
        sys.unraisablehook = self._on_unraisable

    def run(self) -> None:
        """Serve until the driver hangs up (raises DriverGone)."""
        self._link.post((m.READY, os.getpid()))
        self.serve()

    def serve(self) -> None:
        """Run what comes, one task after another."""
        queue, link, functions = self._queue, self._link, self._functions
        alertness = Alertness(link.data_fileno(), link.cpus)
        held_since = 0.0
        while True:
            if not queue:
                link.flush()
                link.watch_for_quiet()
                self._listen()  # nobody waits for that
                alertness.rest(self._started)
                while not queue:
                    self._read()
                held_since = alertness.rise()
            task = queue.popleft()
            if task[0] == m.RUN_MANY:
                held_since = self._run_together(task, held_since)
                continue
            if task[1] <= self._revoked_to:
                self._cancelled.discard(task[1])
                continue  # taken back; its spec may be forgotten already
            spec = functions.specs[task[4]]
            if link.has_posts and (spec.last_s > SHORT_S or perf_counter() - held_since > HOLD_S):
                link.flush()
                held_since = perf_counter()
            self._execute(task, spec)
            del task  # with it go the large arguments that nobody views any more

    def _run_together(self, message: Message, held_since: float) -> float:
        """Run the calls of a RUN_MANY, one after another.

        Fast path: what is the same for all of them is asked once, and what none of them has is not
        asked for at all (3.5 -> 1.5 us a no-op).  Plain twin: a RUN for each, and :meth:`_execute`.

        Args:
            message: the RUN_MANY.
            held_since: when the first of the results was posted that wait for the next flush.

        Returns: the same, afterwards.
        """
        _, first, keys, number, payloads, accelerators = message
        spec = self._functions.specs.get(number)
        link, lock, cancelled = self._link, self._lock, self._cancelled
        if spec is None:  # forgotten, as all of these calls were taken back
            cancelled.difference_update(range(first, first + len(keys)))
            return held_since
        self._set_scene(spec, accelerators)
        running = Running(spec, 0, 0, 1, accelerators)
        now = perf_counter()
        for seq, (key, payload) in enumerate(zip(keys, payloads, strict=True), first):
            if link.out and (spec.last_s > SHORT_S or now - held_since > HOLD_S):
                link.flush()
                now = held_since = perf_counter()
            lock.acquire()
            if seq <= self._revoked_to or seq <= self._started:
                cancelled.discard(seq)
                lock.release()
                continue
            self._started = seq
            if seq in cancelled:
                cancelled.discard(seq)
                lock.release()
                link.post((m.FAILED, seq, None, False, spec.last_s))
                continue
            self._note_started(seq, spec.timed)
            running.key, running.seq, running.cancelled = key, seq, False
            self.running = running
            self._interrupt = 0
            lock.release()
            if link.told[0] != link.heard:
                link.heed()
                now = perf_counter()
            # What a call leaves to be done behind it counts as the next one's: one look at the
            # clock for each, and all are calls of one function.
            start = now
            try:
                self._interruptible = seq
                if running.cancelled:
                    self._interruptible = 0
                    raise KeyboardInterrupt
                function = spec.function
                if function is None:
                    function = self._functions.get(spec)
                    start = perf_counter()
                if payload == NO_ARGUMENTS:
                    value = Context().run(function)
                else:
                    args, _ = decode_call(payload, None, None, self._was_interrupted)
                    value = Context().run(function, *args)
                    del args
                done = answer_of(seq, spec, value, start)
                self._interruptible = 0
                spec.last_s = done[4]
                now = start + done[4]
                self._last = (key + 1, done[2]) if type(done[2]) is not Draft else (0, None)
                del value
            except BaseException as error:
                self._interruptible = 0
                now = perf_counter()
                spec.last_s = now - start
                done = self._failed(seq, spec, error, spec.last_s)
            self.running = None
            self._unheard = 0
            if cancelled:
                cancelled.discard(seq)
            self._output.flush()
            link.out.append(done)
            if spec.once:
                link.flush()
                now = perf_counter()
        return held_since

    def _collect(self) -> None:
        """Nothing has come for a while: refs and arrays in forgotten cycles go."""
        gc.collect()
        self._link.flush()

    def _read(self) -> None:
        """Nothing is left to do."""
        if not self._link.read():
            self._collect()

    def _on_message(self, message: Message) -> None:
        if message[0] in _RUNS:
            self._queue.append(message)
        else:
            self._functions.on_message(message)

    # -- one task -----------------------------------------------------------------------------

    def _execute(self, task: Message, spec: Spec) -> None:
        _, seq, key, attempt, _, payload, holes, fills, context_blob, accelerators = task
        running = Running(spec, key, seq, attempt, accelerators)
        # Not ``with``: it costs twice as much, and no interrupt is raised before ``_interruptible``
        # is set.
        self._lock.acquire()
        if seq <= self._revoked_to or seq <= self._started:  # taken back, or sent twice
            self._lock.release()
            return
        self._started = seq
        if seq in self._cancelled or (fills and not self._take_last(fills)):
            self._cancelled.discard(seq)
            self._lock.release()
            self._link.post((m.FAILED, seq, None, False, spec.last_s))
            return
        # Not before: what does not run is not to blame for a death.
        self._note_started(seq, spec.timed)
        self.running = running
        self._interrupt = 0
        self._lock.release()
        self._set_scene(spec, accelerators)
        link = self._link
        if link.told[0] != link.heard:  # as ``heed`` asks: 60 ns where a call costs 100
            link.heed()
        start = perf_counter()
        try:
            self._interruptible = seq  # first of all: what follows is all the user's code
            if running.cancelled:
                self._interruptible = 0
                raise KeyboardInterrupt
            function = spec.function
            if function is None:
                function = self._functions.get(spec)
                start = perf_counter()  # what it costs each time, arguments and result included
            args, kwargs = decode_call(payload, holes, fills, self._was_interrupted)
            context = Context() if context_blob is None else self._context(context_blob)
            value = context.run(function, *args, **kwargs)
            del args, kwargs
            if (spec.stream is not None or spec.num_returns > 1) and yields(spec, value):
                writer = Writer(self._link, self._output, running, start)
                message = context.run(writer.drive, value)
            else:
                message = answer_of(seq, spec, value, start)
            self._interruptible = 0
            spec.last_s = message[4]
            # A task that follows this one may need it; what is in the store is the driver's.
            self._last = (key + 1, message[2]) if type(message[2]) is not Draft else (0, None)
            del value
        except BaseException as error:
            self._interruptible = 0
            spec.last_s = seconds = perf_counter() - start
            message = self._failed(seq, spec, error, seconds)
        # No lock: an interrupt that is on its way may leave the number of this task behind, which
        # no later one has.
        self.running = None
        self._unheard = 0
        if self._cancelled:
            self._cancelled.discard(seq)
        self._output.flush()
        link.post(message)
        if spec.once:  # what may not run again must not be lost with this worker
            link.flush()

    def _set_scene(self, spec: Spec, accelerators: Accelerators | None) -> None:
        """Make the process look to a task of ``spec`` as it should."""
        self._output.task = spec.name
        environment = self._environment
        if spec.threads != environment.threads or accelerators != environment.accelerators:
            environment.enter(spec.threads, accelerators)

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
        # Not isinstance: it asks the error's own __class__, which may raise.
        if seq in self._cancelled and issubclass(type(error), KeyboardInterrupt):
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
        op, seq = message[0], message[1]
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
                    if message[2]:  # under the lock: the next task has not begun
                        self._link.flush()
                        os.killpg(0, signal.SIGKILL)
                    running.cancelled = True
                    self._cancelled.add(seq)
                    self._unheard = seq
                    self._link.ticking = True
                    signal.pthread_kill(self._link.main_thread, signal.SIGINT)
                elif seq > max(self._started, self._revoked_to):
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

    def _on_interrupt(self, _signum: int, frame: FrameType | None) -> None:
        """In the main thread, between two byte codes: exactly the task that was cancelled."""
        if not self._interruptible or self._interruptible not in self._cancelled:
            if self._interrupt:
                self._unheard = 0  # it was heard before: the task is cleaning up
            return
        if self._link.shielded:
            self._unheard = 0
            self._link.deferred = True
        elif not must_not_break(frame):
            self._unheard = 0
            self._interruptible = 0  # once is enough: the task may be cleaning up
            interrupt = KeyboardInterrupt()
            self._interrupt = id(interrupt)
            raise interrupt

    def _was_interrupted(self) -> bool:
        return not self._interruptible

    def _listen(self) -> None:
        """Undo what a task may have done to the signal by which tasks are interrupted."""
        if _signal.getsignal(_SIGINT) is not self._handler:
            signal.signal(signal.SIGINT, self._handler)
        _signal.pthread_sigmask(_UNBLOCK, (_SIGINT,))

    def _on_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Python has swallowed an exception: if it was the interrupt, it must come again.

        Callbacks of weak references and of C code do that; finalizers are spared beforehand.
        """
        running = self.running
        value = unraisable.exc_value
        if not isinstance(value, KeyboardInterrupt) or id(value) != self._interrupt:
            self._unraisable_hook(unraisable)
        elif running is not None and running.seq in self._cancelled:
            self._interrupt = 0
            self._interruptible = self._unheard = running.seq
            self._link.start_ticking()

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


def must_not_break(frame: FrameType | None) -> bool:
    """Whether an interrupt has to wait until a frame is left.

    What is raised in a ``__del__`` reaches nobody.  An import that is broken off leaves modules
    half made for every later task: those written in C cannot be loaded a second time.
    """
    while frame is not None:
        code = frame.f_code
        if code.co_name in _OUT_OF_REACH or code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False
