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
import os
import signal
import socket
from asyncio import AbstractEventLoop, TimerHandle
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from taskloom._core.node import WorkerRecord
from taskloom._pool.transport import Channel
from taskloom._pool.worker_output import OutputPipe
from taskloom._spec import TaskSpec
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
        self.idle_since = 0.0
        self.status: int | None = None  # as waitpid gives it
        self.stopping = False
        self._owner = owner
        self._loop: AbstractEventLoop | None = None
        self._pidfd = -1
        self._ending = False
        self._gone = False
        self._status_timer: TimerHandle | None = None
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
        self.data = Channel(data, self._on_batch, self._on_data_end)
        self.control = Channel(control, self._on_batch, lambda _why: None)
        self._outputs = [OutputPipe(fd, self._line_printer(n)) for n, fd in ((1, out), (2, err))]
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

    def on_started(self, pid: int, pidfd: int) -> None:
        """The zygote has forked it."""
        self.pid = pid
        self._pidfd = pidfd
        assert self._loop is not None
        if pidfd >= 0 and not self._gone:
            self._loop.add_reader(pidfd, self._on_pidfd)

    def on_ended(self, status: int) -> None:
        """The zygote has reaped it."""
        self.status = status
        self._begin_end()
        self._finish_end()

    # -- traffic ------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what was posted, in one batch."""
        if self.posted:
            messages, self.posted = self.posted, []
            self.data.send(messages)

    def drain_output(self) -> None:
        """Bring home what was printed so far: it goes before the results (LOG-3)."""
        for pipe in self._outputs:
            pipe.drain()
            pipe.flush()

    def last_error_lines(self) -> list[str]:
        """The end of its stderr, for errors that explain."""
        return list(self._outputs[1].last_lines)

    def _on_batch(self, batch: list[Message]) -> None:
        self._owner.on_batch(self, batch)

    def _on_output(self, pipe: OutputPipe) -> None:
        if not pipe.read():
            self._close_output(pipe)

    def _line_printer(self, stream: int) -> Callable[[str, str], None]:
        return lambda speaker, line: self._owner.on_line(self, stream, speaker, line)

    def _close_output(self, pipe: OutputPipe) -> None:
        if pipe.fd >= 0 and self._loop is not None:
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

    def _on_data_end(self, _why: str) -> None:
        self._begin_end()

    def _on_pidfd(self) -> None:
        assert self._loop is not None
        self._loop.remove_reader(self._pidfd)
        self._begin_end()

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
        self._gone = True
        self.drain_output()
        self.close()
        self._owner.on_worker_gone(self)

    def close(self) -> None:
        """Let go of everything that belongs to it in this process."""
        self._gone = self._ending = True
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

    def how_it_ended(self) -> str:
        """For errors: "was killed by SIGSEGV", "exited with code 3"."""
        if self.status is None:
            return "ended (nobody saw how)"
        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            try:
                name = signal.Signals(number).name
            except ValueError:
                name = f"signal {number}"
            return f"was killed by {name}"
        return f"exited with code {os.waitstatus_to_exitcode(self.status)}"
