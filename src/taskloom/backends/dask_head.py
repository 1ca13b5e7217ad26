"""What we keep at Dask's scheduler: notes that all processes of a session read, and attempts.

One plugin for each session.  It does three things that Dask itself has not:

- *Notes*: where published objects and named actors are, and what the workers must know of the
  session.
- *Attempts*: Dask runs a task again when its worker dies, as often as ``allowed-failures`` says,
  for all tasks alike.  Here each of our tasks counts from a number of its own, so that
  ``max_retries`` holds, and the worker is told how many attempts are lost.
- *Whereabouts*: which worker has a task now, for those who want its end.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any, Final

import distributed
from distributed.diagnostics.plugin import SchedulerPlugin

from taskloom._version import __version__

RETRIES: Final = "taskloom_retries"
"""The annotation of a task: how often it may be tried again; -1: without end."""
LOST: Final = "taskloom_lost"
"""The annotation of a task: how many attempts it has lost."""
_FOR_EVER: Final = 1 << 40


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
        self._starts: dict[str, int] = {}  # of each task: what its count of lost workers began at

    async def start(self, scheduler: Any) -> None:
        """Dask tells us where we are."""
        self._scheduler = scheduler

    def update_graph(
        self, scheduler: Any, *, annotations: Mapping[str, Mapping[str, int]], **_more: Any
    ) -> None:
        """New tasks: those of ours count their lost workers from a number of their own."""
        for key, retries in annotations.get(RETRIES, {}).items():
            task = scheduler.tasks.get(key)
            if task is not None and key not in self._starts:
                allowed = scheduler.allowed_failures - (_FOR_EVER if retries < 0 else retries)
                self._starts[key] = allowed
                task.suspicious = allowed

    def transition(self, key: str, start: str, finish: str, *_args: Any, **_more: Any) -> None:
        """A task changes its state: one that has lost its worker is told with its next start."""
        begun = self._starts.get(key)
        if begun is None:
            return
        if finish == "forgotten":
            del self._starts[key]
        elif start == "processing" and finish != "memory":
            task = self._scheduler.tasks.get(key)
            if task is not None and task.suspicious > begun:
                task.annotations = {**(task.annotations or {}), LOST: task.suspicious - begun}


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


def write(session: str, name: str, value: bytes, *, fresh: bool, dask_scheduler: Any = None) -> bool:
    """Leave a note; False: ``fresh``, and there is one of that name."""
    head = _head(dask_scheduler, session)
    if head is None or (fresh and name in head.notes):
        return False
    head.notes[name] = value
    return True


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


def whereabouts(key: str, dask_scheduler: Any = None) -> str | None:
    """The address of the worker that has a task to do; None: it is with none."""
    task = dask_scheduler.tasks.get(key)
    worker = None if task is None else task.processing_on
    return None if worker is None else str(worker.address)


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
