"""The driver's end of the zygote: start it, order workers, hear how they ended."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import warnings
from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from taskloom._pool.process import told
from taskloom._wire.descriptors import receive
from taskloom._wire.zygote_orders import FACTS_HEAD, ORDER, READY, REPORT

MAX_SAID_BYTES: Final = 64 * 1024
STOP_S: Final = 2.0
"""How long the zygote may take to end all workers and itself."""

_START: Final = (
    "import sys; sys.path[:] = {path!r}; from taskloom._worker.zygote import main; main({fd})"
)

OnReport = Callable[[int, int, int, int], None]
"""what, worker number, pid or status, pidfd (-1: none)"""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What workers take over from the driver: as it was when ``init`` was called (REM-25)."""

    cwd: str
    path: list[str]
    environ: dict[str, str]

    @classmethod
    def of_this_process(cls) -> Surroundings:
        try:
            cwd = os.getcwd()
        except FileNotFoundError:
            warnings.warn(
                "the working directory has been deleted: workers start in /",
                RuntimeWarning,
                stacklevel=2,
            )
            cwd = "/"
        return cls(cwd, [str(entry) for entry in sys.path], dict(os.environ))


class ZygoteHandle:
    """The process from which workers are forked.

    It must be started from a thread that lives as long as the session: the kernel ties the
    death signal of a child to the thread that made it.

    Args:
        facts: sent to it, see ``_worker/zygote.py``.
        surroundings: the driver's, when the session began.
        shared_fds: descriptors of the page that workers write what they have started into, and
            of the arena of large values.
    """

    def __init__(
        self, facts: dict[str, Any], surroundings: Surroundings, shared_fds: tuple[int, int]
    ) -> None:
        self._loop: AbstractEventLoop | None = None
        self._on_report: OnReport = lambda *_: None
        self._on_end: Callable[[], None] = lambda: None
        self._said = b""
        self._fate = ""
        self.ready = False  # it has imported everything and takes orders
        with contextlib.ExitStack() as opened:  # all or nothing: descriptors may run out
            ours, theirs = socket.socketpair()
            opened.callback(ours.close)
            self._sock = ours
            with theirs:
                self._errors_fd, their_errors = os.pipe()
                opened.callback(os.close, self._errors_fd)
                os.set_blocking(self._errors_fd, False)
                try:
                    self._process = _start(surroundings, theirs.fileno(), their_errors)
                finally:
                    os.close(their_errors)
            opened.pop_all()
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
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
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
        how = told(self._process.returncode)
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


def _start(surroundings: Surroundings, fd: int, errors_fd: int) -> subprocess.Popen[bytes]:
    """Start the process; ``fd`` is its socket to the driver, ``errors_fd`` what it prints to."""
    # The interpreter's own flags: the workers' Python is the driver's.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return subprocess.Popen(
        [sys.executable, *flags, "-c", _START.format(path=surroundings.path, fd=fd)],
        cwd=surroundings.cwd,
        env=surroundings.environ,
        stdin=subprocess.DEVNULL,
        stdout=errors_fd,
        stderr=errors_fd,
        pass_fds=[fd],
        start_new_session=True,
    )
