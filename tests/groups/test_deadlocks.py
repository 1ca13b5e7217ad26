"""Tasks that wait for one another get an error that names the circle (rows 56, SCH-11)."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from tests.gates import Gate, eventually

import taskloom
from taskloom.exceptions import DeadlockError

SESSION = {"num_cpus": 3, "num_gpus": 1, "resources": {"tpu": 2}}
LIMIT_S = 30.0


class Slot:
    """Where a ref is left for a task that is already running."""

    def __init__(self, directory: Path, name: str) -> None:
        self._path = str(directory / name)

    def put(self, ref):
        Path(f"{self._path}.new").write_text(ref.hex())
        os.rename(f"{self._path}.new", self._path)

    def take(self):
        assert eventually(lambda: os.path.exists(self._path))
        return taskloom.ObjectRef.from_hex(Path(self._path).read_text())


@pytest.fixture
def slot(tmp_path):
    return lambda name: Slot(tmp_path, name)


@taskloom.remote
def get_what_comes(slot):
    return taskloom.get(slot.take())


def names_in(error: BaseException, *names: str) -> bool:
    return all(name in str(error) for name in names)


def test_two_tasks_that_get_each_other(tl, slot):
    a = get_what_comes.options(name="first").remote(slot("b"))
    b = get_what_comes.options(name="second").remote(slot("a"))
    slot("a").put(a)
    slot("b").put(b)
    with pytest.raises(DeadlockError) as caught:
        tl.get([a, b], timeout=LIMIT_S)
    assert names_in(caught.value, "first", "second", "wait for one another")


def test_a_circle_of_three_with_others_that_only_depend_on_it(tl, slot):
    refs = [get_what_comes.options(name=f"link{i}").remote(slot(f"{i}")) for i in range(3)]
    dependent = tl.remote(lambda value: value).remote(refs[0])
    for i in range(3):
        slot(f"{(i + 1) % 3}").put(refs[i])
    with pytest.raises(DeadlockError) as caught:
        tl.get(dependent, timeout=LIMIT_S)
    assert names_in(caught.value, "link0", "link1", "link2")


def test_a_task_that_gets_itself(tl, slot):
    ref = get_what_comes.remote(slot("self"))
    slot("self").put(ref)
    with pytest.raises(DeadlockError, match="waits for itself"):
        tl.get(ref, timeout=LIMIT_S)


def test_a_task_that_waits_for_itself_with_wait(tl, slot):
    @tl.remote
    def work(own):
        tl.wait([own.take()])

    ref = work.remote(slot("self"))
    slot("self").put(ref)
    with pytest.raises(DeadlockError, match="waits for itself"):
        tl.get(ref, timeout=LIMIT_S)


def test_a_circle_through_an_argument(tl, slot):
    first = get_what_comes.options(name="first").remote(slot("second"))
    second = tl.remote(name="second")(lambda value: value).remote(first)
    slot("second").put(second)
    with pytest.raises(DeadlockError, match="as an argument"):
        tl.get(second, timeout=LIMIT_S)


def test_only_one_of_them_gets_the_error_and_may_handle_it(tl, slot):
    @tl.remote
    def careful(own):
        try:
            return tl.get(own.take())
        except DeadlockError:
            return "handled"

    a = careful.remote(slot("b"))
    b = careful.remote(slot("a"))
    slot("a").put(a)
    slot("b").put(b)
    assert tl.get([a, b], timeout=LIMIT_S) == ["handled", "handled"]


def test_a_gpu_that_the_waiting_task_itself_holds(tl):
    @tl.remote(num_gpus=1)
    def inner():
        return "ran"

    @tl.remote(num_gpus=1)
    def outer():
        refs = [inner.remote()]
        try:
            tl.get(refs)
        except DeadlockError as error:
            return str(error), refs

    text, refs = tl.get(outer.remote(), timeout=LIMIT_S)
    assert "inner" in text
    assert "needs resources that outer" in text
    assert tl.get(refs, timeout=LIMIT_S) == ["ran"]  # the task has left, and its GPU is free


def test_a_resource_of_which_two_waiting_tasks_hold_half_each(tl, tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(resources={"tpu": 1})
    def inner():
        return 1

    @tl.remote(resources={"tpu": 1})
    def outer():
        gate.enter("outer")
        return tl.get(inner.remote())

    refs = [outer.remote(), outer.remote()]
    gate.wait_for("outer", 2)
    gate.open()
    with pytest.raises(DeadlockError):
        tl.get(refs, timeout=LIMIT_S)
    done, _ = tl.wait(refs, num_returns=2, timeout=LIMIT_S)
    assert len(done) == 2
    # The first one's error has made room for what the other one waits for.
    assert sum(is_value(ref) for ref in refs) == 1


def is_value(ref) -> bool:
    return ref.exception() is None


def test_a_blocking_get_in_a_coroutine_of_itself(tl, slot):
    @tl.remote
    async def work(own):
        return tl.get(own.take())

    ref = work.remote(slot("self"))
    slot("self").put(ref)
    with pytest.raises(DeadlockError, match="waits for itself"):
        tl.get(ref, timeout=LIMIT_S)


def test_a_group_whose_member_waits_for_the_groups_owner(tl, slot):
    @tl.remote
    def owner():
        with tl.TaskGroup():
            get_what_comes.remote(slot("owner"))

    ref = owner.remote()
    slot("owner").put(ref)
    with pytest.raises(ExceptionGroup) as caught:
        tl.get(ref, timeout=LIMIT_S)
    assert caught.group_contains(DeadlockError)


def test_a_group_whose_owner_holds_what_a_member_needs(tl):
    @tl.remote(num_gpus=1)
    def owner(member):
        with tl.TaskGroup():
            add_later.remote()
            member.remote()

    @tl.remote
    def add_later():
        time.sleep(0.1)

    @tl.remote(num_gpus=1)
    def member():
        return "ran"

    with pytest.raises(ExceptionGroup) as caught:
        tl.get(owner.remote(member), timeout=LIMIT_S)
    assert caught.group_contains(DeadlockError, match="needs resources that owner")
    assert eventually(lambda: tl.available_resources()["GPU"] == 1)
    assert tl.get(member.remote(), timeout=LIMIT_S) == "ran"


# -- what is no deadlock ------------------------------------------------------------------------


def test_a_wait_with_a_time_limit_is_left_to_it(tl, slot):
    @tl.remote
    def patient(own):
        try:
            tl.get(own.take(), timeout=3)
        except taskloom.exceptions.GetTimeoutError:
            return "time is up"

    ref = patient.remote(slot("self"))
    slot("self").put(ref)
    assert tl.get(ref, timeout=LIMIT_S) == "time is up"


def test_tasks_that_wait_for_one_that_runs_are_left_alone(tl, tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def runs():
        gate.enter("runs")
        return 1

    @tl.remote(num_gpus=1)
    def waits(refs):
        return sum(tl.get(refs))

    ref = runs.remote()
    first = waits.remote([ref])
    second = waits.remote([ref])  # for a GPU, too, which the first one holds
    gate.wait_for("runs")
    time.sleep(2.5)  # for longer than the engine takes to look: there is nothing else to wait for
    assert not first.done()
    gate.open()
    assert tl.get([first, second], timeout=LIMIT_S) == [1, 1]


def test_a_helper_thread_that_waits_does_not_count(tl, slot):
    @tl.remote
    def work(own):
        from concurrent.futures import ThreadPoolExecutor  # in the worker only

        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(tl.wait, [own.take()], timeout=None)
            time.sleep(2.5)  # the task itself goes on
            tl.cancel(own.take(), recursive=False)
            return pending

    ref = work.remote(slot("self"))
    slot("self").put(ref)
    with pytest.raises(taskloom.exceptions.TaskCancelledError):
        tl.get(ref, timeout=LIMIT_S)


def test_awaits_that_form_a_circle_are_reported_and_not_ended(run_driver):
    done = run_driver("""
import asyncio, sys, time
import taskloom

@taskloom.remote
async def work(path):
    while True:
        try:
            ref = taskloom.ObjectRef.from_hex(open(path).read())
            break
        except (FileNotFoundError, ValueError):
            await asyncio.sleep(0.01)
    try:
        async with asyncio.timeout(4):
            return await ref
    except TimeoutError:
        return "time is up"

ref = work.remote("ref")
open("ref", "w").write(ref.hex())
print(taskloom.get(ref))
taskloom.shutdown()
""")
    assert done.stdout.strip() == "time is up"
    assert done.stderr.count("waits for itself") == 1
    assert "unless an await has a time limit" in done.stderr


async def test_a_circle_does_not_disturb_what_else_runs(tl, slot):
    ref = get_what_comes.remote(slot("self"))
    slot("self").put(ref)
    beside = tl.remote(lambda x: x + 1)
    while not ref.done():
        assert await beside.remote(1) == 2
        await asyncio.sleep(0.01)
    assert isinstance(ref.exception(), DeadlockError)
