"""Runs ``async def`` tasks: the event loop of a LOOP worker.

Every task is an asyncio Task of its own, started as it is read.  Results of one turn of the loop
go out together.  A task that blocks the loop holds up its neighbours, as in any asyncio program.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextvars import Context, ContextVar
from time import perf_counter
from typing import Any

from taskloom._wire import messages as m
from taskloom._wire.calls import decode_call
from taskloom._wire.context_vars import unpack_context
from taskloom._wire.frames import Message
from taskloom._wire.serialization import loads
from taskloom._worker.executor import Functions, Running, answer_of, failure_of, wants_retry
from taskloom._worker.link import DriverGone, Link
from taskloom._worker.output import Output

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


class LoopExecutor:
    """The main loop of a worker for coroutines; arguments as for ``Executor``."""

    def __init__(self, link: Link, output: Output, started: Any) -> None:
        self._link = link
        self._output = output
        self._note_started = started
        self._functions = Functions()
        self._tasks: dict[int, tuple[asyncio.Task[None], Running]] = {}
        self._cancelled: set[int] = set()
        self._lock = threading.Lock()  # started / revoked: loop thread against control thread
        self._started = 0
        self._revoked_to = 0
        self._flush_scheduled = False
        self._loop = new_event_loop()
        link.main_reads = False
        link.on_message = self._on_message
        link.on_control = self._on_control
        output.speaker = lambda: current.spec.name if (current := running()) else ""

    def run(self) -> None:
        """Serve until the driver hangs up (raises DriverGone)."""
        loop = self._loop
        asyncio.set_event_loop(loop)
        loop.add_reader(self._link.data_fileno(), self._on_readable)
        self._link.post((m.READY, os.getpid()))
        self._link.flush()
        loop.run_forever()
        raise DriverGone

    def _on_readable(self) -> None:
        try:
            self._link.read(wait=False)
        except DriverGone:
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
            self._note_started(seq)
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
            value = await function(*args, **kwargs)
            message = answer_of(seq, spec, value, start)
        except asyncio.CancelledError as error:
            seconds = perf_counter() - start
            if current.cancelled:
                message = (m.FAILED, seq, None, False, seconds)
            else:
                message = (m.FAILED, seq, failure_of(error, spec), False, seconds)
        except BaseException as error:  # SystemExit and KeyboardInterrupt would end the loop
            seconds = perf_counter() - start
            failure, retry = failure_of(error, spec), wants_retry(error, spec)
            message = (m.FAILED, seq, failure, retry, seconds)
        self._tasks.pop(seq, None)
        self._answer(message)

    def _answer(self, message: Message) -> None:
        self._output.flush()
        self._link.post(message)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        try:
            self._link.flush()
        except DriverGone:
            self._loop.stop()

    def _on_control(self, message: Message) -> None:
        """In the control thread."""
        op, seq = message
        if op == m.TAKE_BACK:
            # Somebody keeps the loop from turning: what it has not read goes to another worker.
            with self._lock:
                low = self._started
                self._revoked_to = max(self._revoked_to, seq)
            self._link.post((m.RETURNED, low, seq))
            self._link.flush()
        elif op == m.INTERRUPT:
            self._loop.call_soon_threadsafe(self._cancel, seq)

    def _cancel(self, seq: int) -> None:
        self._cancelled.discard(seq)
        entry = self._tasks.get(seq)
        if entry is None:
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
