"""The zygote as an operating-system process: made before anybody needs it, and closed.

Loads little: a session starts it while the engine is still being loaded (``backends/local_start``).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import warnings
from dataclasses import dataclass
from typing import Final

STOP_S: Final = 2.0
"""How long the zygote may take to end all workers and itself."""

_START: Final = (
    "import sys; sys.path[:] = {path!r}; from taskloom._worker.zygote import main; main({fd})"
)


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


class ZygoteProcess:
    """The process, our end of its socket, and what it prints.

    It must be made by a thread that lives as long as the session: the kernel ties the death
    signal of a child to the thread that made it.

    Args:
        surroundings: the driver's, when the session began.

    Raises:
        OSError: there is no descriptor or process left for it.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        with contextlib.ExitStack() as opened:  # all or nothing: descriptors may run out
            self.sock, theirs = socket.socketpair()
            opened.callback(self.sock.close)
            with theirs:
                self.errors_fd, their_errors = os.pipe()
                opened.callback(os.close, self.errors_fd)
                os.set_blocking(self.errors_fd, False)
                try:
                    self._process = _start(surroundings, theirs.fileno(), their_errors)
                finally:
                    os.close(their_errors)
            opened.pop_all()

    @property
    def exit_code(self) -> int:
        """As ``subprocess`` gives it, after :meth:`wait`."""
        return int(self._process.returncode)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        """Its socket is closed: it ends its workers and itself, or is killed."""
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End one that was never used."""
        self.sock.close()
        self.wait()
        os.close(self.errors_fd)


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
