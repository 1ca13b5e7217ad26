"""The pool: which workers there are, how new ones are started, when idle ones go.

It grows when the loom asks, shrinks when workers have been idle for a while, and gives up with
an error - never in a fork storm - when workers cannot be started at all.
"""

from __future__ import annotations

import mmap
import os
from asyncio import AbstractEventLoop, TimerHandle
from typing import Any, Final, Protocol

from taskloom._config import Config
from taskloom._core.node import WorkerKind, WorkerRecord
from taskloom._machine import usable_cpus
from taskloom._pool.process import Owner, WorkerProcess
from taskloom._pool.starts import FailedStarts
from taskloom._pool.zygote_handle import ZygoteHandle
from taskloom._pool.zygote_process import Surroundings, ZygoteProcess
from taskloom._store.arena import Arena, anonymous_file
from taskloom._wire.frames import Message
from taskloom._wire.zygote_orders import (
    ENDED,
    FORK_FAILED,
    PAGE_BYTES,
    READY,
    SLOT_BYTES,
    STARTED,
    STARTED_AT,
    STARTED_SEQ,
    TOLD,
    started_at_offset,
    started_offset,
    told_offset,
)

MAX_LINES_TOLD: Final = 20
RETRY_S: Final = 0.2
"""How long to wait before another worker is tried when descriptors or processes had run out."""
RETRY_LATER_S: Final = 2.0
"""The same when workers were started and did not live."""


class PoolOwner(Owner, Protocol):
    @property
    def loom(self) -> Any: ...
    def on_cannot_start(self, text: str) -> None: ...
    def on_shortage(self, text: str) -> None: ...
    def settle(self) -> None: ...
    def recall(self) -> None: ...


