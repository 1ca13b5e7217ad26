"""``await ref`` in a task: it behaves as if it had awaited a Future."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from contextvars import ContextVar

import anyio
import pytest
import uvloop
from tests.gates import Gate
from tests.scale import scaled

from taskloom._awaiting import Wait
from taskloom._engine.doorbells import doorbell_of

LOOPS = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


def run(main, new_loop=asyncio.new_event_loop):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)


def python_tasks(loop, coroutine, **options):
    """Tasks as they are where asyncio has no C part."""
    return asyncio.tasks._PyTask(coroutine, loop=loop, **options)


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def held_by(tl, gate):
    """A task that stays until the gate is open."""

    def stay(value):
        gate.stay()
        return value

    return tl.remote(stay)


@LOOPS
@pytest.mark.parametrize("factory", [None, python_tasks], ids=["C", "Python"])
def test_one_after_another_and_many_at_once(tl, new_loop, factory):
    double = tl.remote(lambda n: 2 * n)

    async def main():
        asyncio.get_running_loop().set_task_factory(factory)

        async def one(n):
            return await double.remote(n)

        assert [await one(n) for n in range(100)] == [2 * n for n in range(100)]
        assert await asyncio.gather(*map(one, range(300))) == [2 * n for n in range(300)]
        assert await asyncio.wait_for(double.remote(4), 20) == 8

    run(main(), new_loop)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_in_tasks_that_begin_at_once(tl):
    double = tl.remote(lambda n: 2 * n)

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

        async def one(n):
            return await double.remote(n)

        tasks = [asyncio.create_task(one(n)) for n in range(100)]
        assert await asyncio.gather(*tasks) == [2 * n for n in range(100)]

    run(main())


@pytest.mark.parametrize("factory", [None, python_tasks], ids=["C", "Python"])
def test_a_task_that_is_cancelled_says_why_and_goes_on(tl, gate, factory):
    waits = held_by(tl, gate)

    async def main():
        asyncio.get_running_loop().set_task_factory(factory)
        ref = waits.remote(5)
        said = []

        async def stubborn():
            try:
                await ref
            except asyncio.CancelledError as error:
                said.append(error.args)
            return await ref

        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        assert task.cancel("not now")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert said == [("not now",)]
        gate.open()
        return await task

    tl.shutdown()
    tl.init(num_cpus=2, await_cancels=False)
    assert run(main()) == 5


def test_cancelled_twice_is_cancelled_once(tl, gate):
    waits = held_by(tl, gate)

    async def main():
        ref = waits.remote(5)
        count = 0

        async def counting():
            nonlocal count
            for _ in range(2):
                try:
                    return await ref
                except asyncio.CancelledError:
                    count += 1
            return "cancelled"

        task = asyncio.create_task(counting())
        await asyncio.sleep(0)
        task.cancel()
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert count == 1
        task.cancel()
        assert await task == "cancelled"
        gate.open()

    run(main())


def test_a_result_that_comes_with_a_cancellation_wakes_once(tl):
    """The object is done, and the loop is about to hear of it, when the task is cancelled."""
    double = tl.remote(lambda n: 2 * n)

    async def main():
        for n in range(200):
            ref = double.remote(n)
            steps = []

            async def waits(ref=ref, steps=steps):
                try:
                    steps.append(await ref)
                except asyncio.CancelledError:
                    steps.append("cancelled")
                await asyncio.sleep(0)
                steps.append("end")

            task = asyncio.create_task(waits())
            await asyncio.sleep(0)
            until = time.monotonic() + 20
            while not ref.done():  # the loop turns no more until it is
                assert time.monotonic() < until
            task.cancel()
            await asyncio.wait([task])
            assert steps in (["cancelled", "end"], [2 * n])
            ways.add(steps[0] == "cancelled")

    ways = set()
    run(main())
    assert True in ways


def test_a_task_keeps_its_context(tl):
    variable: ContextVar[int] = ContextVar("variable")
    double = tl.remote(lambda n: 2 * n)

    async def main():
        async def one(n):
            variable.set(n)
            await double.remote(n)
            assert variable.get() == n
            variable.set(-n)
            await double.remote(n)
            return variable.get()

        assert await asyncio.gather(*map(one, range(50))) == [-n for n in range(50)]
        assert variable.get(None) is None

    run(main())


@LOOPS
def test_ctrl_c_in_one_task_is_no_end_for_the_others(tl, new_loop):
    double = tl.remote(lambda n: 2 * n)
    loop = new_loop()
    values = []

    async def one(n):
        value = await double.remote(n)
        if n == 3:
            raise KeyboardInterrupt
        values.append(value)

    tasks = [loop.create_task(one(n)) for n in range(10)]
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.wait(tasks))
    loop.run_until_complete(asyncio.wait(tasks))
    assert sorted(values) == [2 * n for n in range(10) if n != 3]
    assert isinstance(tasks[3].exception(), KeyboardInterrupt)
    loop.close()


INTERRUPTED = """
import asyncio, os, random, signal, sys, threading, time
import taskloom
signal.signal(signal.SIGINT, signal.default_int_handler)
taskloom.init(num_cpus=2)
double = taskloom.remote(lambda n: 2 * n)
loop = asyncio.new_event_loop()
chance = random.Random(1)

