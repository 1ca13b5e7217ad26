"""In which order Dask is told that a task is to end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from taskloom.backends.dask_cancel import Canceller
from taskloom.backends.dask_head import let_go


def test_force_takes_a_task_from_the_scheduler_before_its_process_ends():
    """Else the next worker gets it, and is held by it for ever."""
    said = []

    def ask_scheduler(question, _key):
        said.append(question.__name__)
        return True, "tcp://worker"

    client: Any = SimpleNamespace(
        run_on_scheduler=ask_scheduler,
        cancel=lambda *_args, **_more: said.append("cancel"),
        run=lambda *_args, **_more: said.append("end the process"),
    )
    canceller = Canceller(client, "5e55")
    promise: Any = SimpleNamespace(future=object(), task=1, key="task", is_done=False)
    canceller.cancel(promise, force=True, recursive=True)
    canceller.close()
    assert said == ["whereabouts", "cancel", "let_go", "end the process"]


async def test_the_scheduler_says_when_it_has_taken_a_task_from_its_worker():
    """A cancel reaches it by another way than the question, perhaps later."""
    task = SimpleNamespace(processing_on=SimpleNamespace(address="tcp://worker"))
    asked = asyncio.ensure_future(let_go("task", SimpleNamespace(tasks={"task": task})))
    await asyncio.sleep(0)
    assert not asked.done()
    task.processing_on = None
    await asyncio.wait_for(asked, 30)


async def test_a_task_that_is_forgotten_is_with_no_worker():
    await let_go("task", SimpleNamespace(tasks={}))


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
