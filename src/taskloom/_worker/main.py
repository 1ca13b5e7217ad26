"""A worker process, from the fork to its end."""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from taskloom import _current
from taskloom._wire.zygote_orders import STARTED_SEQ, started_offset
from taskloom._worker.client import WorkerBackend
from taskloom._worker.executor import Executor
from taskloom._worker.link import DriverGone, Link
from taskloom._worker.output import Output

LOOP: Final = 1  # WorkerKind.LOOP, as it travels
PR_SET_PDEATHSIG: Final = 1


def serve(number: int, kind: int, slot: int, fds: tuple[int, ...], facts: dict[str, Any]) -> None:
    """Be worker ``number`` until the driver hangs up; never returns.

    Args:
        number: names this worker in its session.
        kind: of ``WorkerKind``.
        slot: where in the shared page it notes what it has begun.
        fds: data stream, control stream, stdout and stderr.
        facts: of the session; see ``zygote``.
    """
    data_fd, control_fd, out_fd, err_fd = fds
    _settle_process(facts["zygote_pid"])
    os.dup2(out_fd, 1)
    os.dup2(err_fd, 2)
    os.close(out_fd)
    os.close(err_fd)
    output = Output()
    output.install()
    faulthandler.enable(file=sys.stderr, all_threads=False)
    link = Link(socket.socket(fileno=data_fd), socket.socket(fileno=control_fd))
    note_started = _started_writer(facts["page"], slot)
    if kind == LOOP:
        # A plain worker never needs asyncio, which is slow to load: only this kind does.
        loop_executor = import_module("taskloom._worker.loop_executor")
        running = loop_executor.running
        executor = loop_executor.LoopExecutor(link, output, note_started)
    else:
        executor = Executor(link, output, note_started)
        running = lambda: executor.running  # noqa: E731  # one line says it all
    _current.set_backend(WorkerBackend(link, number, facts, running))
    for entry in facts["worker_setup"]:
        module, _, function = entry.partition(":")
        getattr(import_module(module), function)()
    link.start_control_thread()
    try:
        executor.run()
    except DriverGone:
        pass
    _end(output)


def _settle_process(zygote_pid: int) -> None:
    """A process group of its own, no signals of the zygote's, dead when the zygote dies."""
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != zygote_pid:
            os._exit(1)  # it died before the line above took effect


def _started_writer(page: mmap.mmap, slot: int) -> Callable[[int], None]:
    """Writes the number of the last task begun where the driver can read it (see ``states``)."""
    offset = started_offset(slot)
    pack_into = STARTED_SEQ.pack_into

    def note(seq: int) -> None:
        pack_into(page, offset, seq)

    return note


def _end(output: Output) -> None:
    """The ordinary end: exit handlers run, threads that tasks left behind are not waited for."""
    try:
        atexit._run_exitfuncs()
    except BaseException:  # an exit handler's error has nobody to go to but stderr
        sys.excepthook(*sys.exc_info())
    output.flush()
    os._exit(0)
