"""The pool: which workers there are, how new ones are started, when idle ones go.

It grows when the loom asks, shrinks when workers have been idle for a while, and gives up with
an error - never in a fork storm - when workers cannot be started at all.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from asyncio import AbstractEventLoop
from typing import Any, Final, Protocol

from taskloom._config import Config
from taskloom._core.node import WorkerKind, WorkerRecord
from taskloom._pool.process import Owner, WorkerProcess
from taskloom._pool.zygote_handle import Surroundings, ZygoteHandle
from taskloom._wire.zygote_orders import (
    ENDED,
    FORK_FAILED,
    PAGE_BYTES,
    STARTED,
    STARTED_SEQ,
    started_offset,
)

MAX_FAILED_STARTS: Final = 5
"""Starts that may fail in a row before the session gives up."""


RETRY_S: Final = 0.2
"""How long to wait before another worker is tried when descriptors had run out."""


class PoolOwner(Owner, Protocol):
    @property
    def loom(self) -> Any: ...
    def on_cannot_start(self, text: str) -> None: ...
    def settle(self) -> None: ...


class Pool:
    """All workers of a session.

    Args:
        config: of the session.
        facts: what the zygote is told.
        surroundings: what workers take over from the driver.
        owner: the engine.
    """

    def __init__(
        self, config: Config, facts: dict[str, Any], surroundings: Surroundings, owner: PoolOwner
    ) -> None:
        self._config = config
        self._facts = facts
        self._surroundings = surroundings
        self._owner = owner
        self._loop: AbstractEventLoop | None = None
        self._zygote: ZygoteHandle | None = None
        self._next_number = 1  # 0 is the driver
        self._starting: dict[WorkerKind, int] = dict.fromkeys(WorkerKind, 0)
        self._failed_starts = 0
        self._closed = False
        self._retrying = False
        self.by_number: dict[int, WorkerProcess] = {}
        self._free_slots = list(range(PAGE_BYTES // STARTED_SEQ.size))
        self._page_fd = _anonymous_memory(PAGE_BYTES)
        self._page = mmap.mmap(self._page_fd, PAGE_BYTES)

    # -- starting -----------------------------------------------------------------------------

    def start_zygote(self) -> None:
        facts = dict(self._facts, page_bytes=PAGE_BYTES)
        self._zygote = ZygoteHandle(facts, self._surroundings, self._page_fd)
        if self._loop is not None:
            self._zygote.attach(self._loop, self._on_report, self._on_zygote_end)

    def attach(self, loop: AbstractEventLoop) -> None:
        """Start to listen, also to the workers that were ordered before."""
        self._loop = loop
        assert self._zygote is not None
        self._zygote.attach(loop, self._on_report, self._on_zygote_end)
        for worker in self.by_number.values():
            worker.attach(loop)
        if self._config.idle_worker_timeout is not None:
            loop.call_later(self._config.idle_worker_timeout, self._retire_idle)

    def start_workers(self, kind: WorkerKind, count: int) -> None:
        """Have ``count`` workers of a kind on their way; those that are already count."""
        for _ in range(count - self._starting[kind]):
            self._start_worker(kind)

    def _start_worker(self, kind: WorkerKind) -> None:
        assert self._zygote is not None
        number = self._next_number
        self._next_number += 1
        try:
            worker = WorkerProcess(WorkerRecord(number, kind), self._free_slots[-1], self._owner)
        except OSError as error:
            self._on_no_descriptors(error)
            return
        STARTED_SEQ.pack_into(self._page, started_offset(worker.slot), 0)
        if not self._zygote.order(number, int(kind), worker.slot, worker.theirs):
            worker.close()
            return  # the zygote has died: its end is on its way to us
        self._free_slots.pop()
        worker.close_theirs()
        self.by_number[number] = worker
        self._starting[kind] += 1
        self._owner.loom.on_worker_started(worker.record)
        if self._loop is not None:
            worker.attach(self._loop)

    def _on_no_descriptors(self, error: OSError) -> None:
        """Go on with the workers there are; somebody must be there to go on with."""
        if not any(worker.record.ready for worker in self.by_number.values()):
            self._owner.on_cannot_start(f"no descriptors for a worker: {error}")
        elif self._loop is not None and not self._retrying:
            self._retrying = True
            self._loop.call_later(RETRY_S, self._retry)

    def _retry(self) -> None:
        self._retrying = False
        self._owner.settle()

    def on_ready(self, worker: WorkerProcess) -> None:
        self._starting[worker.record.kind] -= 1
        self._failed_starts = 0

    # -- ending -------------------------------------------------------------------------------

    def on_gone(self, worker: WorkerProcess) -> None:
        """A worker has ended, one way or the other."""
        if self.by_number.pop(worker.record.number, None) is not None:
            self._free_slots.append(worker.slot)
        if worker.record.ready:
            return
        self._starting[worker.record.kind] -= 1
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            lines = "\n  ".join(worker.last_error_lines())
            self._owner.on_cannot_start(
                f"{self._failed_starts} workers in a row could not be started; the last one "
                f"{worker.how_it_ended()}; its stderr:\n  {lines}"
            )

    def started_seq(self, worker: WorkerProcess) -> int:
        """The ``seq`` of the last task the worker has begun."""
        seq: int = STARTED_SEQ.unpack_from(self._page, started_offset(worker.slot))[0]
        return seq

    def speaker_name(self, worker: WorkerProcess, marked: str) -> str:
        """Who wrote a line: the only task that is there, else the one that marked its output.

        C code and grandchildren write without a mark.
        """
        inflight = worker.record.inflight
        if marked and len(inflight) != 1:
            return marked
        node = inflight.get(self.started_seq(worker))
        return node.spec.name if node is not None else marked or "worker"

    def close(self) -> None:
        """End all workers and the zygote; nothing is left on return."""
        self._closed = True
        for worker in self.by_number.values():
            worker.stop()
        if self._zygote is not None:
            self._zygote.close()
        for worker in self.by_number.values():
            worker.drain_output()
            worker.close()
        self.by_number.clear()
        self._page.close()
        os.close(self._page_fd)

    def close_fds_after_fork(self) -> None:
        """In a forked child of the driver: see ``Engine``."""
        for worker in self.by_number.values():
            worker.close_fds_after_fork()
        if self._zygote is not None:
            self._zygote.close_fds_after_fork()

    # -- events -------------------------------------------------------------------------------

    def _on_report(self, what: int, number: int, value: int, pidfd: int) -> None:
        worker = self.by_number.get(number)
        if worker is None:
            if pidfd >= 0:
                os.close(pidfd)
        elif what == STARTED:
            worker.on_started(value, pidfd)
        elif what == ENDED:
            worker.on_ended(value)
        elif what == FORK_FAILED:
            worker.on_ended(value << 8)

    def _on_zygote_end(self) -> None:
        """The zygote has died: its workers die with it; try another one, but not for ever."""
        if self._closed:
            return
        assert self._zygote is not None
        self._failed_starts += 1
        zygote, self._zygote = self._zygote, None
        errors = zygote.close()
        if self._failed_starts >= MAX_FAILED_STARTS or errors:
            self._owner.on_cannot_start(
                f"the process that starts workers ended:\n  {errors or 'it said nothing'}"
            )
            return
        self.start_zygote()
        self._owner.settle()

    def _retire_idle(self) -> None:
        """Hang up on workers that nobody has needed for a while."""
        timeout_s = self._config.idle_worker_timeout
        assert self._loop is not None
        assert timeout_s is not None
        now = self._loop.time()
        for worker in list(self.by_number.values()):
            record = worker.record
            idle = record.ready and not record.inflight and not record.pending_requests
            if idle and not record.borrowed and now - worker.idle_since >= timeout_s:
                self._owner.loom.on_worker_retired(record)
                worker.stop()
        if not self._closed:
            self._loop.call_later(max(timeout_s, 0.05), self._retire_idle)


def _anonymous_memory(size: int) -> int:
    """A descriptor of shared memory without a name."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("taskloom-started", os.MFD_CLOEXEC)
    else:
        fd, path = tempfile.mkstemp(prefix="taskloom-")
        os.unlink(path)
    os.ftruncate(fd, size)
    return fd
