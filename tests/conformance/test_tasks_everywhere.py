"""Tasks: calls, values, nesting, several returns."""

from __future__ import annotations

import asyncio

import pytest

import taskloom
from taskloom.exceptions import GetTimeoutError, RayTaskError, TaskCancelledError
from tests.gates import Gate


class Broken(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@taskloom.remote
def add(a, b):
    return a + b


@taskloom.remote
def fail(code):
    raise Broken(code, "it broke")


def test_a_call_gives_a_ref_whose_value_get_returns():
    ref = add.remote(1, 2)
    assert isinstance(ref, taskloom.ObjectRef)
    assert taskloom.get(ref) == 3


def test_get_of_a_list_keeps_its_order_and_of_a_tuple_gives_a_tuple():
    refs = [add.remote(n, n) for n in range(10)]
    assert taskloom.get(refs) == [2 * n for n in range(10)]
    assert taskloom.get(tuple(refs[:2])) == (0, 2)
    assert taskloom.get([]) == []


def test_refs_as_arguments_are_waited_for_and_arrive_as_values():
    total = add.remote(add.remote(1, 2), b=add.remote(3, b=taskloom.put(4)))
    assert taskloom.get(total) == 10


def test_tasks_call_tasks_and_wait_for_them_without_keeping_their_cpu():
    @taskloom.remote
    def tree(depth):
        if not depth:
            return 1
        return sum(taskloom.get([tree.remote(depth - 1) for _ in range(2)]))

    assert taskloom.get(tree.remote(3), timeout=100) == 8


def test_an_error_is_of_the_users_class_with_the_remote_traceback():
    with pytest.raises(Broken) as caught:
        taskloom.get(fail.remote(7))
    assert caught.value.code == 7
    assert isinstance(caught.value, RayTaskError)
    assert "raise Broken(code" in str(caught.value)


def test_await_gives_the_value_or_raises_the_error():
    async def main():
        with pytest.raises(Broken):
            await fail.remote(1)
        return await add.remote(1, 1), await asyncio.gather(*[add.remote(n, n) for n in range(4)])

    assert asyncio.run(main()) == (2, [0, 2, 4, 6])


@pytest.mark.differs("local_mode", "a task is over when .remote() returns: there is no time out")
def test_get_with_a_timeout_raises_and_lets_the_task_go_on(tmp_path):
    gate = Gate(tmp_path)

    @taskloom.remote
    def work():
        gate.enter()
        return "done"

    ref = work.remote()
    with pytest.raises(GetTimeoutError):
        taskloom.get(ref, timeout=0.01)
    gate.open()
    assert taskloom.get(ref, timeout=30) == "done"


@pytest.mark.differs("local_mode", "a task is over when .remote() returns: nothing to cancel")
def test_a_running_task_is_cancelled(tmp_path):
    gate = Gate(tmp_path)

    @taskloom.remote
    def work():
        gate.enter("running")

    ref = work.remote()
    gate.wait_for("running")
    taskloom.cancel(ref)
    with pytest.raises(TaskCancelledError):
        taskloom.get(ref, timeout=30)


@pytest.mark.lacks("ray", "Ray has no priorities", raises=NotImplementedError)
def test_a_priority_is_accepted():
    assert taskloom.get(add.options(priority=3).remote(1, 2)) == 3


def test_several_returns_and_none():
    @taskloom.remote(num_returns=2)
    def pair():
        return 1, 2

    @taskloom.remote(num_returns=0)
    def nothing():
        pass

    first, second = pair.remote()
    assert taskloom.get([second, first]) == [2, 1]
    assert nothing.remote() is None
