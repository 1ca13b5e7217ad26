"""Tasks that submit tasks, to any depth and on any number of CPUs (REM-11, REM-12)."""

from __future__ import annotations

import os
import threading
from types import ModuleType

import pytest
from tests.gates import Gate, eventually

from taskloom.exceptions import NestedDepthError

SESSION = {"num_cpus": 1}


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def test_a_task_submits_tasks_and_puts_objects_REM_11(tl: ModuleType):
    @tl.remote
    def outer():
        import taskloom

        inner = taskloom.remote(lambda x, y: x + y)
        return taskloom.get(inner.remote(taskloom.put(1), inner.remote(2, 3)))

    assert tl.get(outer.remote()) == 6


def test_a_ref_that_a_task_returns_is_not_unwrapped_REM_11(tl):
    @tl.remote
    def outer():
        import taskloom

        return taskloom.remote(lambda: "value").remote()

    inner = tl.get(outer.remote())

    assert isinstance(inner, tl.ObjectRef)
    assert tl.get(inner) == "value"


def test_a_ref_that_a_task_returns_can_be_passed_on_REM_11(tl):
    @tl.remote
    def outer(n):
        import taskloom

        return [taskloom.remote(lambda x: x).remote(n), taskloom.put(n)]

    add = tl.remote(lambda a, b: a + b)

    assert tl.get(add.remote(*tl.get(outer.remote(4)))) == 8


def test_the_result_of_a_task_may_be_there_before_its_children_are_done_REM_11(tl, gate):
    @tl.remote
    def outer():
        import taskloom

        return [taskloom.remote(gate.enter).options(num_cpus=0).remote()]

    (inner,) = tl.get(outer.remote())
    gate.wait_for()
    assert not inner.done()
    gate.open()

    assert tl.get(inner) is None


def test_recursion_with_get_inside_on_one_cpu_REM_12(tl):
    @tl.remote
    def factorial(n):
        import taskloom

        return 1 if n == 0 else n * taskloom.get(factorial.remote(n - 1))

    assert tl.get(factorial.remote(20), timeout=60) == 2432902008176640000


def test_a_tree_of_tasks_on_one_cpu_REM_12(tl):
    @tl.remote
    def fibonacci(n):
        import taskloom

        if n < 2:
            return n
        return sum(taskloom.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)]))

    assert tl.get(fibonacci.remote(8), timeout=60) == 21


@pytest.mark.parametrize("call", ["get", "wait", "await", "future", "as_completed", "thread"])
def test_every_way_of_waiting_gives_the_cpu_back_REM_12(tl, call):
    @tl.remote
    def outer():
        import asyncio

        import taskloom

        ref = taskloom.remote(lambda: "inner").remote()
        if call == "get":
            return taskloom.get(ref)
        if call == "wait":
            ready, _ = taskloom.wait([ref])
            return taskloom.get(ready[0])
        if call == "await":

            async def main():
                return await ref

            return asyncio.run(main())
        if call == "future":
            return ref.future().result()
        if call == "as_completed":
            return next(iter(taskloom.as_completed([ref])))
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(taskloom.get(ref)))
        thread.start()
        thread.join()
        return answers[0]

    assert tl.get(outer.remote(), timeout=30) == "inner"


def test_a_blocked_task_keeps_its_other_resources_REM_12(fresh, gate):
    fresh.init(num_cpus=1, num_gpus=1, resources={"db": 1})

    @fresh.remote(num_gpus=1, resources={"db": 1})
    def outer():
        import taskloom

        return taskloom.get(taskloom.remote(gate.enter).remote())

    ref = outer.remote()
    gate.wait_for()
    free = fresh.available_resources()
    assert "GPU" not in free
    assert "db" not in free
    assert "CPU" not in free, "the inner task has it now"
    gate.open()
    fresh.get(ref)

    assert eventually(lambda: fresh.available_resources() == fresh.cluster_resources())


