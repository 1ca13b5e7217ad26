"""Options of tasks: resources, retries, time limits, names."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.conformance.subjects import AT_ONCE, LONG_S, Broken, add
from tests.gates import Gate

import taskloom as tl
from taskloom.exceptions import TaskTimeoutError


def test_a_task_holds_the_resources_that_it_asks_for():
    @tl.remote(num_cpus=0.5, resources={"slot": 2})
    def assigned():
        return tl.get_runtime_context().get_assigned_resources()

    assert tl.get(assigned.remote()) == {"CPU": 0.5, "slot": 2.0}
    assert tl.get(assigned.options(num_cpus=1).remote()) == {"CPU": 1.0, "slot": 2.0}


def test_the_resources_of_the_session_are_told():
    assert tl.cluster_resources()["CPU"] == 2.0
    assert tl.cluster_resources()["slot"] == 4.0


@pytest.mark.differs("local_mode", AT_ONCE)
def test_a_task_waits_until_its_resources_are_free(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(num_cpus=0.1, resources={"slot": 3})
    def occupy(name):
        gate.enter(name)

    refs = [occupy.remote("came") for _ in range(2)]
    gate.wait_for("came", 1)
    assert tl.wait(refs, num_returns=2, timeout=0.5) == ([], refs)
    assert gate.count("came") == 1
    gate.open()
    tl.get(refs, timeout=LONG_S)
    assert gate.count("came") == 2


def test_unknown_options_and_impossible_values_are_refused():
    with pytest.raises(ValueError, match="colour"):
        add.options(colour="blue")
    with pytest.raises(ValueError, match="num_cpus"):
        add.options(num_cpus=-1)
    with pytest.raises(TypeError, match="max_retries"):
        add.options(max_retries="many")


def test_an_exception_is_retried_when_it_was_asked_for(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(max_retries=3, retry_exceptions=True)
    def third_time():
        gate.note("tried")
        if gate.count("tried") < 3:
            raise Broken(1, "again")
        return gate.count("tried")

    assert tl.get(third_time.remote(), timeout=LONG_S) == 3


def test_only_the_exceptions_that_are_named_are_retried(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(max_retries=3, retry_exceptions=[KeyError])
    def work():
        gate.note("tried")
        raise Broken(1, "no more") if gate.count("tried") == 2 else KeyError("again")

    with pytest.raises(Broken):
        tl.get(work.remote(), timeout=LONG_S)
    assert gate.count("tried") == 2


def test_an_exception_is_not_retried_by_default(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def work():
        gate.note("tried")
        raise Broken(1, "it broke")

    with pytest.raises(Broken):
        tl.get(work.remote())
    assert gate.count("tried") == 1


def test_the_last_error_is_told_when_the_retries_are_used_up(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(max_retries=2, retry_exceptions=[Broken])
    def work():
        gate.note("tried")
        raise Broken(gate.count("tried"), "it broke")

    with pytest.raises(Broken) as caught:
        tl.get(work.remote(), timeout=LONG_S)
    assert caught.value.code == 3


def test_there_is_a_pause_between_attempts_when_it_was_asked_for(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(max_retries=2, retry_exceptions=True, retry_delay=0.2, retry_backoff=2)
    def work():
        gate.note("tried")
        if gate.count("tried") < 3:
            raise Broken(1, "again")

    began = time.monotonic()
    tl.get(work.remote(), timeout=LONG_S)
    assert time.monotonic() - began > 0.2 / 2 + 0.4 / 2  # jitter takes up to a half


@pytest.mark.differs("local_mode", "a plain function runs to its end, and fails afterwards")
def test_a_time_limit_interrupts_a_function_that_sleeps():
    @tl.remote(timeout=0.3)
    def sleep():
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(TaskTimeoutError) as caught:
        tl.get(sleep.remote(), timeout=LONG_S)
    assert caught.value.timeout_s == 0.3
    assert time.monotonic() - began < 55


def test_a_time_limit_cancels_a_coroutine():
    @tl.remote(timeout=0.3)
    async def sleep():
        await asyncio.sleep(60)

    with pytest.raises(TaskTimeoutError):
        tl.get(sleep.remote(), timeout=LONG_S)


def test_a_time_limit_that_is_kept_changes_nothing():
    assert tl.get(add.options(timeout=30).remote(1, 2)) == 3


def test_each_attempt_has_the_time_limit_for_itself(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(timeout=2, max_retries=2, retry_exceptions=[TaskTimeoutError])
    async def work():
        gate.note("tried")
        if gate.count("tried") < 2:
            await asyncio.sleep(60)
        return gate.count("tried")

    assert tl.get(work.remote(), timeout=LONG_S) in (2, 3)  # 3: a very busy machine


def test_a_name_is_what_the_task_is_called():
    @tl.remote(name="painter")
    def look():
        return tl.get_runtime_context().get_task_name()

    assert tl.get([look.remote(), look.options(name="other").remote()]) == ["painter", "other"]


@pytest.mark.differs("dask", "it goes first in the queue, not before what a worker has got already")
@pytest.mark.differs("local_mode", AT_ONCE)
@pytest.mark.lacks("ray", "Ray has no priorities", raises=NotImplementedError)
def test_a_task_of_higher_priority_runs_first(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(num_cpus=2)
    def occupy():
        gate.enter("occupied")

    @tl.remote(num_cpus=2)
    def note(name):
        gate.note("order")
        return name, gate.count("order")

    blocker = occupy.remote()
    try:
        gate.wait_for("occupied")
        low, high = note.remote("low"), note.options(priority=5).remote("high")
    finally:
        gate.open()
        tl.get(blocker, timeout=LONG_S)
    assert tl.get([low, high], timeout=LONG_S) == [("low", 2), ("high", 1)]


def test_a_runtime_environment_is_refused_with_a_reason():
    with pytest.raises((NotImplementedError, ValueError), match="runtime"):
        add.options(runtime_env={"pip": ["something"]}).remote(1, 2)
