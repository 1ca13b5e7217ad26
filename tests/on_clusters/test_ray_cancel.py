"""When Ray is asked to end a task: a question at the wrong moment ends the process that asks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray

from taskloom.backends import ray_cancel


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, bool]]:
    """What a Ray was asked in which the task "done" has ended, and "of an actor" is one's call."""
    asked = []

    def cancel(ref: str, *, force: bool, recursive: bool) -> None:
        asked.append((ref, force))
        if force and ref == "of an actor":
            raise ValueError("force=True is not supported for actor tasks")

    def wait(refs: list[str], *, timeout: float, fetch_local: bool) -> tuple[list[str], list[str]]:
        return [ref for ref in refs if ref == "done"], [ref for ref in refs if ref != "done"]

    fake = SimpleNamespace(cancel=cancel, wait=wait, exceptions=ray.exceptions)
    monkeypatch.setattr(ray_cancel, "ray", fake)
    return asked


def test_a_task_that_runs_is_cancelled(asked):
    ray_cancel.ask_for_end("runs", force=True, recursive=True)
    assert asked == [("runs", True)]


def test_a_task_that_has_ended_is_not_cancelled_any_more(asked):
    ray_cancel.ask_for_end("done", force=False, recursive=True)
    assert asked == []


def test_a_call_of_an_actor_is_cancelled_without_force(asked):
    ray_cancel.ask_for_end("of an actor", force=True, recursive=True)
    assert asked == [("of an actor", True), ("of an actor", False)]
