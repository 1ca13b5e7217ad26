"""Ends a worker before the kernel ends somebody: the driver, perhaps.

While tasks run, one timer looks every quarter of a second how much memory is in use, on the machine
and in the containers around this process.  Above the threshold the youngest worker whose tasks may
be tried again is ended (``_core/memory_victims``), and no other one until it is gone and its memory
with it.  A session in which nothing runs has no timer.

When the kernel was faster its counter says so: then, too, the task's error is OutOfMemoryError.
"""

from __future__ import annotations

import signal
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from taskloom._core.memory_victims import Candidate, MemoryRetries, pick_victim
from taskloom._core.node import Node, WorkerKind
from taskloom._core.reactor import Reactor
from taskloom._engine.memory_usage import Process, Usage, gib, tell_largest
from taskloom._memory_settings import MemorySettings
from taskloom._pool.process import WorkerProcess

HELPLESS_FACTOR: Final = 8
"""When ending a worker would not help, it is looked this much less often."""
NEAR_SHARE: Final = 0.8
"""From this use of memory on it is looked more often, and at what each worker holds."""
NEAR_FACTOR: Final = 5


class Workers(Protocol):
    """What the monitor needs of the pool."""

    @property
    def by_number(self) -> Mapping[int, WorkerProcess]: ...
    def started_seq(self, worker: WorkerProcess) -> int: ...


class Source(Protocol):
    """Where the figures come from: ``MemoryUsage``; tests have their own."""

    def read(self) -> Usage | None: ...
    def kernel_kills(self) -> int: ...
    def processes(self) -> list[Process]: ...
    def rss_bytes(self, pid: int) -> int: ...


class Cause(NamedTuple):
    """What memory had to do with a worker's end.

    ``is_memory``: it is the reason, and ``text`` says how.  Otherwise ``text`` is a remark for
    the error of the crash, mostly empty.
    """

    is_memory: bool
    text: str