class Pool:
    """All workers of a session.

    Args:
        config: of the session.
        facts: what the zygote is told.
        surroundings: what workers take over from the driver.
        arena: the memory they share.
        owner: the engine.
    """

    def __init__(
        self,
        config: Config,
        facts: dict[str, Any],
        surroundings: Surroundings,
        arena: Arena,
        owner: PoolOwner,
    ) -> None:
        self._arena = arena
        self._config = config
        self._facts = facts
        self._surroundings = surroundings
        self._owner = owner
        self._loop: AbstractEventLoop | None = None
        self._zygote: ZygoteHandle | None = None
        self._next_number = 1  # 0 is the driver
        self._starting: dict[WorkerKind, int] = dict.fromkeys(WorkerKind, 0)
        self._failed_starts = FailedStarts()
        self._begun_by_gone = 0  # tasks that workers had begun which are gone
        self._closed = False
        self.shortage = ""  # why no worker can be started for now
        self._told_shortage = False
        self.greetings: dict[str, Message] = {}  # the first words to every worker that starts
        self._gave_up = False  # workers cannot be started in this session
        self._zygote_timer: TimerHandle | None = None
        self.by_number: dict[int, WorkerProcess] = {}
        self._free_slots = list(range(PAGE_BYTES // SLOT_BYTES))
        self._page_fd = anonymous_file("taskloom-started", PAGE_BYTES)
        try:
            self._page = mmap.mmap(self._page_fd, PAGE_BYTES)
        except OSError:  # it needs a descriptor of its own, and they may have run out
            os.close(self._page_fd)
            raise

    # -- starting -----------------------------------------------------------------------------

    def start_zygote(self, process: ZygoteProcess | None = None) -> None:
        """Have a zygote at work: ``process``, or a new one.

        Raises:
            OSError: there is no descriptor or process left for it.
        """
        facts = dict(
            self._facts,
            page_bytes=PAGE_BYTES,
            arena_bytes=self._arena.size,
            driver_pid=os.getpid(),
            cpus=usable_cpus(),
        )
        fds = (self._page_fd, self._arena.fd)
        self._zygote = ZygoteHandle(process or ZygoteProcess(self._surroundings), facts, fds)
        if self._loop is not None:
            self._watch_zygote(self._loop)

    def attach(self, loop: AbstractEventLoop) -> None:
        """Start to listen, also to the workers that were ordered before."""
        self._loop = loop
        self._watch_zygote(loop)
        for worker in self.by_number.values():
            worker.attach(loop)
        if self._config.idle_worker_timeout is not None:
            loop.call_later(self._config.idle_worker_timeout, self._retire_idle)

    def _watch_zygote(self, loop: AbstractEventLoop) -> None:
        zygote = self._zygote
        assert zygote is not None
        zygote.attach(loop, self._on_report, self._on_zygote_end)
        timeout_s = self._config.worker_start_timeout
        self._zygote_timer = loop.call_later(timeout_s, zygote.end_late_start, timeout_s)

    def start_workers(self, kind: WorkerKind, count: int) -> None:
        """Have ``count`` workers of a kind on their way; those that are already count."""
        for _ in range(count - self._starting[kind]):
            self._start_worker(kind)

    def _start_worker(self, kind: WorkerKind) -> None:
        if self._gave_up or self._zygote is None or self.shortage:
            return
        number = self._next_number
        self._next_number += 1
        try:
            worker = WorkerProcess(WorkerRecord(number, kind), self._free_slots[-1], self._owner)
        except OSError as error:
            if not self._go_on(f"{error}"):
                self._owner.on_cannot_start(f"no descriptors for a worker: {error}")
            return
        worker.posted.extend(self.greetings.values())
        STARTED_SEQ.pack_into(self._page, started_offset(worker.slot), 0)
        TOLD.pack_into(self._page, told_offset(worker.slot), 0)
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

    def _go_on(self, why: str, retry_s: float = RETRY_S) -> bool:
        """Go on with the workers there are, and try again later; False when there are none."""
        if self._loop is None or not any(not w.stopping for w in self.by_number.values()):
            return False
        if not self.shortage:
            self._loop.call_later(retry_s, self._retry)
        self.shortage = why
        # Not now: the loom may be in the middle of a pass.
        self._loop.call_soon(self._look_without_hope)
        if not self._told_shortage:
            self._told_shortage = True
            self._owner.on_shortage(why)
        return True

    def _look_without_hope(self) -> None:
        """Nobody may wait for ever for a worker; who comes later waits for the next try first."""
        if self.by_number and not self._closed:  # else whoever counts the failed starts decides
            self._owner.loom.on_shortage()
            self._owner.settle()
            self._owner.loom.on_shortage(over=True)

    def _retry(self) -> None:
        self.shortage = ""
        if not self._closed:
            self._owner.settle()

    def on_ready(self, worker: WorkerProcess) -> None:
        self._starting[worker.record.kind] -= 1
        worker.on_ready()

    # -- ending -------------------------------------------------------------------------------

    def on_gone(self, worker: WorkerProcess) -> None:
        """A worker has ended, one way or the other."""
        begun = self.started_seq(worker)
        self._begun_by_gone += begun
        if self.by_number.pop(worker.record.number, None) is not None:
            self._free_slots.append(worker.slot)
        record = worker.record
        if not record.ready:
            self._starting[record.kind] -= 1
        elif begun or not record.seq:
            return  # it has worked, or was there for nothing
        if worker.stopping or worker.zygote_ended:
            return  # it could have been started
        if worker.fork_error and self._go_on(worker.fork_error):
            return
        killed = worker.was_killed()
        if self._failed_starts.add(self._tasks_begun(), killed=killed) and not self._gave_up:
            how = worker.how_it_ended()
            if any(map(self._has_worked, self.by_number.values())) and self._go_on(
                f"the last one {how}", RETRY_LATER_S
            ):
                return
            self._gave_up = True
            lines = "\n  ".join(worker.last_error_lines()[-MAX_LINES_TOLD:])
            self._owner.on_cannot_start(
                f"{self._failed_starts.count} workers in a row could not be started; the last "
                f"one {how}; its stderr:\n  {lines}"
            )

    def _has_worked(self, worker: WorkerProcess) -> bool:
        return not worker.stopping and self.started_seq(worker) > 0

    def _tasks_begun(self) -> int:
        return self._begun_by_gone + sum(map(self.started_seq, self.by_number.values()))

    def started_seq(self, worker: WorkerProcess) -> int:
        """The ``seq`` of the last task the worker has begun."""
        seq: int = STARTED_SEQ.unpack_from(self._page, started_offset(worker.slot))[0]
        return seq

    def note_told(self, worker: WorkerProcess) -> int:
        """Have a worker listen before it begins anything; the number to send with the message."""
        worker.told += 1
        TOLD.pack_into(self._page, told_offset(worker.slot), worker.told)
        return worker.told

    def began(self, worker: WorkerProcess, seq: int) -> float | None:
        """When a process worker began the task it has begun last, by ``time.monotonic()``.

        None when that is not ``seq``; of no use when that task has no time limit.
        """
        if self.started_seq(worker) != seq:
            return None
        when: float = STARTED_AT.unpack_from(self._page, started_at_offset(worker.slot))[0]
        return when

    def speaker_name(self, worker: WorkerProcess, marked: str) -> str:
        """Who wrote a line: the only task that is there, else the one that marked its output.

        C code and grandchildren write without a mark.
        """
        inflight = worker.record.inflight
        actor = worker.record.actor
        if actor is not None:
            return marked or actor.facts.class_name
        if marked and len(inflight) != 1:
            return marked
        node = inflight.get(self.started_seq(worker))
        return node.spec.name if node is not None else marked or "worker"

    def close(self) -> None:
        """End all workers and the zygote; nothing is left on return."""
        self._closed = True
        self._stop_zygote_timer()
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

    def _stop_zygote_timer(self) -> None:
        if self._zygote_timer is not None:
            self._zygote_timer.cancel()
            self._zygote_timer = None

    def close_fds_after_fork(self) -> None:
        """In a forked child of the driver: see ``Engine``."""
        for worker in self.by_number.values():
            worker.close_fds_after_fork()
        if self._zygote is not None:
            self._zygote.close_fds_after_fork()

    # -- events -------------------------------------------------------------------------------

    def _on_report(self, what: int, number: int, value: int, pidfd: int) -> None:
        worker = self.by_number.get(number)
        if what == READY:
            self._stop_zygote_timer()
        elif worker is None:
            if pidfd >= 0:
                os.close(pidfd)
        elif what == STARTED:
            worker.on_started(value, pidfd, self._config.worker_start_timeout)
        elif what == ENDED:
            worker.on_ended(value)
        elif what == FORK_FAILED:
            worker.on_fork_failed(value)

    def _on_zygote_end(self) -> None:
        """The zygote has died: its workers die with it; try another one, but not for ever."""
        if self._closed:
            return
        assert self._zygote is not None
        zygote, self._zygote = self._zygote, None
        errors = zygote.close()
        how = zygote.how_it_ended()
        # What it says while it imports will be said the next time, too.
        hopeless = not zygote.ready and bool(errors)
        if self._failed_starts.add(self._tasks_begun()) or hopeless:
            self._give_up(
                f"the process that starts workers {how}:\n  {errors or 'it said nothing'}"
            )
        else:
            try:
                self.start_zygote()
            except OSError as error:  # no descriptor, no process
                self._give_up(f"the process that starts workers {how}, and no other one: {error}")
        for worker in list(self.by_number.values()):
            worker.on_zygote_ended(how)
        self._owner.settle()

    def _give_up(self, why: str) -> None:
        self._gave_up = True
        self._owner.on_cannot_start(why)

    def _retire_idle(self) -> None:
        """Hang up on workers that nobody has needed for a while."""
        timeout_s = self._config.idle_worker_timeout
        assert self._loop is not None
        assert timeout_s is not None
        now = self._loop.time()
        self._owner.recall()
        for worker in list(self.by_number.values()):
            record = worker.record
            idle = record.ready and not record.load and not record.pending_requests
            idle = idle and record.actor is None and record.number in self._owner.loom.workers
            if idle and not record.borrowed and now - worker.idle_since >= timeout_s:
                self._owner.loom.on_worker_retired(record)
                worker.stop()
        self._owner.settle()
        if not self._closed:
            self._loop.call_later(max(timeout_s, 0.05), self._retire_idle)
