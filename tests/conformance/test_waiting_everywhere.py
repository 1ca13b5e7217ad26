"""All ways to wait: get, await, wait, as_completed, map, futures."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tests.conformance.subjects import AT_ONCE, LONG_S, Broken, add, fail
from tests.gates import Gate, eventually

import taskloom as tl
from taskloom.exceptions import GetTimeoutError


@tl.remote
def enter(gate, value):
    gate.enter("inside")
    return value


def test_get_keeps_the_order_of_a_list_and_gives_a_tuple_for_a_tuple():
    refs = [add.remote(n, n) for n in range(10)]
    assert tl.get(refs) == [2 * n for n in range(10)]
    assert tl.get(tuple(refs[:2])) == (0, 2)
    assert tl.get([]) == []


def test_get_may_be_asked_again():
    ref = add.remote([1], [2])
    assert tl.get(ref) == tl.get(ref) == [1, 2]


def test_get_refuses_what_is_no_ref():
    with pytest.raises((TypeError, ValueError), match="ObjectRef"):
        tl.get(3)
    with pytest.raises(TypeError, match="ObjectRef"):
        tl.get([add.remote(1, 1), 3])


@pytest.mark.differs("local_mode", AT_ONCE)
def test_get_with_a_timeout_raises_and_the_task_goes_on(tmp_path):
    gate = Gate(tmp_path)
    ref = enter.remote(gate, "done")
    with pytest.raises(GetTimeoutError):
        tl.get(ref, timeout=0.01)
    with pytest.raises(TimeoutError):
        tl.get(ref, timeout=0)
    gate.open()
    assert tl.get(ref, timeout=LONG_S) == "done"


@pytest.mark.differs("local_mode", AT_ONCE)
def test_get_of_many_raises_as_soon_as_one_has_failed(tmp_path):
    gate = Gate(tmp_path)
    slow = enter.remote(gate, "done")
    with pytest.raises(Broken):
        tl.get([slow, fail.remote(1)], timeout=LONG_S)
    gate.open()
    assert tl.get(slow, timeout=LONG_S) == "done"


def test_await_gives_the_value_or_raises_the_error():
    async def main():
        with pytest.raises(Broken):
            await fail.remote(1)
        return await add.remote(1, 1)

    assert asyncio.run(main()) == 2


def test_refs_work_in_gather_and_in_an_asyncio_task_group():
    async def value_of(ref):
        return await ref

    async def main():
        together = await asyncio.gather(*[add.remote(n, n) for n in range(4)])
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(value_of(add.remote(n, 1))) for n in range(3)]
        return together, [task.result() for task in tasks]

    assert asyncio.run(main()) == ([0, 2, 4, 6], [1, 2, 3])


@pytest.mark.differs("local_mode", AT_ONCE)
def test_the_loop_goes_on_while_a_ref_is_awaited(tmp_path):
    gate = Gate(tmp_path)

    async def main():
        async def open_gate():
            await asyncio.to_thread(gate.wait_for, "inside")
            gate.open()

        opener = asyncio.create_task(open_gate())
        value = await enter.remote(gate, "done")
        await opener
        return value

    assert asyncio.run(main()) == "done"


@pytest.mark.differs("local_mode", AT_ONCE)
def test_wait_tells_what_is_done_and_what_is_not(tmp_path):
    gate = Gate(tmp_path)
    slow, fast = enter.remote(gate, "slow"), add.remote(1, 1)
    assert tl.wait([slow, fast], timeout=LONG_S) == ([fast], [slow])
    assert tl.wait([slow, fast], num_returns=2, timeout=0.05) == ([fast], [slow])
    assert tl.wait([slow], timeout=0) == ([], [slow])
    gate.open()
    assert tl.wait([slow, fast], num_returns=2, timeout=LONG_S) == ([slow, fast], [])


def test_wait_counts_failed_tasks_as_done():
    refs = [add.remote(1, 1), fail.remote(1)]
    assert tl.wait(refs, num_returns=2, timeout=LONG_S) == (refs, [])


def test_wait_refuses_a_ref_that_is_there_twice():
    ref = tl.put(1)
    with pytest.raises(ValueError, match="unique"):
        tl.wait([ref, ref])


def test_wait_async_is_wait_in_a_loop():
    async def main():
        refs = [add.remote(n, 0) for n in range(4)]
        ready, rest = await tl.wait_async(refs, num_returns=4)
        assert (ready, rest) == (refs, [])

    asyncio.run(main())


@pytest.mark.differs("local_mode", AT_ONCE)
def test_as_completed_gives_values_in_the_order_in_which_they_are_done(tmp_path):
    gate = Gate(tmp_path)
    values = tl.as_completed([enter.remote(gate, "slow"), add.remote("f", "ast")])
    assert next(values) == "fast"
    gate.open()
    assert list(values) == ["slow"]


def test_as_completed_raises_an_error_in_its_place_and_goes_on():
    values = tl.as_completed([add.remote(1, 1), fail.remote(7), add.remote(2, 2)])
    found = []
    while True:
        try:
            found.append(next(values))
        except StopIteration:
            break
        except Broken as error:
            found.append(error.code)
    assert sorted(found) == [2, 4, 7]


def test_as_completed_works_with_async_for_and_gives_refs_on_request():
    async def main():
        refs = [add.remote(n, 0) for n in range(4)]
        seen = [ref async for ref in tl.as_completed(refs, yield_obj_refs=True)]
        assert set(seen) == set(refs)
        return sorted([value async for value in tl.as_completed(refs)])

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_map_keeps_the_order_of_the_items():
    assert list(tl.map(lambda n: n * n, range(20))) == [n * n for n in range(20)]


def test_map_takes_items_lazily_so_that_they_may_be_endless():
    taken = []

    def endless():
        n = 0
        while True:
            taken.append(n)
            yield n
            n += 1

    values = tl.map(lambda n: n + 1, endless(), limit=4)
    assert [next(values) for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    values.close()
    assert len(taken) <= 11


def test_map_returns_errors_where_it_was_asked_to():
    first, second = tl.map(fail, [1, 2], return_exceptions=True)
    assert (first.code, second.code) == (1, 2)


def test_map_works_with_async_for_over_an_async_iterable():
    async def items():
        for n in range(5):
            await asyncio.sleep(0)
            yield n

    async def main():
        return sorted([value async for value in tl.map(lambda n: 2 * n, items(), ordered=False)])

    assert asyncio.run(main()) == [0, 2, 4, 6, 8]


def test_a_ref_gives_a_future_and_calls_back():
    ref = add.remote(1, 2)
    called = threading.Event()
    assert ref.future().result(LONG_S) == 3
    assert fail.remote(1).future().exception(LONG_S).code == 1
    ref.future().add_done_callback(lambda _future: called.set())
    assert called.wait(LONG_S)


def test_a_ref_says_whether_it_is_done():
    ref = add.remote(1, 2)
    tl.wait([ref], timeout=LONG_S)
    assert eventually(ref.done)
    assert ref.result() == 3
    assert ref.exception() is None


def test_many_threads_may_wait_for_one_ref():
    ref = add.remote(20, 1)
    found = []
    threads = [threading.Thread(target=lambda: found.append(tl.get(ref))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert found == [21] * 8


def test_asyncio_wait_and_wait_for_take_refs():
    async def main():
        done, pending = await asyncio.wait([add.remote(1, 1)], timeout=LONG_S)
        assert not pending
        return [ref.result() for ref in done], await asyncio.wait_for(add.remote(2, 2), LONG_S)

    assert asyncio.run(main()) == ([2], 4)


def test_a_ref_may_be_awaited_in_several_loops():
    ref = add.remote(1, 1)

    async def main():
        return await ref

    assert [asyncio.run(main()) for _ in range(3)] == [2, 2, 2]


def test_a_task_waits_for_what_is_done_first():
    @tl.remote
    def work():
        refs = [add.remote(n, 0) for n in range(4)]
        ready, rest = tl.wait(refs, num_returns=2)
        return len(ready), len(rest), sorted(tl.as_completed(refs))

    assert tl.get(work.remote(), timeout=LONG_S) == (2, 2, [0, 1, 2, 3])


def test_the_helpers_of_ray_util_work():
    refs = [add.remote(n, 0) for n in range(4)]
    assert sorted(tl.util.as_completed(refs)) == [0, 1, 2, 3]
    assert sorted(tl.util.map_unordered(lambda n: -n, range(4))) == [-3, -2, -1, 0]
