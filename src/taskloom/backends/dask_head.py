"""What we keep at Dask's scheduler: notes that all processes of a session read, and attempts.

One plugin for each session.  It does four things that Dask itself has not:

- *Notes*: where published objects and named actors are, and what the workers must know of the
  session.
- *Attempts*: when a worker dies, Dask counts that against every task that it had been given, also
  against those that only waited there, and gives up after ``allowed-failures``, for all tasks
  alike.  We count for ourselves (below).  The worker that gets such a task next is told, and does
  not run it when ``max_retries`` is used up.
- *Wishes*: a handle may arrive somewhere before the scheduler has heard of the task that it stands
  for, from the worker that has submitted it.  Dask forgets what somebody wants of a task that it
  does not know; here it is remembered.
- *Whereabouts*: which worker has a task now, for those who want its end.

Which tasks had begun when a worker died?  Nobody knows: what a worker says leaves it some
milliseconds later, and the one that has killed it is as a rule the one that has just begun.  So the
first death counts against whatever the worker had been given: no task runs more often than it may,
and one that only waited there loses an attempt, once.  From then on a task is *careful*: it begins
when the scheduler has heard that it does, and says its end in the same way, so that a death counts
against it only when it runs.  A task on its last attempt is careful from the beginning, and one
with ``max_retries=0`` therefore always.

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
LOST: Final = "taskloom_lost"
"""The annotation of a task: how many attempts it has lost."""
WISH: Final = "taskloom-wish"
"""What a client says that has got a handle."""
_PATIENCE_S: Final = 10.0
"""How long a task may be unknown that somebody wants."""
_ON_ITS_WAY_S: Final = 1.0
"""How long to wait for a task that somebody wants to end, before they look whether it is over."""
_NEVER: Final = -(1 << 40)
"""Dask gives up when its own count of lost workers exceeds a limit; from here it never does."""


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
        self._running: dict[str, str] = {}  # careful tasks that have begun; the worker of each

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

    def transition(self, key: str, start: str, finish: str, *_args: Any, **_more: Any) -> None:
        """A task changes its state."""
        if key not in self._seen:
            return
        task = self._scheduler.tasks.get(key)
        if start == "processing":
            self._on_taken_away(key, task)
        elif start == "memory" and finish == "released" and _is_once(task):
            _count(task)  # its value is lost, and when somebody wants it, it is to run again
        if finish == "forgotten":
            del self._seen[key]

    def _on_taken_away(self, key: str, task: Any) -> None:
        """A worker has no longer a task to do: it has done it, or is dead."""
        if task is not None and task.suspicious > self._seen[key]:
            self._seen[key] = task.suspicious
            if key in self._running or CAREFUL not in (task.annotations or {}):
                _count(task)
        self._running.pop(key, None)

    def on_begun(self, key: str, worker: str) -> None:
        """A careful task begins as soon as its worker has got the answer.

        One that is dead may have asked, and the task be with another one.
        """
        task = self._scheduler.tasks.get(key) if key in self._seen else None
        at = task.processing_on if task is not None else None
        if at is not None and at.address == worker:
            self._running[key] = worker

    def on_ended(self, key: str, worker: str) -> None:
        """A careful task has ended; its value is on its way."""
        if self._running.get(key) == worker:
            del self._running[key]


def _is_once(task: Any) -> bool:
    return task is not None and ONCE in (task.annotations or {})


def _count(task: Any) -> None:
    """One attempt more is lost; the next ones are careful."""
    told = task.annotations or {}
    task.annotations = {**told, LOST: told.get(LOST, 0) + 1, CAREFUL: True}


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


def begun(session: str, key: str, worker: str, dask_scheduler: Any = None) -> None:
    """A worker begins a task, and waits until that is known here."""
    head = _head(dask_scheduler, session)
    if head is not None:
        head.on_begun(key, worker)


def ended(session: str, key: str, worker: str, dask_scheduler: Any = None) -> None:
    """A worker has ended a task, and says so before it gives the value."""
    head = _head(dask_scheduler, session)
    if head is not None:
        head.on_ended(key, worker)


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


async def whereabouts(key: str, dask_scheduler: Any = None) -> tuple[bool, str | None]:
    """Whether a task is known here, and the address of the worker that has it to do.

    None: it is with no worker.
    """
    await wait_for(key, dask_scheduler, _ON_ITS_WAY_S)
    task = dask_scheduler.tasks.get(key)
    worker = None if task is None else task.processing_on
    return task is not None, None if worker is None else str(worker.address)


async def let_go(key: str, dask_scheduler: Any = None) -> None:
    """Wait until a task that was cancelled is with no worker any more, as far as is known here."""
    until = time() + _PATIENCE_S
    while time() < until:
        task = dask_scheduler.tasks.get(key)
        if task is None or task.processing_on is None:
            return
        await asyncio.sleep(0.001)


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
