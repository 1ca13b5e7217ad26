"""Whom the death of a worker costs an attempt, as Dask's scheduler, here a fake, is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from taskloom.backends.dask_head import CAREFUL, LOST, OURS, Head


class Scheduler:
    """As much of Dask's as the head asks."""

    def __init__(self) -> None:
        self.head = Head("5e55", {})
        self.head._scheduler = self
        self.tasks: dict[str, SimpleNamespace] = {}

    def submit(self, key: str, worker: str, **marks: bool) -> None:
        self.tasks[key] = SimpleNamespace(suspicious=0, annotations=marks, processing_on=None)
        self.head.update_graph(self, annotations={OURS: {key: self.head.name}})
        self.give(key, worker)

    def give(self, key: str, worker: str) -> None:
        self.tasks[key].processing_on = SimpleNamespace(address=worker)

    def kill(self, worker: str) -> None:
        for key, task in self.tasks.items():
            if task.processing_on is not None and task.processing_on.address == worker:
                task.processing_on = None
                task.suspicious += 1
                self.head.transition(key, "processing", "released")

    def lost(self, key: str) -> int:
        return self.tasks[key].annotations.get(LOST, 0)


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


def test_the_first_death_counts_against_all_that_the_worker_had_been_given(scheduler):
    scheduler.submit("runs", "a")
    scheduler.submit("waits", "a")
    scheduler.submit("elsewhere", "b")
    scheduler.kill("a")
    assert [scheduler.lost(key) for key in ("runs", "waits", "elsewhere")] == [1, 1, 0]


def test_later_deaths_count_only_against_what_runs(scheduler):
    for key in ("runs", "waits", "ended"):
        scheduler.submit(key, "a")
    scheduler.kill("a")
    for key in ("runs", "waits", "ended"):
        scheduler.give(key, "b")
    for key in ("ended", "runs"):
        scheduler.head.on_begun(key, "b")
    scheduler.head.on_ended("ended", "b")
    scheduler.kill("b")
    assert [scheduler.lost(key) for key in ("runs", "waits", "ended")] == [2, 1, 1]


def test_a_task_on_its_last_attempt_loses_it_only_when_it_runs(scheduler):
    scheduler.submit("last", "a", **{CAREFUL: True})
    scheduler.kill("a")
    assert scheduler.lost("last") == 0
    scheduler.give("last", "b")
    scheduler.head.on_begun("last", "b")
    scheduler.kill("b")
    assert scheduler.lost("last") == 1


def test_what_a_dead_worker_has_said_last_is_not_held_against_the_next_one(scheduler):
    scheduler.submit("task", "a", **{CAREFUL: True})
    scheduler.kill("a")
    scheduler.give("task", "b")
    scheduler.head.on_begun("task", "a")
    scheduler.kill("b")
    assert scheduler.lost("task") == 0
    scheduler.give("task", "c")
    scheduler.head.on_begun("task", "c")
    scheduler.head.on_ended("task", "b")
    scheduler.kill("c")
    assert scheduler.lost("task") == 1
