"""The ping-pong: the shortest way from a plain thread to another process and back through a loop.

A thread appends to a deque and rings; a uvloop loop on a second thread wakes, sends 64 bytes over
a socketpair to one forked process, which answers with 64 bytes; the loop reads them and releases
the lock on which the first thread sleeps.  Nothing is pickled and there is no task.  An engine with
a loop of its own goes this way for every single ``get(f.remote())``, so its latency is measured
against it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import deque
from typing import NoReturn

from benchmarks.loops import new_event_loop
from benchmarks.processes import CpuMeter
from benchmarks.question import Answer, Metric, Question
from benchmarks.timing import percentile, verify

_SIZE = 64
_CALLS = 4_000
_WARM_UP_CALLS = 400


class PingPong:
    """One process, one loop, one caller at a time."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.fork()  # before there is a thread or a loop: a fork copies neither
        if not self._pid:
            ours.close()
            _answer(theirs)
        theirs.close()
        self._socket = ours
        self._inbox: deque[bytes] = deque()
        self._reply = b""
        self._answered = threading.Lock()
        self._answered.acquire()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop = new_event_loop()
        self._loop.add_reader(self._bell, self._on_ring)
        self._loop.add_reader(ours.fileno(), self._on_readable)
        self._thread = threading.Thread(target=self._loop.run_forever, name="ping-pong")
        self._thread.start()

    def call(self, message: bytes) -> bytes:
        """There and back; what came back."""
        self._inbox.append(message)
        os.eventfd_write(self._bell, 1)
        self._answered.acquire()
        return self._reply

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        os.close(self._bell)
        self._socket.close()
        os.waitpid(self._pid, 0)

    def _on_ring(self) -> None:
        os.eventfd_read(self._bell)
        self._socket.sendall(self._inbox.popleft())

    def _on_readable(self) -> None:
        self._reply = self._socket.recv(_SIZE)  # empty when the process has died: a wrong answer
        if not self._reply:
            self._loop.remove_reader(self._socket.fileno())
        self._answered.release()


def _answer(sock: socket.socket) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = 1
    try:
        while message := sock.recv(_SIZE):
            sock.sendall(message[::-1])
        code = 0
    finally:
        os._exit(code)  # nothing of the parent's may run in this copy of it


def ping_pong(_contender: str) -> Answer:
    clock = time.perf_counter
    message = bytes(range(_SIZE))
    wanted = message[::-1]
    game = PingPong()
    try:
        for _ in range(_WARM_UP_CALLS):
            verify("reply", game.call(message), wanted)
        replies, times_s = set(), []
        with CpuMeter() as cpu:
            for _ in range(_CALLS):
                started = clock()
                reply = game.call(message)
                times_s.append(clock() - started)
                replies.add(reply)
    finally:
        game.close()
    verify("replies", replies, {wanted})
    return {
        "p50": percentile(times_s, 50) * 1e6,
        "p99": percentile(times_s, 99) * 1e6,
        "cpu_us": cpu.seconds / _CALLS * 1e6,
    }


QUESTIONS = (
    Question(
        name="ping_pong",
        title="bare ping-pong: thread, uvloop loop, one process, and back",
        metrics=(
            Metric(name="p50", title="p50", unit="us"),
            Metric(name="p99", title="p99", unit="us"),
            Metric(name="cpu_us", title="CPU a call", unit="us", is_main=False),
        ),
        outside=ping_pong,
        only=("floor",),
    ),
)
