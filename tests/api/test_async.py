"""``async def`` tasks, and asyncio, uvloop and trio programs that use tasks (REM-10)."""

from __future__ import annotations

import asyncio
import os
import time
from types import ModuleType

import pytest
from tests.gates import Gate, eventually

try:
    import uvloop
except ImportError:
    uvloop = None  # it does not exist everywhere


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


# -- coroutines in workers ----------------------------------------------------------------------


def test_a_coroutine_function_is_a_task_REM_10(tl: ModuleType):
    @tl.remote
    async def double(x):
        await asyncio.sleep(0)
        return 2 * x, os.getpid()

    value, pid = tl.get(double.remote(4))

    assert value == 8
    assert pid != os.getpid()


def test_a_hundred_sleeps_of_a_second_take_about_a_second_on_one_worker_REM_10(tl):
    @tl.remote
    async def sleep():
        await asyncio.sleep(1)
        return os.getpid()

    tl.get(sleep.remote())
    start = time.monotonic()
    pids = tl.get([sleep.remote() for _ in range(100)])
    took = time.monotonic() - start

    assert took < 5
    assert len(set(pids)) == 1


def test_coroutines_and_cpu_tasks_have_different_workers_REM_10(tl, gate):
    @tl.remote
    async def waits():
        gate.note("coroutine")
        while gate.count("leave") == 0:
            await asyncio.sleep(0.01)
        return os.getpid()

    coroutine = waits.remote()
    cpu_pids = set(tl.get([tl.remote(os.getpid).remote() for _ in range(20)]))
    gate.wait_for("coroutine")
    gate.note("leave")

    assert tl.get(coroutine) not in cpu_pids


def test_coroutines_need_no_cpu_REM_10(tl, gate):
    held = [tl.remote(gate.enter).remote() for _ in range(2)]
    gate.wait_for(count=2)

    async def f():
        return "ran"

    assert tl.get(tl.remote(f).remote()) == "ran"
    gate.open()
    tl.get(held)


def test_coroutines_that_ask_for_a_resource_get_it_one_after_another(fresh):
    fresh.init(num_cpus=1, resources={"db": 1})

    @fresh.remote(resources={"db": 1})
    async def use():
        import sys

        sys.inside = getattr(sys, "inside", 0) + 1
        most = sys.inside
        await asyncio.sleep(0.002)
        sys.inside -= 1
        return most

    assert set(fresh.get([use.remote() for _ in range(10)])) == {1}


def test_the_loop_of_the_worker_is_uvloops_where_there_is_one_REM_10(tl):
    async def loop_module():
        return type(asyncio.get_running_loop()).__module__

    module = tl.get(tl.remote(loop_module).remote())

    assert module.startswith("uvloop" if uvloop else "asyncio")


def test_refs_are_awaited_inside_coroutines_REM_10(tl):
    @tl.remote
    async def outer(n):
        import taskloom

        square = taskloom.remote(lambda x: x * x)
        values = await asyncio.gather(*(square.remote(k) for k in range(n)))
        one = await taskloom.put(1)
        return sum(values) + one

    assert tl.get(outer.remote(5)) == 31


def test_coroutines_await_coroutines_to_some_depth_REM_10(tl):
    @tl.remote
    async def nest(depth):
        return depth if not depth else 1 + await nest.remote(depth - 1) - 0

    assert tl.get(nest.remote(30)) == 30


def test_many_coroutines_await_one_ref_REM_10(tl, gate):
    held = tl.remote(gate.enter).remote()

    @tl.remote
    async def wait(box, n):
        gate.note("waiting")
        await box[0]
        return n

    refs = [wait.remote([held], n) for n in range(50)]
    gate.wait_for("waiting", 50)
    gate.open()

    assert tl.get(refs) == list(range(50))


def test_dependencies_and_failures_of_coroutines_are_those_of_any_task(tl):
    async def add(x, y):
        return x + y

    async def fail():
        raise KeyError("k")

    add, fail = tl.remote(add), tl.remote(fail)
    one = tl.remote(lambda: 1).remote()

    assert tl.get(add.remote(add.remote(one, 1), y=one)) == 3
    with pytest.raises(KeyError):
        tl.get(add.remote(fail.remote(), 1))


def test_coroutines_with_several_returns(tl):
    async def pair():
        return 1, 2

    assert tl.get(tl.remote(num_returns=2)(pair).remote()) == [1, 2]


def test_coroutines_are_retried_too(tl, gate):
    @tl.remote(retry_exceptions=True, max_retries=2)
    async def third_time_lucky():
        gate.note("attempt")
        if gate.count("attempt") < 3:
            raise OSError
        return "done"

    assert tl.get(third_time_lucky.remote()) == "done"


