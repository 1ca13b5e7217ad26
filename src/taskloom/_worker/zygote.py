"""The zygote: a small process with everything imported, from which workers are forked.

It has one thread, runs no user code but the imports of ``preload``, and does three things: fork
a worker when the driver asks, tell the driver when one has ended and how, and end them all when
the driver is gone.  It is the parent of all workers, so the host program never sees a SIGCHLD.

That the driver is gone it hears in two ways: its socket ends, or the kernel sends it the death
signal of the thread that started it.  A socket can be kept open by a process that somebody
forked from the driver in C; the signal cannot.  While modules are imported nobody reads the
socket, and the death signal kills at once.

The socket to the driver carries, downwards, one frame of facts and then fork orders with four
descriptors each; upwards fixed-size reports, those of a start with a pidfd.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import pickle
import select
import signal
import socket
import sys
import time
from importlib import import_module
from types import FrameType
from typing import Any, Final

from taskloom._wire.descriptors import receive
from taskloom._wire.zygote_orders import (
    ENDED,
    FACTS_HEAD,
    FORK_FAILED,
    ORDER,
    READY,
    REPORT,
    STARTED,
)
from taskloom._worker.main import die_with_parent, serve

GRACE_S: Final = 0.3
"""How long workers may take to end by themselves when the session ends."""


class Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, int] = {}  # pid -> worker number
        self._facts: dict[str, Any] = {}
        self._wake_read, self._wake_write = os.pipe()
        self._ending = False

    def run(self) -> None:
        self._facts = self._receive_facts()
        die_with_parent(self._facts["driver_pid"], signal.SIGKILL)
        self._prepare()
        die_with_parent(self._facts["driver_pid"], signal.SIGTERM)
        self._control.send(REPORT.pack(READY, 0, os.getpid()))
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        control = self._control.fileno()
        while True:
            for fd, _ in poller.poll():
                if fd != control:
                    os.read(self._wake_read, 4096)
                    self._reap()
                if self._ending or (fd == control and not self._take_order()):
                    self._end_all()
                    return

    # -- the start ----------------------------------------------------------------------------

    def _receive_facts(self) -> dict[str, Any]:
        """Read the facts and not one byte more: orders may follow at once."""
        head, fds = receive(self._control, FACTS_HEAD.size, 2)
        if len(head) < FACTS_HEAD.size:
            sys.exit(0)  # the driver has gone already
        length = FACTS_HEAD.unpack(head)[0]
        facts: dict[str, Any] = pickle.loads(self._control.recv(length, socket.MSG_WAITALL))
        facts["page"] = mmap.mmap(fds[0], facts["page_bytes"])
        facts["zygote_pid"] = os.getpid()
        os.close(fds[0])
        os.set_inheritable(fds[1], False)  # forked workers have it, what they execute has not
        facts["arena_fd"] = fds[1]
        return facts

    def _prepare(self) -> None:
        for name in self._facts["preload"]:
            import_module(name)
        _unbuffer_c_stdout()
        os.set_blocking(self._wake_write, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the host program may block some
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()  # what is here is shared with all workers: do not touch it again

    def _on_sigterm(self, _signum: int, _frame: FrameType | None) -> None:
        self._ending = True  # the wake-up descriptor ends the poll

    # -- orders and reports -------------------------------------------------------------------

    def _take_order(self) -> bool:
        """Fork what the driver ordered; False when he has hung up."""
        try:
            order, fds = receive(self._control, ORDER.size, 4)
        except OSError:
            return False
        if len(order) < ORDER.size:
            return False
        number, kind, slot = ORDER.unpack(order)
        for fd in fds:
            os.set_inheritable(fd, False)  # what a task executes must not keep them open
        try:
            pid = os.fork()
        except OSError as error:
            self._report(FORK_FAILED, number, error.errno or 0)
        else:
            if pid == 0:
                self._become_worker(number, kind, slot, tuple(fds))
            self._children[pid] = number
            self._report_start(number, pid)
        for fd in fds:
            os.close(fd)
        return True

    def _become_worker(self, number: int, kind: int, slot: int, fds: tuple[int, ...]) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            self._control.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            serve(number, kind, slot, fds, self._facts)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(status)

    def _report_start(self, number: int, pid: int) -> None:
        report = REPORT.pack(STARTED, number, pid)
        if not hasattr(os, "pidfd_open"):
            self._report(STARTED, number, pid)
            return
        pidfd = os.pidfd_open(pid)
        try:
            socket.send_fds(self._control, [report], [pidfd])
        except OSError:
            pass  # the driver is gone: the next read says so
        finally:
            os.close(pidfd)

    def _report(self, what: int, number: int, value: int) -> None:
        try:
            self._control.send(REPORT.pack(what, number, value))
        except OSError:
            pass  # as above

    def _reap(self) -> None:
        while self._children:
            pid = -1
            if hasattr(os, "waitid"):
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None:
                    return
                pid = ended.si_pid
                if pid in self._children:
                    # What its tasks have left in its process group goes with it.  As long as
                    # it is not waited for, no other group can have this number.
                    _kill_group(pid)
            pid, status = os.waitpid(pid, os.WNOHANG)
            if pid == 0:
                return
            number = self._children.pop(pid, None)
            if number is not None:
                self._report(ENDED, number, status)

    # -- the end ------------------------------------------------------------------------------

    def _end_all(self) -> None:
        """The driver is gone, one way or the other: nobody stays behind."""
        deadline = time.monotonic() + GRACE_S
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        while self._children and (left := deadline - time.monotonic()) > 0:
            if poller.poll(left * 1000):
                os.read(self._wake_read, 4096)
            self._reap()
        for pid in self._children:
            _kill_group(pid)
            os.kill(pid, signal.SIGKILL)  # it may have no group yet
        for pid in self._children:
            os.waitpid(pid, 0)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass  # nobody is left in it


def _unbuffer_c_stdout() -> None:
    """What C code prints goes out at once: nobody flushes C's buffers before a result."""
    try:
        libc = ctypes.CDLL(None)
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, 2, 0)  # 2 is _IONBF
    except (OSError, ValueError, AttributeError):
        pass  # another C library: its output may come late


def main(fd: int) -> None:
    """Entry point of the process; ``fd`` is the socket to the driver."""
    Zygote(socket.socket(fileno=fd)).run()
