"""Runs the methods of an actor with ``max_concurrency`` or concurrency groups: in threads."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable
from contextvars import Context, ContextVar
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Final

from taskloom._wire import messages as m
from taskloom._wire.calls import decode_call
from taskloom._wire.context_vars import unpack_context
from taskloom._wire.frames import Message
from taskloom._wire.serialization import loads
from taskloom._worker.answers import answer_of, wants_retry
from taskloom._worker.environment import TaskEnvironment
from taskloom._worker.functions import Running, Spec
from taskloom._worker.link import DriverGone
from taskloom._worker.streaming import Writer, yields

if TYPE_CHECKING:
    from taskloom._worker.actor_host import ActorHost

running: Final[ContextVar[Running | None]] = ContextVar("taskloom running call", default=None)
"""The call that the code which asks belongs to."""


class Calls:
    """Calls that run in threads, and how they end.

    Args:
        host: whose they are.
    """

    def __init__(self, host: ActorHost) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._running: dict[int, Running] = {}
        self._threads: dict[int, int] = {}  # thread: the ``seq`` of its call
        host._link.seq_of_thread = self._seq_of_thread
        self._expected: set[int] = set()  # that have come and not begun
        self._last = 0  # the call that came last
        self._cancelled: set[int] = set()  # before they have begun
        self.settle: Callable[[Any], Any] = lambda value: value  # makes a value of a coroutine
        self._environment = TaskEnvironment()

    def _seq_of_thread(self) -> int:
        return self._threads.get(threading.get_ident(), 0)

    def expect(self, seq: int) -> None:
        """A call has come; :meth:`run` will be called for it."""
        with self._lock:
            self._last = seq
            self._expected.add(seq)

    def run(self, task: Message) -> None:
        """Run one call to its end, in the calling thread, and answer."""
        _, seq, key, attempt, number, payload, holes, fills, context_blob, accelerators = task
        host = self._host
        spec = host.functions.specs[number]
        current = Running(spec, key, seq, attempt, accelerators)
        host._link.heed()
        with self._lock:
            self._expected.discard(seq)
            if seq in self._cancelled:
                self._cancelled.discard(seq)
                self.answer((m.FAILED, seq, None, False, 0.0))
                return
            self._running[seq] = current
            self._threads[threading.get_ident()] = seq
            host._note_started(seq, False)
        if spec.timed:
            host._link.post_soon((m.BEGAN, seq, monotonic()))
        if spec.actor is not None:
            self._environment.enter(spec.threads, accelerators)
        start = perf_counter()
        leaves = False
        try:
            function = host.functions.get(spec)
            args, kwargs = decode_call(payload, holes, fills)
            context = unpack_context(context_blob, loads) if context_blob else Context()
            context.run(running.set, current)
            value = self.settle(context.run(function, *args, **kwargs))
            if yields(spec, value):
                writer = Writer(host._link, host._output, current, start)
                message = context.run(writer.drive, value)
            else:
                message = answer_of(seq, spec, value, start)
        except BaseException as error:
            message = self.failed(seq, spec, error, start)
            leaves = message[0] == m.LEAVING
        with self._lock:
            del self._running[seq], self._threads[threading.get_ident()]
        self.answer(message)
        if leaves:
            host.leave()

    def failed(self, seq: int, spec: Spec, error: BaseException, start: float) -> Message:
        """The answer of a call that raised."""
        why = self._host.reason_of_exit(error, spec)
        if why is not None:
            return (m.LEAVING, why)
        failure = self._host.failure(error, spec)
        return (m.FAILED, seq, failure, wants_retry(error, spec), perf_counter() - start)

    def answer(self, message: Message) -> None:
        host = self._host
        host._output.flush()
        host._link.post(message)
        host._link.flush()

    def cancel(self, seq: int) -> None:
        """Tell a call that it was cancelled, or see that it does not begin."""
        with self._lock:
            current = self._running.get(seq)
            if current is not None:
                current.cancelled = True
            elif seq in self._expected or seq > self._last:  # or it has just ended
                self._cancelled.add(seq)


class Crew:
    """Threads that run what they are given, as many as there is work for, at most ``size``."""

    def __init__(self, calls: Calls, size: int) -> None:
        self._calls = calls
        self._size = size
        self._tasks: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._lock = threading.Lock()

    def submit(self, task: Message) -> None:
        self._calls.expect(task[1])
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._threads < self._size:
                self._threads += 1
                threading.Thread(target=self._work, name="taskloom-method", daemon=True).start()
        self._tasks.put(task)

    def _work(self) -> None:
        try:
            while True:
                self._calls.run(self._tasks.get())
                with self._lock:
                    if self._tasks.empty():
                        self._idle += 1
        except DriverGone:
            pass  # the main thread hears it as well, and ends the process


class ActorThreads:
    """A crew for the methods; the main thread constructs, then only reads.

    One crew is enough for all concurrency groups: the driver sees to it that of each no more
    are here than it allows.
    """

    def __init__(self, host: ActorHost) -> None:
        self._host = host
        self._calls = Calls(host)
        facts = host.functions.facts
        assert facts is not None
        self._crew = Crew(self._calls, sum(size for _, size in facts.groups))
        self._stopping = False
        host._link.on_control = self._on_control
        host._link.current_seq = self._current_seq

    def current(self) -> Running | None:
        return running.get()

    def _current_seq(self) -> int:
        current = running.get()
        return current.seq if current is not None else 0

    def serve(self) -> None:
        link = self._host._link
        link.watch_for_quiet()
        while not self._stopping:
            if link.read():
                link.watch_for_quiet()
            else:  # nothing has come for a while: refs and arrays in forgotten cycles go
                gc.collect()
                link.flush()
        self._host.leave()

    def on_message(self, message: Message) -> None:
        if message[0] == m.STOP:
            self._stopping = True
        elif message[0] != m.RUN:
            self._host.functions.on_message(message)
        else:
            spec = self._host.functions.specs[message[4]]
            if spec.actor is not None:
                self._calls.run(message)
            else:
                self._crew.submit(message)

    def _on_control(self, message: Message) -> None:
        if message[0] == m.INTERRUPT:
            self._calls.cancel(message[1])