async def one(n):
    return await double.remote(n)

def interrupt(delay_s):
    begun.wait()
    time.sleep(delay_s)  # any moment will do
    os.kill(os.getpid(), signal.SIGINT)

def value(task):
    error = task.exception()  # the interrupt may have come while a task was running
    return "interrupted" if isinstance(error, KeyboardInterrupt) else task.result()

for _ in range(int(sys.argv[1])):
    tasks = [loop.create_task(one(n)) for n in range(30)]
    loop.run_until_complete(asyncio.sleep(0))
    begun = threading.Event()
    thread = threading.Thread(target=interrupt, args=(chance.random() * 0.001,))
    thread.start()
    try:
        begun.set()
        loop.run_until_complete(asyncio.wait(tasks))
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        pass
    thread.join()
    for _ in range(3):  # what the interrupted call has left behind may end the next one
        try:
            done, pending = loop.run_until_complete(asyncio.wait(tasks, timeout=30))
            break
        except RuntimeError:
            pass
    assert not pending, f"{len(pending)} awaits are never answered"
    assert all(value(task) in (2 * n, "interrupted") for n, task in enumerate(tasks))
taskloom.shutdown()
loop.close()
print("all were answered")
"""


def test_ctrl_c_at_any_moment_leaves_no_await_behind():
    """The loop is interrupted somewhere, and run on: who waited gets his value.

    Only asyncio's own loop can be run on after any interrupt; uvloop's may take itself for running.
    """
    argv = [sys.executable, "-c", INTERRUPTED, str(scaled(1000))]
    program = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert program.stdout.endswith("all were answered\n"), program.stderr


def test_a_time_limit_and_a_scope_end_the_wait(tl, gate):
    waits = held_by(tl, gate)

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await waits.remote(1)
        with anyio.move_on_after(0.01) as scope:
            await waits.remote(1)
        assert scope.cancelled_caught

    run(main())
    gate.open()


def test_an_await_is_for_one_task(tl, gate):
    async def main():
        async def waits():
            await held_by(tl, gate).remote(1)

        coroutine = waits()
        wait = coroutine.send(None)
        wait.add_done_callback(lambda _: None)
        with pytest.raises(RuntimeError, match="one callback"):
            wait.add_done_callback(lambda _: None)
        coroutine.close()

    run(main())
    gate.open()


def test_a_coroutine_that_is_closed_waits_no_more(tl, gate):
    ref = held_by(tl, gate).remote(1)

    async def main():
        async def waits():
            await ref

        coroutine = waits()
        wait = coroutine.send(None)
        assert isinstance(wait, Wait)
        assert not wait.done()
        coroutine.close()
        coroutine = waits()
        coroutine.send(None)
        with pytest.raises(RuntimeError, match="before the object is done"):
            coroutine.send(None)

    run(main())
    gate.open()
    assert tl.get(ref) == 1


@LOOPS
def test_many_loops_one_after_another_keep_no_descriptors(tl, new_loop):
    double = tl.remote(lambda n: 2 * n)

    async def main():
        return await double.remote(4)

    run(main(), new_loop)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        assert run(main(), new_loop) == 8
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_loops_of_several_threads_each_get_their_own(tl):
    double = tl.remote(lambda n: 2 * n)
    wrong = []

    def thread(start):
        async def main():
            numbers = range(start, start + 200)
            wrong.extend([n for n in numbers if await double.remote(n) != 2 * n])

        run(main(), uvloop.new_event_loop if start % 2 else asyncio.new_event_loop)

    threads = [threading.Thread(target=thread, args=(1001 * k,)) for k in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong


def test_one_loop_has_one_doorbell_for_all_sessions(tl):
    double = tl.remote(lambda n: 2 * n)

    async def main():
        loop = asyncio.get_running_loop()
        assert await double.remote(1) == 2
        bell = doorbell_of(loop)
        for _ in range(2):
            await asyncio.to_thread(tl.shutdown)
            await asyncio.to_thread(tl.init, num_cpus=2)
            assert await double.remote(1) == 2
            assert doorbell_of(loop) is bell

    run(main())