def test_a_crash_of_the_worker_retries_its_coroutines(tl, gate):
    @tl.remote
    async def f(n):
        gate.note(f"started {n}")
        if n == 0 and gate.count("started 0") == 1:
            while gate.count("started 4") == 0:
                await asyncio.sleep(0.01)
            os._exit(1)
        while gate.count("started 0") < 2:
            await asyncio.sleep(0.01)
        return n

    assert tl.get([f.remote(n) for n in range(5)]) == list(range(5))


def test_a_blocking_get_inside_a_coroutine_works(tl):
    @tl.remote
    async def outer():
        import taskloom

        return taskloom.get(taskloom.remote(lambda: 1).remote())

    assert tl.get(outer.remote(), timeout=30) == 1


def test_cpu_tasks_do_not_load_asyncio(run_driver):
    done = run_driver(
        """
import taskloom as ray
def loaded():
    import sys
    return sorted({"asyncio", "uvloop", "anyio", "concurrent.futures"} & sys.modules.keys())
ray.init(num_cpus=1)
print(ray.get(ray.remote(loaded).remote()))
"""
    )
    assert done.stdout == "[]\n", done.stderr


def test_background_work_of_a_coroutine_goes_on_after_it(tl, gate):
    @tl.remote
    async def start():
        async def later():
            await asyncio.sleep(0.01)
            gate.note("later")

        import builtins

        builtins.taskloom_test_keep = asyncio.ensure_future(later())

    tl.get(start.remote())

    gate.wait_for("later")


# -- the driver's loop --------------------------------------------------------------------------

RUNNERS = {"asyncio": asyncio.new_event_loop}
if uvloop:
    RUNNERS["uvloop"] = uvloop.new_event_loop


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_program_in_a_coroutine_INIT_6(fresh, kind):
    async def main():
        async with fresh.init(num_cpus=2):
            f = fresh.remote(lambda x: x + 1)
            return await asyncio.gather(*(f.remote(n) for n in range(100)))

    with asyncio.Runner(loop_factory=RUNNERS[kind]) as runner:
        assert runner.run(main()) == list(range(1, 101))


def test_a_program_in_trio_INIT_6(fresh):
    trio = pytest.importorskip("trio")

    async def main():
        async with fresh.init(num_cpus=2):
            f = fresh.remote(lambda x: x + 1)
            return [await ref for ref in [f.remote(n) for n in range(20)]]

    assert trio.run(main) == list(range(1, 21))


def test_asyncio_run_again_and_again_in_one_session(tl):
    f = tl.remote(lambda x: x)

    async def main(n):
        return await f.remote(n)

    assert [asyncio.run(main(n)) for n in range(5)] == list(range(5))


async def test_the_loop_goes_on_while_a_task_runs(tl, gate):
    ref = tl.remote(gate.enter).remote()
    waiting = asyncio.ensure_future(ref)
    ticks = 0
    while ticks < 20:
        await asyncio.sleep(0)
        ticks += 1
    assert not waiting.done()
    gate.open()

    assert await waiting is None


def test_a_blocked_loop_does_not_stop_the_graph(tl, gate):
    @tl.remote
    def step(x):
        gate.note("step")
        return x + 1

    async def main():
        ref = step.remote(step.remote(step.remote(0)))
        assert eventually(lambda: gate.count("step") == 3), "the loop stood still all the time"
        return await ref

    assert asyncio.run(main()) == 3


async def test_as_completed_gives_values_as_they_come(tl, gate):
    @tl.remote(num_cpus=0)
    def held():
        gate.enter()
        return "slow"

    refs = [held.remote(), tl.remote(num_cpus=0)(lambda: "quick").remote()]
    seen = []
    async for value in tl.as_completed(refs):
        seen.append(value)
        gate.open()

    assert seen == ["quick", "slow"]


async def test_map_over_an_async_function(tl):
    async def double(x):
        await asyncio.sleep(0.001)
        return 2 * x

    assert [v async for v in tl.map(tl.remote(double), range(20))] == [2 * n for n in range(20)]


async def test_run_in_executor_takes_the_executor(tl):
    with tl.Executor() as executor:
        loop = asyncio.get_running_loop()
        pids = await asyncio.gather(*(loop.run_in_executor(executor, os.getpid) for _ in range(4)))

    assert os.getpid() not in pids


# -- cancelling an await ------------------------------------------------------------------------


async def test_a_ref_variable_that_lives_keeps_the_task_when_its_await_is_cancelled_REF_4(tl, gate):
    @tl.remote
    def held():
        gate.enter()
        return "value"

    ref = held.remote()
    gate.wait_for()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ref, 0.02)
    gate.open()

    assert await ref == "value"