def test_tasks_without_an_end_in_sight_are_stopped_with_a_clear_error(fresh):
    fresh.init(num_cpus=1, max_extra_workers=4)

    @fresh.remote(max_retries=0)
    def down(n):
        import taskloom

        return taskloom.get(down.remote(n + 1))

    with pytest.raises(NestedDepthError, match="max_extra_workers"):
        fresh.get(down.remote(0), timeout=60)
    assert fresh.get(fresh.remote(lambda: 1).remote(), timeout=30) == 1


def test_sixty_four_more_processes_than_cpus_are_allowed_and_not_one_more(fresh):
    fresh.init(num_cpus=1)

    @fresh.remote(max_retries=0)
    def down(n):
        import taskloom

        return 0 if not n else 1 + taskloom.get(down.remote(n - 1))

    assert fresh.get(down.remote(64), timeout=100) == 64
    with pytest.raises(NestedDepthError, match="64"):
        fresh.get(down.remote(65), timeout=100)


def test_twenty_tasks_that_each_submit_a_hundred(tl):
    @tl.remote
    def outer(n):
        import taskloom

        inner = taskloom.remote(lambda x: x)
        return sum(taskloom.get([inner.remote(n * 100 + k) for k in range(100)]))

    assert sum(tl.get([outer.remote(n) for n in range(20)], timeout=100)) == sum(range(2000))


def test_the_driver_and_tasks_submit_at_once(tl):
    @tl.remote
    def outer(n):
        import taskloom

        return taskloom.get(taskloom.remote(lambda x: x + 1).remote(n))

    plain = tl.remote(lambda n: n)
    refs = [(outer if n % 2 else plain).remote(n) for n in range(60)]

    assert tl.get(refs, timeout=60) == [n + 1 if n % 2 else n for n in range(60)]


def test_threads_of_the_driver_submit_at_once(tl):
    f = tl.remote(lambda x: x)
    answers: dict[int, list[int]] = {}

    def run(base: int) -> None:
        answers[base] = tl.get([f.remote(base + k) for k in range(50)])

    threads = [threading.Thread(target=run, args=(1000 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert answers == {1000 * n: [1000 * n + k for k in range(50)] for n in range(6)}


def test_a_task_that_is_blocked_does_not_hold_up_what_was_queued_behind_it(tl, gate):
    """Short tasks travel in batches; one that turns out to wait gives the others back."""

    @tl.remote
    def step(n):
        if n == 150:
            import taskloom

            return taskloom.get(taskloom.remote(gate.enter).remote())
        gate.note("after") if n == 299 else None
        return n

    refs = [step.remote(n) for n in range(300)]
    gate.wait_for()
    # One CPU, and the gate's task has it: let it go.
    gate.open()

    assert tl.get(refs, timeout=60)[299] == 299
    assert gate.count("after") == 1


def test_a_parent_that_crashes_is_run_again_with_its_children(tl, gate):
    @tl.remote(max_retries=1)
    def parent():
        import taskloom

        ref = taskloom.remote(lambda: "child").remote()
        gate.note("parent")
        if gate.count("parent") == 1:
            os._exit(1)
        return taskloom.get(ref)

    assert tl.get(parent.remote(), timeout=60) == "child"


def test_a_coroutine_with_a_cpu_may_call_get(fresh):
    fresh.init(num_cpus=1)

    @fresh.remote(num_cpus=1)
    async def outer():
        return fresh.get(inner.remote()) + 1

    @fresh.remote
    def inner():
        return 1

    assert fresh.get(outer.remote(), timeout=30) == 2


def test_a_finalizer_may_submit_in_the_middle_of_a_submit(tl):
    @tl.remote
    def add(number):
        return number

    @tl.remote
    def submit_in_finalizers(count):
        import gc

        class Last:
            def __init__(self):
                self.me = self  # so that only a collection ends it

            def __del__(self):
                add.remote(1)

        gc.set_threshold(5, 2, 2)
        try:
            for number in range(count):
                Last()
                add.remote(number)
        finally:
            gc.set_threshold(700, 10, 10)
        return count

    assert tl.get(submit_in_finalizers.remote(3000), timeout=60) == 3000
