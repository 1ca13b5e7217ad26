"""TaskGroup: tasks that end together."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.conformance.subjects import AT_ONCE, LONG_S, Broken, Counter, add, fail
from tests.gates import Gate

import taskloom as tl
from taskloom.exceptions import TaskCancelledError

DONE = f"{AT_ONCE}, so no member runs beside another"


@tl.remote
def sleep(gate):
    try:
        gate.note("began")
        time.sleep(60)
    except KeyboardInterrupt:
        gate.note("told")
        raise


def test_a_block_waits_for_all_its_members():
    with tl.TaskGroup():
        refs = [add.remote(n, n) for n in range(5)]
    assert all(ref.done() for ref in refs)
    assert tl.get(refs) == [0, 2, 4, 6, 8]


def test_async_with_waits_for_all_its_members():
    async def main():
        async with tl.TaskGroup() as group:
            refs = [add.remote(n, n) for n in range(3)]
            refs.append(group.remote(add)(10, 10))
        return [ref.result() for ref in refs]

    assert asyncio.run(main()) == [0, 2, 4, 20]


def test_an_error_of_a_member_comes_in_a_group():
    with pytest.raises(ExceptionGroup) as caught:
        with tl.TaskGroup():
            fail.remote(5)
    (error,) = caught.value.exceptions
    assert isinstance(error, Broken)
    assert error.code == 5


@pytest.mark.differs("local_mode", DONE)
def test_the_other_members_are_cancelled_when_one_fails(tmp_path):
    gate = Gate(tmp_path)
    with pytest.raises(ExceptionGroup):
        with tl.TaskGroup():
            rest = sleep.remote(gate)
            gate.wait_for("began")
            fail.remote(5)
    assert gate.count("told") == 1
    with pytest.raises(TaskCancelledError):
        tl.get(rest, timeout=LONG_S)


@pytest.mark.differs("local_mode", DONE)
def test_the_body_of_async_with_is_cancelled_when_a_member_fails(tmp_path):
    async def main():
        with pytest.raises(ExceptionGroup) as caught:
            async with tl.TaskGroup():
                fail.remote(5)
                await asyncio.sleep(LONG_S)
                pytest.fail("the body went on")
        return caught.value.exceptions

    (error,) = asyncio.run(main())
    assert isinstance(error, Broken)


@pytest.mark.differs("local_mode", DONE)
def test_an_error_of_the_body_cancels_the_members(tmp_path):
    gate = Gate(tmp_path)
    with pytest.raises(ExceptionGroup) as caught:
        with tl.TaskGroup():
            sleep.remote(gate)
            gate.wait_for("began")
            raise KeyError("of the body")
    (error,) = caught.value.exceptions
    assert isinstance(error, KeyError)
    assert gate.count("told") == 1


@pytest.mark.differs("local_mode", DONE)
def test_cancel_ends_the_members_and_is_no_error(tmp_path):
    gate = Gate(tmp_path)
    with tl.TaskGroup() as group:
        ref = sleep.remote(gate)
        gate.wait_for("began")
        group.cancel()
    with pytest.raises(TaskCancelledError):
        tl.get(ref, timeout=LONG_S)


@pytest.mark.differs("local_mode", DONE)
def test_what_a_member_has_submitted_ends_with_the_block(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def parent():
        tl.get(sleep.remote(gate))

    with pytest.raises(ExceptionGroup):
        with tl.TaskGroup():
            parent.remote()
            gate.wait_for("began")
            raise KeyError("of the body")
    gate.wait_for("told")


def test_groups_may_be_nested():
    with tl.TaskGroup():
        first = add.remote(1, 1)
        with tl.TaskGroup():
            second = add.remote(2, 2)
        assert second.done()
    assert tl.get([first, second]) == [2, 4]


def test_a_group_works_in_a_task():
    @tl.remote
    def work():
        with tl.TaskGroup():
            refs = [add.remote(n, 1) for n in range(3)]
        return tl.get(refs)

    assert tl.get(work.remote(), timeout=LONG_S) == [1, 2, 3]


def test_calls_of_actors_are_members():
    counter = Counter.remote()
    with tl.TaskGroup() as group:
        refs = [counter.add.remote(), group.remote(counter.add)(10)]
    assert tl.get(refs) == [1, 11]


def test_a_streams_generator_is_a_member(tmp_path):
    @tl.remote
    def items():
        yield from range(3)

    with tl.TaskGroup():
        found = [tl.get(ref) for ref in items.remote()]
    assert found == [0, 1, 2]


def test_a_released_task_outlives_the_block(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def work():
        gate.note("ran")
        return "done"

    with tl.TaskGroup() as group:
        ref = work.remote()
        group.release(ref)
    assert tl.get(ref, timeout=LONG_S) == "done"


def test_a_timeout_around_async_with_cancels_the_members_and_is_a_timeout(tmp_path):
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                async with tl.TaskGroup():
                    await asyncio.sleep(LONG_S)

    asyncio.run(main())
