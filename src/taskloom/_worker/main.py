"""A worker process, from the fork to its end."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from time import monotonic
from typing import Any, Final

from taskloom import _current
from taskloom._store.arena import Arena
from taskloom._store.stored import process_store
from taskloom._wire.zygote_orders import (
    STARTED_AT,
    STARTED_SEQ,
    TOLD,
    started_at_offset,
    started_offset,
    told_offset,
)
from taskloom._worker.actor_host import ActorHost
from taskloom._worker.client import WorkerBackend
from taskloom._worker.ending import end_process
from taskloom._worker.executor import Executor
from taskloom._worker.link import DriverGone, Link
from taskloom._worker.output import Output

LOOP: Final = 1  # WorkerKind.LOOP, as it travels
ACTOR: Final = 2
PR_SET_PDEATHSIG: Final = 1
SWITCH_S: Final = 0.001
"""How soon a task that computes lets the control thread run.

Python's own 5 ms are as long as what stands behind a task may wait while another worker is idle.
"""


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
    told = memoryview(facts["page"])[told_offset(slot) :][: TOLD.size].cast("Q")
    link = Link(socket.socket(fileno=data_fd), socket.socket(fileno=control_fd), told)
    link.cpus = facts["cpus"]
    note_started = _started_writer(facts["page"], slot)
    if kind == LOOP:
        # A plain worker never needs asyncio, which is slow to load: only this kind does.
        loop_executor = import_module("taskloom._worker.loop_executor")
        running = loop_executor.running
        executor = loop_executor.LoopExecutor(link, output, note_started)
    elif kind == ACTOR:
        executor = ActorHost(link, output, note_started)
        running = executor.running
    else:
        executor = Executor(link, output, note_started)
        running = lambda: executor.running  # noqa: E731  # one line says it all
    arena = Arena(facts["arena_fd"], facts["arena_bytes"])
    backend = WorkerBackend(link, number, facts, running, arena)
    process_store.arena = arena
    process_store.finished = link.finish
    process_store.keep = backend.drafts.keep
    if kind == ACTOR:
        executor.on_identity = backend.become_actor
    _current.set_backend(backend)
    for entry in facts["worker_setup"]:
        module, _, function = entry.partition(":")
        getattr(import_module(module), function)()
    sys.setswitchinterval(SWITCH_S)
    link.start_control_thread()
    try:
        executor.run()
    except DriverGone:
        pass
    end_process(output)


def die_with_parent(parent_pid: int, number: int) -> None:
    """Have the kernel send this process a signal when the thread that made it ends.

    When it has ended already, this process ends here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent_pid:
            os._exit(1)


def _settle_process(zygote_pid: int) -> None:
    """A process group of its own, no signals of the zygote's, dead when the zygote dies."""
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _volunteer()
    die_with_parent(zygote_pid, signal.SIGKILL)


def _volunteer() -> None:
    """When memory runs out the kernel is to end a worker, never the driver."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        pass  # not on this system: the kernel chooses by itself


def _started_writer(page: mmap.mmap, slot: int) -> Callable[[int, bool], None]:
    """Writes the number of the last task begun where the driver can read it (see ``states``)."""
    offset, at_offset = started_offset(slot), started_at_offset(slot)
    # One machine word, and a third of the time of ``STARTED_SEQ.pack_into``.
    number = memoryview(page)[offset : offset + STARTED_SEQ.size].cast("Q")
    pack_time_into = STARTED_AT.pack_into

    def note(seq: int, timed: bool) -> None:
        if timed:  # first: who reads the number may rely on the time
            pack_time_into(page, at_offset, monotonic())
        number[0] = seq

    return note