class MemoryMonitor:
    """Of one session.

    Args:
        settings: when to act.
        loom: whose workers run what.
        workers: the pool.
        source: of the figures.
        tell: takes a line for the user when a worker is ended.
    """

    def __init__(
        self,
        settings: MemorySettings,
        loom: Reactor,
        workers: Workers,
        source: Source,
        tell: Callable[[str], None],
    ) -> None:
        self.source = source
        self.retries = MemoryRetries(settings.task_oom_retries)
        self._settings = settings
        self._loom = loom
        self._workers = workers
        self._tell = tell
        self._loop: AbstractEventLoop | None = None
        self.idle = True
        """No timer runs; the engine calls :meth:`begin` when it has sent something."""
        self._looks = 0
        self._seen: dict[int, dict[int, int]] = {}  # worker -> {seq: the first look that saw it}
        self._victim = 0  # the worker that was ended and is not gone yet
        self._evidence: dict[int, str] = {}  # why a worker was ended, by its number
        self._last: Usage | None = None
        self._rss: dict[int, int] = {}  # of the workers, when memory was last seen to be short
        self._kernel_kills = 0

    def attach(self, loop: AbstractEventLoop) -> None:
        """Be ready to look, on ``loop``."""
        self._loop = loop
        self._kernel_kills = self.source.kernel_kills()
        if not self._settings.refresh_s:
            self.idle = False  # so that nobody begins

    def begin(self) -> None:
        """Workers have got something: look until they have done it all."""
        self.idle = False
        self._again(self._settings.refresh_s)

    def _again(self, delay_s: float) -> None:
        assert self._loop is not None
        self._loop.call_later(delay_s, self._look)

    # -- looking ------------------------------------------------------------------------------

    def _look(self) -> None:
        self._looks += 1
        running = self._what_runs()
        # Not "no task has begun": one that was just sent is about to, and nobody would begin again.
        if not any(worker.load for worker in self._loom.workers.values()):
            self.idle = True
            self._last = None
            self._rss.clear()
            return
        self._last = usage = self.source.read()
        delay_s = self._settings.refresh_s
        if usage is not None and usage.share >= NEAR_SHARE:
            delay_s /= NEAR_FACTOR
            by_number = self._workers.by_number
            self._rss = {n: self.source.rss_bytes(by_number[n].pid) for n in running}
        if usage is not None and not self._victim:
            excess = usage.used_bytes - self._settings.usage_threshold * usage.limit_bytes
            if excess > 0 and not self._relieve(usage, int(excess), running):
                delay_s = self._settings.refresh_s * HELPLESS_FACTOR
        self._again(delay_s)

    def _what_runs(self) -> dict[int, tuple[Node, ...]]:
        """The tasks that would lose an attempt, by worker; since when is noted in ``_seen``."""
        running: dict[int, tuple[Node, ...]] = {}
        seen: dict[int, dict[int, int]] = {}
        for number, record in self._loom.workers.items():
            if not record.ready:
                continue
            if record.kind is WorkerKind.PROCESS and record.load:
                started = self._workers.started_seq(self._workers.by_number[number])
                node = record.node_at(started)
                inflight = {started: node} if node is not None else {}
            else:
                inflight = record.inflight
            seqs = list(inflight)
            running[number] = tuple(inflight.values())
            before = self._seen.get(number, {})
            seen[number] = {seq: before.get(seq, self._looks) for seq in seqs}
        self._seen = seen
        return running

    def _relieve(self, usage: Usage, excess: int, running: dict[int, tuple[Node, ...]]) -> bool:
        """End one worker; False when that would not help."""
        processes = self.source.processes()
        by_group: dict[int, list[Process]] = {}
        for process in processes:
            by_group.setdefault(process.group, []).append(process)
        candidates = []
        for number, nodes in running.items():
            # A worker leads its group: what its tasks have started ends with it.
            group = by_group.get(self._workers.by_number[number].pid, ())
            held = sum(process.held_bytes for process in group)
            since = min(self._seen[number].values(), default=self._looks)
            has_state = self._loom.workers[number].kind is WorkerKind.ACTOR
            candidates.append(Candidate(number, held, nodes, since, has_state))
        victim = pick_victim(candidates, excess, self.retries.may_retry)
        if victim is None:
            return False
        worker = self._workers.by_number[victim.number]
        names = self._names(running)
        rss = sum(process.rss_bytes for process in by_group.get(worker.pid, ()))
        self._victim = victim.number
        self._evidence[victim.number] = (
            f"it held {gib(rss)}, and {usage}, more than memory_usage_threshold="
            f"{self._settings.usage_threshold:g} allows; the largest processes:\n"
            + tell_largest(processes, names)
        )
        self._tell(
            f"taskloom: {usage}: worker {worker.pid} ({names[worker.pid]}), which held {gib(rss)}, "
            "is ended before the kernel ends somebody"
        )
        worker.kill()
        return True

    def _names(self, running: dict[int, tuple[Node, ...]]) -> dict[int, str]:
        names: dict[int, str] = {}
        for number, nodes in running.items():
            tasks = sorted({node.spec.name for node in nodes})
            what = f"runs {', '.join(tasks[:3])}" if tasks else "is idle"
            names[self._workers.by_number[number].pid] = f"a worker, {what}"
        return names

    # -- what a death means -------------------------------------------------------------------

    def cause_of_death(self, worker: WorkerProcess) -> Cause:
        """What memory had to do with a worker's end; to be asked once, when it is gone."""
        number, pid = worker.record.number, worker.pid
        if number == self._victim:
            self._victim = 0
        rss = self._rss.pop(number, 0)
        evidence = self._evidence.pop(number, None)
        if evidence is not None:
            text = f"worker {pid} was ended because memory was running out: {evidence}"
            return Cause(True, text)
        if worker.killed_because:  # by the engine, for a reason of its own
            return Cause(False, "")
        if worker.status != signal.SIGKILL:  # as waitpid gives it: the bare number, no core
            return Cause(False, "")
        seen = self._what_was_seen(rss)
        if not self._kernel_was_it():
            return Cause(False, f"{seen}: memory may be the reason" if seen else "")
        return Cause(
            True,
            f"worker {pid} was killed by the kernel because memory had run out{seen}; "
            "the largest processes now:\n" + tell_largest(self.source.processes(), {}),
        )

    def _what_was_seen(self, rss: int) -> str:
        """The last look before a death, as a clause; empty when there was none."""
        usage = self._last
        if usage is None or usage.share < NEAR_SHARE:
            return ""
        held = f"it held {gib(rss)}, and " if rss else ""
        return f"; shortly before, {held}{usage}"

    def _kernel_was_it(self) -> bool:
        """One more process has been killed for memory than the deaths that were explained so."""
        if self.source.kernel_kills() <= self._kernel_kills:
            return False
        self._kernel_kills += 1
        return True
