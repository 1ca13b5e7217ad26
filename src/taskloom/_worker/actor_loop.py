"""Runs the methods of an actor with ``async def`` methods: in one event loop.

The constructor runs inside the loop, too, so that it may start tasks and make locks.  Methods
that are no coroutine functions run in a thread, one at a time, so that they never hold up the
loop; what they return may still be something to await.
"""

from __future__ import annotations

import asyncio
import gc
import types
from contextvars import Context
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Final

from taskloom._wire import messages as m
from taskloom._wire.calls import decode_call
from taskloom._wire.context_vars import unpack_context
from taskloom._wire.frames import Message
from taskloom._wire.serialization import loads
from taskloom._worker.actor_threads import Calls, Crew, running
from taskloom._worker.answers import answer_of
from taskloom._worker.functions import Running
from taskloom._worker.link import QUIET_S, DriverGone
from taskloom._worker.loop_executor import new_event_loop, one_turn
from taskloom._worker.streaming import Writer, yields

if TYPE_CHECKING:
    from taskloom._worker.actor_host import ActorHost

# Code flags: async def, a generator under types.coroutine, an async generator.
_COROUTINE: Final = 0x80 | 0x100 | 0x200


class ActorLoop:
    """The loop of an async actor.

    Args:
        host: whose it is.
    """

    def __init__(self, host: ActorHost) -> None:
        self._host = host
        self._calls = Calls(host)
        self._calls.settle = self._settle
        self._crew = Crew(self._calls, 1)
        # Strong references: the loop itself keeps only weak ones.
        self._tasks: dict[int, tuple[asyncio.Task[None], Running]] = {}
        self._cancelled: set[int] = set()
        self._unheard: set[int] = set()  # cancelled, and the loop has not turned since
        self._last = 0
        self._flush_scheduled = False
        self._ended = False
        self._quiet: asyncio.TimerHandle | None = None
        self._loop = new_event_loop()
        host._link.main_reads = False
        host._link.on_control = self._on_control
        self._backlog: list[Message] = []  # what came before the loop ran

    def current(self) -> Running | None:
        return running.get()

    def serve(self) -> None:
        """Serve until the driver hangs up (raises DriverGone) or the actor leaves."""
        loop, link = self._loop, self._host._link
        asyncio.set_event_loop(loop)
        loop.add_reader(link.data_fileno(), self._on_readable)
        loop.call_soon(self._serve_backlog)
        link.on_message = self._on_message
        while not self._ended:
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                pass  # of an asyncio Task that user code made: whoever awaits that gets it, too
        raise DriverGone

    def _end(self) -> None:
        self._ended = True
        self._loop.stop()

    def on_message(self, message: Message) -> None:
        """What came before :meth:`serve`."""
        self._backlog.append(message)

    def _serve_backlog(self) -> None:
        try:
            for message in self._backlog:
                self._on_message(message)
        except DriverGone:
            self._end()
        self._backlog.clear()

    def _on_readable(self) -> None:
        try:
            self._host._link.read(wait=False)
        except DriverGone:
            self._end()

    def _on_message(self, message: Message) -> None:
        host = self._host
        if message[0] == m.STOP:
            host.leave()
        if message[0] != m.RUN:
            host.functions.on_message(message)
            return
        _, seq, key, attempt, number, payload, holes, fills, context_blob, accelerators = message
        spec = host.functions.specs[number]
        if spec.actor is not None:
            self._calls.run(message)
            return
        self._last = seq
        current = Running(spec, key, seq, attempt, accelerators)
        start = perf_counter()
        try:
            function = host.functions.get(spec)
            if not _is_coroutine(function):
                self._crew.submit(message)
                return
            args, kwargs = decode_call(payload, holes, fills)
            context = unpack_context(context_blob, loads) if context_blob else Context()
        except BaseException as error:
            self._answer(self._calls.failed(seq, spec, error, start))
            return
        host._note_started(seq, False)
        if spec.timed:
            host._link.post_soon((m.BEGAN, seq, monotonic()))
        context.run(running.set, current)
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
            self._host._link.heed()
            if seq in self._unheard:
                current.cancelled = True
                raise asyncio.CancelledError
            value = function(*args, **kwargs)
            if yields(spec, value):
                writer = Writer(self._host._link, self._host._output, current, start)
                message = await writer.drive_async(value, one_turn)
            else:
                message = answer_of(seq, spec, await value, start)
        except asyncio.CancelledError as error:
            if current.cancelled:
                message = (m.FAILED, seq, None, False, perf_counter() - start)
            else:
                message = self._calls.failed(seq, spec, error, start)
        except BaseException as error:  # SystemExit and KeyboardInterrupt would end the loop
            message = self._calls.failed(seq, spec, error, start)
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

    def _settle(self, value: Any) -> Any:
        """In a thread: the value of a call that has returned a coroutine after all."""
        if isinstance(value, types.CoroutineType):
            return asyncio.run_coroutine_threadsafe(value, self._loop).result()
        return value

    def _answer(self, message: Message) -> None:
        self._host._output.flush()
        self._host._link.post(message)
        if message[0] == m.LEAVING:
            self._host.leave()
        if self._host._link.has_many_posts:
            self._flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_at_the_end)

    def _flush_at_the_end(self) -> None:
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        try:
            self._host._link.flush()
        except DriverGone:
            self._end()

    def _on_control(self, message: Message) -> None:
        """In the control thread."""
        if message[0] == m.INTERRUPT:
            self._unheard.add(message[1])
            self._loop.call_soon_threadsafe(self._cancel, message[1])

    def _cancel(self, seq: int) -> None:
        self._unheard.discard(seq)
        entry = self._tasks.get(seq)
        if entry is None:
            self._calls.cancel(seq)
            if seq > self._last:  # the control stream was faster than the data stream
                self._cancelled.add(seq)
            return
        task, current = entry
        self._cancelled.discard(seq)
        if not current.cancelled:
            current.cancelled = True
            task.cancel()
            # One that has not taken its first step ends before ``_run`` can say so.
            task.add_done_callback(lambda _task: self._answer_cancelled(seq))

    def _answer_cancelled(self, seq: int) -> None:
        if self._tasks.pop(seq, None) is not None:
            self._answer((m.FAILED, seq, None, False, 0.0))


def _is_coroutine(function: Any) -> bool:
    if isinstance(function, types.MethodType):
        function = function.__func__
    function = getattr(function, "__wrapped__", function)  # a decorator that passes it on
    code = getattr(function, "__code__", None)
    marked = getattr(function, "_is_coroutine_marker", None)
    return marked is not None or (code is not None and bool(code.co_flags & _COROUTINE))
