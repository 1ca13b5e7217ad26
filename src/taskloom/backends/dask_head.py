"""What we keep at Dask's scheduler: notes that all processes of a session read, and attempts.

One plugin for each session.  It does four things that Dask itself has not:

- *Notes*: where published objects and named actors are, and what the workers must know of the
  session.
- *Attempts*: when a worker dies, Dask counts that against every task that it had been given, also
  against those that only waited there, and gives up after ``allowed-failures``, for all tasks
  alike.  We count for ourselves, against those that had begun.  The worker that gets such a task
  next is told, and does not run it when ``max_retries`` is used up.
- *Wishes*: a handle may arrive somewhere before the scheduler has heard of the task that it stands
  for, from the worker that has submitted it.  Dask forgets what somebody wants of a task that it
  does not know; here it is remembered.
- *Whereabouts*: which worker has a task now, for those who want its end.

Which tasks had begun: a worker says so when it begins one.  It says the end of a task no sooner
than it begins the next one, so of those that have begun only the last ones run, as many as it has
threads.  And it may die before what it has said has left: then what it would have begun next
counts as begun.  A task on its last attempt is careful: it begins when the scheduler has heard of
it.

A value that is lost with its worker is made again, as Dask does; not one of a task that must run
once.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Mapping
from functools import partial
from time import time
from typing import Any, Final

import distributed
from distributed.diagnostics.plugin import SchedulerPlugin

from taskloom._version import __version__

OURS: Final = "taskloom"
"""The annotation of our tasks."""
ONCE: Final = "taskloom_once"
"""The annotation of a task that must run once."""
CAREFUL: Final = "taskloom_careful"
"""The annotation of a task that begins when the scheduler has heard that it does."""
FREE: Final = "taskloom_free"
"""The annotation of a task that holds no thread of its worker."""
LOST: Final = "taskloom_lost"
"""The annotation of a task: how many attempts it has lost."""
WISH: Final = "taskloom-wish"
"""What a client says that has got a handle."""
_PATIENCE_S: Final = 10.0
"""How long a task may be unknown that somebody wants."""
_ON_ITS_WAY_S: Final = 1.0
"""How long a task may be unknown that somebody wants to end: it may be over and forgotten."""
_NEVER: Final = -(1 << 40)
"""Dask gives up when its own count of lost workers exceeds a limit; from here it never does."""


class _Worker:
    """What a worker has to do for us.

    Attributes:
        threads: how many it has.
        given: the keys of the tasks.
        begun: those of them that run, in order, or have run and are not known to have ended.
        suspects: once it is dead: those that have lost an attempt.
    """

    __slots__ = ("begun", "given", "suspects", "threads")

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.given: set[str] = set()
        self.begun: dict[str, None] = {}
        self.suspects: set[str] | None = None


class Head(SchedulerPlugin):  # type: ignore[misc]  # distributed is untyped
    """The plugin of a session.

    Args:
        session: its name, in hex digits.
        notes: what is known from the beginning.
    """

    def __init__(self, session: str, notes: Mapping[str, bytes]) -> None:
        self.name = plugin_name(session)
        self.notes = dict(notes)
        self._scheduler: Any = None
        self._seen: dict[str, int] = {}  # Dask's count of lost workers, by task
        self._workers: dict[str, _Worker] = {}
        self._where: dict[str, _Worker] = {}  # who has a task to do

    async def start(self, scheduler: Any) -> None:
        """Dask tells us where we are."""
        self._scheduler = scheduler
        scheduler.stream_handlers[WISH] = partial(_on_wish, scheduler)

    def update_graph(
        self, scheduler: Any, *, annotations: Mapping[str, Mapping[str, str]], **_more: Any
    ) -> None:
        """New tasks."""
        for key, session in annotations.get(OURS, {}).items():
            task = scheduler.tasks.get(key)
            if task is not None and session == self.name and key not in self._seen:
                task.suspicious = self._seen[key] = _NEVER
                for client in _wishes.pop(key, ()):
                    scheduler.client_desires_keys([key], client)

    def log_event(self, topic: str, msg: Any) -> None:
        """A worker tells that it has begun a task."""
        if topic == self.name and (worker := self._where.get(msg)) is not None:
            worker.begun[msg] = None

    def transition(self, key: str, start: str, finish: str, *_args: Any, **_more: Any) -> None:
        """A task changes its state."""
        if key not in self._seen:
            return
        if start == "memory" and finish == "released":
            # Its value is lost, and when somebody wants it, it is to run again.
            task = self._scheduler.tasks.get(key)
            if task is not None and ONCE in (task.annotations or {}):
                self._count(task)
        if finish == "processing":
            self._on_given(key)
        elif start == "processing":
            self._on_taken_away(key)
        if finish == "forgotten":
            del self._seen[key]

    def _on_given(self, key: str) -> None:
        at = self._scheduler.tasks[key].processing_on
        worker = self._workers.get(at.address)
        if worker is None:
            worker = self._workers[at.address] = _Worker(at.nthreads)
        worker.given.add(key)
        self._where[key] = worker

    def _on_taken_away(self, key: str) -> None:
        worker = self._where.pop(key, None)
        task = self._scheduler.tasks.get(key)
        if worker is None:
            return
        if task is not None and task.suspicious > self._seen[key]:
            self._seen[key] = task.suspicious
            if worker.suspects is None:
                worker.suspects = self._find_suspects(worker)
            if key in worker.suspects:
                self._count(task)
        worker.given.discard(key)
        worker.begun.pop(key, None)

    @staticmethod
    def _count(task: Any) -> None:
        """One attempt more is lost."""
        if task is not None:
            told = task.annotations or {}
            task.annotations = {**told, LOST: told.get(LOST, 0) + 1}

    def _find_suspects(self, worker: _Worker) -> set[str]:
        """What had begun when a worker died."""
        tasks = self._scheduler.tasks
        suspects: set[str] = set()
        in_threads: list[str] = []
        for key in worker.begun:
            told = (tasks[key].annotations if key in tasks else None) or {}
            if FREE in told or ONCE in told:
                suspects.add(key)
            if FREE not in told:
                in_threads.append(key)
        suspects.update(in_threads[-worker.threads :])
        not_begun = (tasks[key] for key in worker.given.difference(worker.begun) if key in tasks)
        waiting = sorted(
            (task for task in not_begun if FREE not in (task.annotations or {})),
            key=lambda task: task.priority,
        )
        free = max(worker.threads - len(in_threads), 0)
        return suspects | {task.key for task in waiting[:free]}

    def remove_worker(self, scheduler: Any, worker: str, **_more: Any) -> None:
        """A worker is gone, and so is what it had to do."""
        self._workers.pop(worker, None)


_wishes: Final[dict[str, set[str]]] = {}
"""Who wants what the scheduler does not know yet; {key: clients}, of all sessions."""


def _on_wish(scheduler: Any, key: str, client: str) -> None:
    """A process has got a handle."""
    if key in scheduler.tasks:
        scheduler.client_desires_keys([key], client)
        return
    _wishes.setdefault(key, set()).add(client)
    scheduler.loop.call_later(_PATIENCE_S, _give_up, scheduler, key, client)


def _give_up(scheduler: Any, key: str, client: str) -> None:
    waiting = _wishes.get(key, set())
    if client in waiting:
        waiting.discard(client)
        if not waiting:
            del _wishes[key]
        gone = {"op": "cancelled-keys", "keys": [key], "reason": "lost dependencies"}
        scheduler.report(gone, client=client)


def plugin_name(session: str) -> str:
    """How the plugins of a session are called."""
    return f"taskloom-{session}"


# -- what runs at the scheduler when it is asked --------------------------------------------------


def _head(scheduler: Any, session: str) -> Head | None:
    found: Head | None = scheduler.plugins.get(plugin_name(session))
    return found


def versions() -> tuple[str, str, str]:
    """Of taskloom, Dask and Python, where it is called."""
    return __version__, distributed.__version__, platform.python_version()


def write(
    session: str, name: str, value: bytes, *, fresh: bool, dask_scheduler: Any = None
) -> bool:
    """Leave a note; False: ``fresh``, and there is one of that name."""
    head = _head(dask_scheduler, session)
    if head is None or (fresh and name in head.notes):
        return False
    head.notes[name] = value
    return True


def begun(session: str, key: str, dask_scheduler: Any = None) -> None:
    """A worker begins a task, and waits until that is known here."""
    head = _head(dask_scheduler, session)
    if head is not None:
        head.log_event(head.name, key)


def read(session: str, name: str, dask_scheduler: Any = None) -> bytes | None:
    """A note."""
    head = _head(dask_scheduler, session)
    return None if head is None else head.notes.get(name)


def erase(session: str, name: str, dask_scheduler: Any = None) -> None:
    """Forget a note."""
    head = _head(dask_scheduler, session)
    if head is not None:
        head.notes.pop(name, None)


def names(session: str, prefix: str, dask_scheduler: Any = None) -> list[str]:
    """The notes whose names begin so."""
    head = _head(dask_scheduler, session)
    return [] if head is None else [name for name in head.notes if name.startswith(prefix)]


async def whereabouts(key: str, dask_scheduler: Any = None) -> str | None:
    """The address of the worker that has a task to do; None: it is with none."""
    await wait_for(key, dask_scheduler, _ON_ITS_WAY_S)
    task = dask_scheduler.tasks.get(key)
    worker = None if task is None else task.processing_on
    return None if worker is None else str(worker.address)


async def wait_for(key: str, dask_scheduler: Any = None, patience_s: float = _PATIENCE_S) -> None:
    """Wait until the scheduler has heard of a task that was submitted."""
    until = time() + patience_s
    # Dask tells nobody when it hears of a task; it is a matter of milliseconds.
    while key not in dask_scheduler.tasks and time() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def is_alive(key: str, dask_scheduler: Any = None) -> bool:
    """Whether an actor is there, or will be."""
    task = dask_scheduler.tasks.get(key)
    return task is not None and task.state != "erred"


def inventory(dask_scheduler: Any = None) -> list[tuple[str, str, Any, Any, Any]]:
    """The workers: (address, host, name, all that it has, what is free)."""
    found = []
    for worker in dask_scheduler.workers.values():
        busy = min(len(worker.processing) - len(worker.long_running), worker.nthreads)
        total = {"CPU": float(worker.nthreads), "memory": float(worker.memory_limit or 0)}
        total.update(worker.resources)
        free = {**total, "CPU": total["CPU"] - busy, "memory": total["memory"] - worker.nbytes}
        free.update({n: total[n] - worker.used_resources.get(n, 0) for n in worker.resources})
        found.append((worker.address, worker.host, worker.name, total, free))
    return found
