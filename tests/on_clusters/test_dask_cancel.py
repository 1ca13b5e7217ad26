"""In which order Dask is told that a task is to end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from taskloom.backends.dask_cancel import Canceller


def test_force_takes_a_task_from_the_scheduler_before_its_process_ends():
    """Else the next worker gets it, and is held by it for ever."""
    said = []
    client: Any = SimpleNamespace(
        run_on_scheduler=lambda *_args: (True, "tcp://worker"),
        cancel=lambda *_args, **_more: said.append("cancel"),
        run=lambda *_args, **_more: said.append("end the process"),
    )
    canceller = Canceller(client, "5e55")
    promise: Any = SimpleNamespace(future=object(), task=1, key="task", is_done=False)
    canceller.cancel(promise, force=True, recursive=True)
    canceller.close()
    assert said == ["cancel", "end the process"]


def test_a_task_that_the_scheduler_has_not_heard_of_yet_is_waited_for():
    """Else only its future ends, and it runs to its end when it arrives."""
    answers = [(False, None), (False, None), (True, "tcp://worker")]
    said = []
    client: Any = SimpleNamespace(
        run_on_scheduler=lambda *_args: answers.pop(0),
        cancel=lambda *_args, **_more: said.append("cancel"),
        run=lambda *_args, **_more: said.append("interrupt") or {"tcp://worker": True},
    )
    canceller = Canceller(client, "5e55")
    promise: Any = SimpleNamespace(future=object(), task=1, key="task", is_done=False)
    canceller.cancel(promise, force=False, recursive=True)
    canceller.close()
    assert said == ["interrupt"]
