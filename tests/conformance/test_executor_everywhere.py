"""Executor: what programs written for concurrent.futures do."""

from __future__ import annotations

import asyncio
import concurrent.futures
import operator

import pytest
from tests.conformance.subjects import AT_ONCE, LONG_S, Broken
from tests.gates import Gate

import taskloom as tl


def _break(code):
    raise Broken(code, "it broke")


def _enter(gate, value):
    gate.enter("inside")
    return value


def test_submit_gives_a_future():
    with tl.Executor() as executor:
        future = executor.submit(pow, 2, 10)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(LONG_S) == 1024
        assert executor.submit(_break, 7).exception(LONG_S).code == 7


def test_map_keeps_the_order():
    with tl.Executor() as executor:
        assert list(executor.map(operator.mul, range(10), range(10))) == [n * n for n in range(10)]
        assert list(executor.map(abs, range(-20, 0), chunksize=5)) == list(range(20, 0, -1))


def test_wait_and_as_completed_of_the_standard_library_work():
    with tl.Executor() as executor:
        futures = [executor.submit(abs, -n) for n in range(5)]
        done, rest = concurrent.futures.wait(futures, LONG_S)
        assert (len(done), len(rest)) == (5, 0)
        found = [future.result() for future in concurrent.futures.as_completed(futures)]
    assert sorted(found) == [0, 1, 2, 3, 4]


def test_run_in_executor_of_a_loop_works():
    async def main():
        with tl.Executor() as executor:
            return await asyncio.get_running_loop().run_in_executor(executor, pow, 2, 5)

    assert asyncio.run(main()) == 32


@pytest.mark.differs("local_mode", AT_ONCE)
def test_max_workers_holds_calls_back(tmp_path):
    gate = Gate(tmp_path)
    with tl.Executor(max_workers=1, num_cpus=0.1) as executor:
        futures = [executor.submit(_enter, gate, n) for n in range(2)]
        gate.wait_for("inside")
        assert futures[1].cancel()
        gate.open()
        assert futures[0].result(LONG_S) == 0
    assert gate.count("inside") == 1


@pytest.mark.differs("dask", "the future cannot be cancelled: Dask does not tell what has begun")
@pytest.mark.differs("local_mode", AT_ONCE)
@pytest.mark.differs("ray", "the future cannot be cancelled: Ray does not tell what has begun")
def test_a_call_that_has_not_begun_can_be_cancelled(tmp_path):
    gate = Gate(tmp_path)
    with tl.Executor(num_cpus=0.1, resources={"slot": 4}) as executor:
        first = executor.submit(_enter, gate, 1)
        gate.wait_for("inside")
        second = executor.submit(_enter, gate, 2)
        assert second.cancel()
        gate.open()
        assert first.result(LONG_S) == 1
    assert gate.count("inside") == 1


@pytest.mark.differs("local_mode", AT_ONCE)
def test_leaving_the_block_waits_for_all_calls(tmp_path):
    gate = Gate(tmp_path)
    with tl.Executor() as executor:
        future = executor.submit(_enter, gate, 1)
        gate.wait_for("inside")
        gate.open()
    assert future.done()


def test_nothing_can_be_submitted_after_shutdown():
    executor = tl.Executor()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(abs, -1)


def test_an_executor_works_in_a_task():
    @tl.remote
    def work():
        with tl.Executor() as executor:
            return list(executor.map(abs, [-1, -2, -3]))

    assert tl.get(work.remote(), timeout=LONG_S) == [1, 2, 3]


def test_options_of_the_executor_are_those_of_its_tasks():
    def assigned():
        return tl.get_runtime_context().get_assigned_resources()

    with tl.Executor(num_cpus=0.5, resources={"slot": 1}) as executor:
        assert executor.submit(assigned).result(LONG_S) == {"CPU": 0.5, "slot": 1.0}
