"""Runs ``async def`` tasks: the event loop of a LOOP worker.

Every task is an asyncio Task of its own, started as it is read.  Results of one turn of the loop
go out together.  A task that blocks the loop holds up its neighbours, as in any asyncio program.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from contextvars import Context, ContextVar
from time import monotonic, perf_counter
from types import FrameType
from typing import Any

from taskloom._wire import messages as m
from taskloom._wire.calls import decode_call
from taskloom._wire.context_vars import unpack_context
from taskloom._wire.frames import Message
from taskloom._wire.serialization import loads
from taskloom._worker.answers import answer_of, failure_of, wants_retry
from taskloom._worker.executor import must_not_break
from taskloom._worker.functions import Functions, Running
from taskloom._worker.link import QUIET_S, DriverGone, Link
from taskloom._worker.output import Output
from taskloom._worker.streaming import Writer, yields

try:
    import uvloop
except ImportError:  # uvloop does not exist everywhere; asyncio's own loop does the same work
    new_event_loop = asyncio.new_event_loop
else:
    new_event_loop = uvloop.new_event_loop

_running: ContextVar[Running | None] = ContextVar("taskloom running task", default=None)


def running() -> Running | None:
    """The task that the calling code belongs to."""
    return _running.get()


async def one_turn() -> None:
    """Let the others in the loop run."""
    await asyncio.sleep(0)


class LoopExecutor:
    """The main loop of a worker for coroutines; arguments as for ``Executor``."""

    def __init__(self, link: Link, output: Output, started: Any) -> None:
        self._link = link
        self._output = output
        self._note_started = started
        self._functions = Functions()
        self._tasks: dict[int, tuple[asyncio.Task[None], Running]] = {}
        self._cancelled: set[int] = set()  # before they were read
        self._unheard: set[int] = set()  # the loop has not turned since their cancel
        self._lock = threading.Lock()  # started / revoked: loop thread against control thread
        self._started = 0
        self._revoked_to = 0
        self._flush_scheduled = False
        self._quiet: asyncio.TimerHandle | None = None
        self._ended = False
        self._loop = new_event_loop()
        link.main_reads = False
        link.on_message = self._on_message
        link.on_control = self._on_control
        link.on_tick = self._on_tick
        signal.signal(signal.SIGINT, self._on_interrupt)
        output.speaker = lambda: current.spec.name if (current := running()) else ""

    def run(self) -> None:
        """Serve until the driver hangs up (raises DriverGone)."""
        loop = self._loop
        asyncio.set_event_loop(loop)
        loop.add_reader(self._link.data_fileno(), self._on_readable)
        self._link.post((m.READY, os.getpid()))
        self._link.flush()
        while not self._ended:
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                pass  # of an asyncio Task that user code made: whoever awaits that gets it, too
        raise DriverGone

    def _on_readable(self) -> None:
        try:
            self._link.read(wait=False)
        except DriverGone:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._loop.stop()

    def _on_message(self, message: Message) -> None:
        if message[0] != m.RUN:
            self._functions.on_message(message)
            return
        _, seq, key, attempt, number, payload, holes, fills, context_blob, accelerators = message
        spec = self._functions.specs[number]
        with self._lock:
            if seq <= self._revoked_to:
                return
            self._started = seq
            self._note_started(seq, False)
        if spec.timed:
            self._post((m.BEGAN, seq, monotonic()))
        current = Running(spec, key, seq, attempt, accelerators)
        try:
            function = self._functions.get(spec)
            args, kwargs = decode_call(payload, holes, fills)
            context = unpack_context(context_blob, loads) if context_blob else Context()
        except BaseException as error:
            self._answer((m.FAILED, seq, failure_of(error, spec), wants_retry(error, spec), 0.0))
            return
        context.run(_running.set, current)
        task = self._loop.create_task(
            self._run(seq, current, function, args, kwargs), name=spec.name, context=context
        )
        self._tasks[seq] = task, current
        if seq in self._cancelled:
            self._cancel(seq)

    async def _run(self, seq: int, current: Running, function: Any, args: Any, kwargs: Any) -> None:
        spec = current.spec
        start = perf_counter()
        try:
            self._link.heed()
            if seq in self._unheard:
                current.cancelled = True
                raise asyncio.CancelledError
            value = function(*args, **kwargs)
            if yields(spec, value):
                writer = Writer(self._link, self._output, current, start)
                message = await writer.drive_async(value, one_turn)
            else:
                message = answer_of(seq, spec, await value, start)
        except asyncio.CancelledError as error:
            self._tasks.pop(seq, None)  # first of all: no interrupt from here on
            seconds = perf_counter() - start
            if current.cancelled:
                message = (m.FAILED, seq, None, False, seconds)
            else:
                message = (m.FAILED, seq, failure_of(error, spec), False, seconds)
        except BaseException as error:  # SystemExit and KeyboardInterrupt would end the loop
            self._tasks.pop(seq, None)
            seconds = perf_counter() - start
            failure, retry = failure_of(error, spec), wants_retry(error, spec)
            message = (m.FAILED, seq, failure, retry, seconds)
        self._tasks.pop(seq, None)
        self._answer(message)
        if not self._tasks and self._quiet is None:
            self._quiet = self._loop.call_later(QUIET_S, self._collect)

    def _collect(self) -> None:
        """Nothing has come for a while: refs and arrays in forgotten cycles go."""
        self._quiet = None
        if not self._tasks:
            gc.collect()
            self._flush()

    def _answer(self, message: Message) -> None:
        self._output.flush()
        self._post(message)

    def _post(self, message: Message) -> None:
        """Have a message sent at the end of this turn of the loop."""
        self._link.post(message)
        if self._link.has_many_posts:
            self._flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_at_the_end)

    def _flush_at_the_end(self) -> None:
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        try:
            self._link.flush()
        except DriverGone:
            self._end()

    def _on_control(self, message: Message) -> None:
        """In the control thread."""
        op, seq = message[0], message[1]
        if op == m.TAKE_BACK:
            # Somebody keeps the loop from turning: what it has not read goes to another worker.
            with self._lock:
                low = self._started
                self._revoked_to = max(self._revoked_to, seq)
            self._link.post((m.RETURNED, low, seq))
            self._link.flush()
        elif op == m.INTERRUPT:
            self._unheard.add(seq)
            self._link.ticking = True
            self._loop.call_soon_threadsafe(self._cancel, seq)

    def _on_tick(self) -> bool:
        """In the control thread: somebody keeps the loop from turning, perhaps the cancelled."""
        if self._unheard:
            signal.pthread_kill(self._link.main_thread, signal.SIGINT)
        return bool(self._unheard)

    def _on_interrupt(self, _signum: int, frame: FrameType | None) -> None:
        """In the main thread, between two byte codes: exactly the task that was cancelled."""
        current = running()
        if (
            current is not None
            and current.seq in self._unheard
            and self._is_in_step(current.seq)
            and not self._link.shielded
            and not must_not_break(frame)
        ):
            self._unheard.discard(current.seq)
            current.cancelled = True
            raise asyncio.CancelledError

    def _is_in_step(self, seq: int) -> bool:
        """Whether this very moment belongs to the task, not to a callback in its context."""
        entry = self._tasks.get(seq)
        return entry is not None and asyncio.current_task(self._loop) is entry[0]

    def _cancel(self, seq: int) -> None:
        self._cancelled.discard(seq)
        self._unheard.discard(seq)
        entry = self._tasks.get(seq)
        if entry is None:
            if seq > max(self._started, self._revoked_to):
                self._cancelled.add(seq)  # the control stream was faster than the data stream
            return
        task, current = entry
        if not current.cancelled:
            current.cancelled = True
            task.cancel()
            # One that has not taken its first step ends before ``_run`` can say so.
            task.add_done_callback(lambda _task: self._answer_cancelled(seq))

    def _answer_cancelled(self, seq: int) -> None:
        if self._tasks.pop(seq, None) is not None:
            self._answer((m.FAILED, seq, None, False, 0.0))
