"""One worker as the driver sees it: its streams, its life, and every way it can end.

::

    order to the zygote --> STARTING --READY message--> serving --+--> gone
                               |                                  |
                               +------------- dies ---------------+

A worker can end because it was told to (its streams are closed), because it crashed, because it
closed or garbled its data stream, or because it was killed.  Whichever sign comes first - the
end of the data stream, the pidfd, the zygote's report - starts the same short procedure, once:
what the worker had sent is read to the last byte (a result that was sent counts), its output is
drained, a process that is still alive is killed, and the zygote's word about how it ended is
awaited for a moment, because it makes the better error.  Then the loom is told.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from asyncio import AbstractEventLoop, TimerHandle
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

from taskloom._core.node import WorkerRecord
from taskloom._core.streams import Stream
from taskloom._pool.transport import Channel
from taskloom._pool.worker_output import OutputPipe
from taskloom._spec import TaskSpec
from taskloom._store.extents import Extents
from taskloom._wire.frames import Message
from taskloom._wire.known import Known

STATUS_WAIT_S: Final = 0.5
"""How long the zygote's word about an end is awaited."""


class Owner(Protocol):
    """What a worker process needs of the engine."""

    def on_batch(self, worker: WorkerProcess, batch: list[Message]) -> None: ...
    def on_worker_gone(self, worker: WorkerProcess) -> None: ...
    def on_line(self, worker: WorkerProcess, stream: int, speaker: str, line: str) -> None: ...


