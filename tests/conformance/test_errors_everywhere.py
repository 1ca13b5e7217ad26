"""Errors: the user's own class, the way to dependents, the worker that dies."""

from __future__ import annotations

import os
import threading
import traceback

import pytest
from tests.captured import printed
from tests.conformance.subjects import LONG_S, ONE_PROCESS, Broken, add, fail
from tests.gates import Gate, eventually

import taskloom as tl
from taskloom.exceptions import RayTaskError, TaskUnschedulableError, WorkerCrashedError


def test_an_error_is_of_the_users_class_and_keeps_its_state():
    with pytest.raises(Broken) as caught:
        tl.get(fail.remote(7))
    assert caught.value.code == 7
    assert isinstance(caught.value, RayTaskError)


def test_an_error_shows_the_traceback_of_where_it_was_raised():
    with pytest.raises(Broken) as caught:
        tl.get(fail.remote(7))
    shown = "".join(traceback.format_exception(caught.value))
    assert "subjects.py" in shown
    assert "raise Broken(code" in shown


def test_the_cause_of_an_error_is_told():
    @tl.remote
    def wraps():
        try:
            raise KeyError("the first")
        except KeyError as error:
            raise Broken(2, "the second") from error

    with pytest.raises(Broken, match="the second") as caught:
        tl.get(wraps.remote())
    assert "the first" in "".join(traceback.format_exception(caught.value))


def test_a_class_of_error_that_is_local_to_a_function_arrives():
    class Local(Exception):
        pass

    @tl.remote
    def work():
        raise Local("from inside")

    with pytest.raises(Local, match="from inside"):
        tl.get(work.remote())


def test_dependents_of_a_failed_task_fail_with_its_error_and_do_not_run(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def touch(_value):
        gate.note("ran")

    ref = touch.remote(touch.remote(fail.remote(3)))
    with pytest.raises(Broken) as caught:
        tl.get(ref)
    assert caught.value.code == 3
    assert gate.count("ran") == 0


def test_an_error_in_a_nested_task_can_be_caught_by_its_parent():
    @tl.remote
    def parent():
        try:
            tl.get(fail.remote(5))
        except Broken as error:
            return error.code

    assert tl.get(parent.remote(), timeout=LONG_S) == 5


def test_an_error_passes_through_many_levels_with_its_class():
    @tl.remote
    def level(n):
        return tl.get(level.remote(n - 1) if n else fail.remote(9))

    with pytest.raises(Broken) as caught:
        tl.get(level.remote(2), timeout=LONG_S)
    assert caught.value.code == 9


def test_exception_groups_arrive_as_groups():
    @tl.remote
    def many():
        raise ExceptionGroup("two", [Broken(1, "a"), KeyError("b")])

    with pytest.raises(ExceptionGroup) as caught:
        tl.get(many.remote())
    first, second = caught.value.exceptions
    assert (type(first).__name__, type(second).__name__) == ("Broken", "KeyError")


def test_what_cannot_be_pickled_is_refused_at_the_call():
    with pytest.raises(TypeError, match="lock"):
        add.remote(threading.Lock(), 1)


def test_what_a_function_returns_and_cannot_be_pickled_is_its_error():
    @tl.remote
    def bad():
        return threading.Lock()

    with pytest.raises(TypeError, match="lock"):
        tl.get(bad.remote())


def test_an_error_that_cannot_be_pickled_is_told_all_the_same():
    @tl.remote
    def bad():
        error = ValueError("with a lock inside")
        error.lock = threading.Lock()
        raise error

    with pytest.raises(RayTaskError, match="with a lock inside"):
        tl.get(bad.remote())


def test_sys_exit_in_a_task_is_an_error_and_does_not_end_the_program():
    @tl.remote(max_retries=0)
    def leave():
        raise SystemExit(3)

    with pytest.raises(tl.exceptions.RayError):
        tl.get(leave.remote(), timeout=LONG_S)
    assert tl.get(add.remote(1, 1), timeout=LONG_S) == 2


@pytest.mark.differs("local_mode", ONE_PROCESS)
def test_a_task_whose_worker_dies_is_tried_again_within_its_retries(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(max_retries=2)
    def dies(times):
        gate.note("tried")
        if gate.count("tried") <= times:
            os._exit(1)
        return gate.count("tried")

    assert tl.get(dies.remote(1), timeout=LONG_S) == 2


@pytest.mark.differs("local_mode", ONE_PROCESS)
def test_a_task_whose_worker_always_dies_fails_when_its_retries_are_used_up(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(max_retries=1)
    def dies():
        gate.note("tried")
        os._exit(1)

    with pytest.raises(WorkerCrashedError):
        tl.get(dies.remote(), timeout=LONG_S)
    assert gate.count("tried") == 2


@pytest.mark.differs("dask", "the task waits: a worker that has it may come")
@pytest.mark.differs("ray", "the task waits: a cluster that scales may get such a node")
def test_a_request_that_can_never_be_fulfilled_fails():
    @tl.remote(resources={"slot": 99})
    def work():
        pass

    with pytest.raises(TaskUnschedulableError, match="slot"):
        tl.get(work.remote(), timeout=LONG_S)


def test_an_error_that_nobody_asked_for_is_told_on_stderr(capfd):
    def is_told():
        tl.get(add.remote(1, 1), timeout=LONG_S)  # errors are told when the session is used
        return "nobody asked" in printed(capfd, "err")

    @tl.remote
    def work():
        raise Broken(1, "nobody asked")

    ref = work.remote()
    tl.wait([ref], timeout=LONG_S)
    del ref
    assert eventually(is_told), printed(capfd, "err")
