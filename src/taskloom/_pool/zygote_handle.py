"""The driver's end of the zygote: start it, order workers, hear how they ended."""

from __future__ import annotations

import os
import pickle
import socket
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any, Final

from taskloom._pool.process import told
from taskloom._pool.zygote_process import ZygoteProcess
from taskloom._wire.descriptors import receive
from taskloom._wire.zygote_orders import FACTS_HEAD, ORDER, READY, REPORT

MAX_SAID_BYTES: Final = 64 * 1024
OnReport = Callable[[int, int, int, int], None]
"""what, worker number, pid or status, pidfd (-1: none)"""


class ZygoteHandle:
    """The process from which workers are forked.

    Args:
        process: it has just been started.
        facts: sent to it, see ``_worker/zygote.py``.
        shared_fds: descriptors of the page that workers write what they have started into, and
            of the arena of large values.
    """

    def __init__(
        self, process: ZygoteProcess, facts: dict[str, Any], shared_fds: tuple[int, int]
    ) -> None:
        self._loop: AbstractEventLoop | None = None
        self._on_report: OnReport = lambda *_: None
        self._on_end: Callable[[], None] = lambda: None
        self._said = b""
        self._fate = ""
        self.ready = False  # it has imported everything and takes orders
        self._process = process
        self._errors_fd = process.errors_fd
        self._sock = ours = process.sock
        blob = pickle.dumps(facts)
        try:
            socket.send_fds(ours, [FACTS_HEAD.pack(len(blob))], list(shared_fds))
            ours.sendall(blob)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has died already: whoever listens will read that from the socket

    def attach(
        self, loop: AbstractEventLoop, on_report: OnReport, on_end: Callable[[], None]
    ) -> None:
        """Listen on ``loop``; ``on_end`` says that the zygote itself has died."""
        self._loop = loop
        self._on_report = on_report
        self._on_end = on_end
        self._sock.setblocking(False)
        loop.add_reader(self._sock.fileno(), self._on_readable)
        loop.add_reader(self._errors_fd, self._on_output)

    def order(self, number: int, kind: int, slot: int, fds: list[int]) -> bool:
        """Have a worker forked; False when the zygote is gone."""
        try:
            socket.send_fds(self._sock, [ORDER.pack(number, kind, slot)], fds)
        except OSError:
            return False
        return True

    def close(self) -> str:
        """Hang up, and wait until it has ended all workers and itself.

        Returns: what it has printed: nothing, unless something went wrong.
        """
        self.hang_up()
        if self._loop is not None:
            self._loop.remove_reader(self._errors_fd)
        self._process.wait()
        self._on_output()
        os.close(self._errors_fd)
        return self._said.decode(errors="replace")

    def end_late_start(self, seconds: float) -> None:
        """It is not ready yet, and is not waited for any longer."""
        self._fate = f"was not ready after {seconds:g} s"
        self._process.kill()

    def how_it_ended(self) -> str:
        """For errors, after :meth:`close`."""
        if self._fate:
            return self._fate
        how = told(self._process.exit_code)
        return how if self.ready else f"{how} before it was ready"

    def close_fds_after_fork(self) -> None:
        """In a forked child of the driver: our copies of the descriptors go."""
        self._sock.close()
        os.close(self._errors_fd)

    def hang_up(self) -> None:
        if self._loop is not None and self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _on_output(self) -> None:
        """Keep the end of what it says, and never let it wait for us."""
        try:
            self._said = (self._said + os.read(self._errors_fd, MAX_SAID_BYTES))[-MAX_SAID_BYTES:]
        except BlockingIOError:
            pass  # nothing more

    def _on_readable(self) -> None:
        while self._sock.fileno() >= 0:
            try:
                report, fds = receive(self._sock, REPORT.size, 1)
            except BlockingIOError:
                return
            except OSError:
                report, fds = b"", []
            if len(report) < REPORT.size:
                self.hang_up()
                self._on_end()
                return
            what, number, value = REPORT.unpack(report)
            self.ready = self.ready or what == READY
            self._on_report(what, number, value, fds[0] if fds else -1)