class WorkerProcess:
    """One worker; made before it exists, as an order to the zygote.

    ``slot`` is where in the shared page it notes what it has begun; ``theirs`` are the
    descriptors the worker gets: data, control, stdout, stderr.
    """

    def __init__(self, record: WorkerRecord, slot: int, owner: Owner) -> None:
        self.record = record
        self.slot = slot
        self.pid = 0
        self.known = Known()
        self.specs: OrderedDict[int, TaskSpec] = OrderedDict()  # what it submits, by its numbers
        self.functions: dict[bytes, bytes] = {}
        self.posted: list[Message] = []
        self.streams: dict[int, Stream] = {}  # that it consumes, by the keys of their outputs
        self.granted = Extents()  # space in the store that it has not written to yet
        self.pins: dict[int, tuple[Any, int]] = {}  # stored values it looks at, how often sent
        self.told = 0  # how often it was told to stop or to give back something
        self.idle_since = 0.0
        self.active_at = 0.0  # when it last said or was told something
        self.status: int | None = None  # as waitpid gives it
        self.stopping = False
        self.fate = ""  # how it ended, where the zygote cannot say
        self.fork_error = ""  # why there never was a process
        self.zygote_ended = False
        self.killed_because = ""
        self.on_end: Callable[[], object] = lambda: None  # called once it is gone
        self._owner = owner
        self._loop: AbstractEventLoop | None = None
        self._pidfd = -1
        self._ending = False
        self._dead = False  # said the pidfd
        self._gone = False
        self._status_timer: TimerHandle | None = None
        self._start_timer: TimerHandle | None = None
        with contextlib.ExitStack() as opened:  # all or nothing: descriptors may run out
            data, their_data = socket.socketpair()
            opened.callback(data.close)
            opened.callback(their_data.close)
            control, their_control = socket.socketpair()
            opened.callback(control.close)
            opened.callback(their_control.close)
            out, their_out = os.pipe()
            opened.callback(os.close, out)
            opened.callback(os.close, their_out)
            err, their_err = os.pipe()
            opened.pop_all()
        on_batch = partial(owner.on_batch, self)
        self.data = Channel(data, on_batch, self._on_data_end)
        self.control = Channel(control, on_batch, lambda _why: None)
        self.data.on_lent = self.control.on_lent = self._pin
        self._outputs = [OutputPipe(fd, self._line_printer(n)) for n, fd in ((1, out), (2, err))]
        self._talking = select.poll()
        for pipe in self._outputs:
            self._talking.register(pipe.fd, select.POLLIN)
        self._their_sockets = (their_data, their_control)
        self._their_pipes = (their_out, their_err)

    @property
    def theirs(self) -> list[int]:
        return [*(sock.fileno() for sock in self._their_sockets), *self._their_pipes]

    def close_theirs(self) -> None:
        """The descriptors are on their way: our copies go, so that we notice the end."""
        for sock in self._their_sockets:
            sock.close()
        for fd in self._their_pipes:
            os.close(fd)
        self._their_sockets, self._their_pipes = (), ()  # type: ignore[assignment]

    def attach(self, loop: AbstractEventLoop) -> None:
        """Start to listen."""
        self._loop = loop
        self.idle_since = loop.time()
        self.data.attach(loop)
        self.control.attach(loop)
        for pipe in self._outputs:
            loop.add_reader(pipe.fd, self._on_output, pipe)

    def on_started(self, pid: int, pidfd: int, timeout_s: float) -> None:
        """The zygote has forked it; it must be ready in ``timeout_s``."""
        self.pid = pid
        self._pidfd = pidfd
        assert self._loop is not None
        if pidfd >= 0 and not self._gone:
            self._loop.add_reader(pidfd, self._on_pidfd)
        if not self.record.ready:
            self._start_timer = self._loop.call_later(timeout_s, self._end_late_start, timeout_s)

    def on_ready(self) -> None:
        """It has said that it is."""
        if self._start_timer is not None:
            self._start_timer.cancel()
            self._start_timer = None

    def on_ended(self, status: int) -> None:
        """The zygote has reaped it."""
        self.status = status
        self._begin_end()
        self._finish_end()

    def on_fork_failed(self, number: int) -> None:
        """The zygote could not make it."""
        self.fork_error = f"fork: {os.strerror(number)}"
        if number == errno.EAGAIN:
            self.fork_error += " (a limit of processes: RLIMIT_NPROC, or pids.max of a container)"
        self.fate = f"could not be made: {self.fork_error}"
        self.on_ended(0)

    # -- traffic ------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what was posted, in one batch."""
        if self.posted:
            messages, self.posted = self.posted, []
            self.data.send(messages)

    def _pin(self, stored: list[Any]) -> None:
        for value in stored:
            _, count = self.pins.get(value.pin, (None, 0))
            self.pins[value.pin] = value, count + 1
            value.pinned += 1

    def unpin(self, pins: list[int]) -> None:
        """The worker is through with stored values it was sent."""
        for pin in pins:
            value, count = self.pins[pin]
            value.pinned -= 1
            if count > 1:
                self.pins[pin] = value, count - 1
            else:
                del self.pins[pin]

    def unpin_all(self) -> None:
        """It is gone."""
        for value, count in self.pins.values():
            value.pinned -= count
        self.pins.clear()

    def drain_output(self) -> None:
        """Bring home what was printed so far: it goes before the results (LOG-3)."""
        # One question to the kernel for both pipes: two ioctls cost 6 us where this costs 1.
        if self._talking.poll(0):
            for pipe in self._outputs:
                pipe.drain()
        for pipe in self._outputs:
            if pipe.rest:
                pipe.flush()

    def last_error_lines(self) -> list[str]:
        """The end of its stderr, for errors that explain."""
        return list(self._outputs[1].last_lines)

    def _on_output(self, pipe: OutputPipe) -> None:
        if not pipe.read():
            self._close_output(pipe)

    def _line_printer(self, stream: int) -> Callable[[str, str], None]:
        return lambda speaker, line: self._owner.on_line(self, stream, speaker, line)

    def _close_output(self, pipe: OutputPipe) -> None:
        if pipe.fd >= 0:
            self._talking.unregister(pipe.fd)
            if self._loop is not None:
                self._loop.remove_reader(pipe.fd)
        pipe.close()

    # -- the end ------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask it to end by hanging up; it runs its exit handlers and is gone."""
        self.stopping = True
        self.data.close()
        self.control.close()

    def kill(self) -> None:
        """End it, and its process group, at once."""
        if self.pid and self.status is None:
            for end in (os.killpg, os.kill):
                try:
                    end(self.pid, signal.SIGKILL)
                except OSError:
                    pass  # it has ended, or has no group yet

    @property
    def is_dead(self) -> bool:
        """Whether it is certain that it does nothing any more."""
        return self._dead or self.status is not None

    def _on_data_end(self, _why: str) -> None:
        self._begin_end()

    def _on_pidfd(self) -> None:
        assert self._loop is not None
        self._loop.remove_reader(self._pidfd)
        self._dead = True
        self._begin_end()
        if self.zygote_ended:
            self._finish_end()

    def on_zygote_ended(self, how: str) -> None:
        """Its parent has died, and with it every hope for an exit status."""
        self.zygote_ended = True
        self.fate = (
            self.fate or f"ended together with the process that starts workers, which {how},"
        )
        self._begin_end()
        if self._pidfd < 0 or self.is_dead:
            self._finish_end()  # else the pidfd says when it has

    def _end_late_start(self, seconds: float) -> None:
        self.fate = f"was not ready after {seconds:g} s"
        self.kill()

    def _begin_end(self) -> None:
        if self._ending:
            return
        self._ending = True
        while self.data.receive():
            pass  # a result that was sent counts
        self.kill()
        assert self._loop is not None
        self._status_timer = self._loop.call_later(STATUS_WAIT_S, self._finish_end)

    def _finish_end(self) -> None:
        if self._gone:
            return
        while self.data.receive():
            pass  # what it sent after the first sign
        self._gone = True
        if self._pidfd >= 0 and not self._dead:
            exited = select.poll()
            exited.register(self._pidfd, select.POLLIN)
            self._dead = bool(exited.poll(0))
        self.drain_output()
        self.close()
        self._owner.on_worker_gone(self)

    def close(self) -> None:
        """Let go of everything that belongs to it in this process."""
        self._gone = self._ending = True
        self.on_ready()  # no timer stays
        self.on_end()
        if self._status_timer is not None:
            self._status_timer.cancel()
        self.close_theirs()
        self.data.close()
        self.control.close()
        for pipe in self._outputs:
            self._close_output(pipe)
        if self._pidfd >= 0:
            if self._loop is not None:
                self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def close_fds_after_fork(self) -> None:
        """In a forked child of the driver: our copies of the descriptors go."""
        self.data.close_fd()
        self.control.close_fd()
        for fd in (self._pidfd, *(pipe.fd for pipe in self._outputs)):
            if fd >= 0:
                os.close(fd)

    def was_killed(self) -> bool:
        """By SIGKILL, and not by us."""
        killed = self.status is not None and os.WIFSIGNALED(self.status)
        return killed and not self.fate and os.WTERMSIG(self.status or 0) == signal.SIGKILL

    def how_it_ended(self) -> str:
        """For errors: "was killed by SIGSEGV", "exited with code 3"."""
        if self.fate:
            return self.fate
        if self.status is None:
            return "ended (nobody saw how)"
        how = told(os.waitstatus_to_exitcode(self.status))
        return f"{how} ({self.killed_because})" if self.killed_because else how


def told(code: int) -> str:
    """An exit code, or a signal's number with a minus, in words."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"
