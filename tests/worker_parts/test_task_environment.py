"""Environment variables that depend on the task."""

from __future__ import annotations

import os

import pytest

from taskloom._worker.environment import TaskEnvironment

ONE: dict[str, tuple[str, ...]] = {"GPU": ("3",)}
TWO: dict[str, tuple[str, ...]] = {"GPU": ("0", "2")}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES",
    ):  # fmt: skip
        # Set, then deleted: so it is put back whatever the test leaves there.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def threads() -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def devices() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_a_task_may_use_as_many_threads_as_it_has_cpus() -> None:
    environment = TaskEnvironment()
    environment.enter(4, None)
    assert threads() == "4"
    environment.enter(1, None)
    assert threads() == "1"


def test_what_the_user_has_set_for_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environment = TaskEnvironment()
    environment.enter(4, None)
    environment.enter(2, None)
    assert threads() == "7"


def test_a_task_sees_the_gpus_it_holds() -> None:
    environment = TaskEnvironment()
    environment.enter(1, ONE)
    assert devices() == "3"
    environment.enter(1, TWO)
    assert devices() == "0,2"


def test_a_task_without_gpus_sees_what_the_worker_inherited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    environment = TaskEnvironment()
    environment.enter(1, None)
    assert devices() == "5,6"
    environment.enter(1, ONE)
    assert devices() == "3"
    environment.enter(1, None)
    assert devices() == "5,6"


def test_nothing_is_set_again_where_nothing_was_inherited() -> None:
    environment = TaskEnvironment()
    environment.enter(1, ONE)
    environment.enter(1, None)
    assert devices() is None


def test_resources_that_are_no_gpus_show_no_devices() -> None:
    environment = TaskEnvironment()
    environment.enter(1, {"TPU": ("1",)})
    assert devices() is None


def test_whoever_shows_devices_himself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", "1")
    environment = TaskEnvironment()
    environment.enter(1, ONE)
    assert devices() is None


def test_a_worker_for_one_kind_of_task_sets_its_environment_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = TaskEnvironment()
    environment.enter(2, ONE)
    monkeypatch.setenv("OMP_NUM_THREADS", "by the task")
    environment.enter(2, ONE)
    assert threads() == "by the task"
