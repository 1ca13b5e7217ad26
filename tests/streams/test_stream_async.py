"""Streams in event loops: ``async for`` in the driver, async generators in workers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
import trio
from kept import nothing_is_kept

from gates import Gate, eventually
from taskloom.exceptions import TaskCancelledError


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def count_to(n):
    yield from range(n)


async def acount_to(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


def held_up(gate):
    yield "first"
    gate.enter()
    yield "second"


# -- consumers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("produce", [count_to, acount_to])
def test_async_for_gives_the_refs_as_they_come_GEN_1(tl, produce):
    async def main():
        return [await ref async for ref in tl.remote(produce).remote(1000)]

    assert asyncio.run(main()) == list(range(1000))


def test_async_for_works_in_trio_GEN_1(tl):
    async def main():
        return [await ref async for ref in tl.remote(count_to).remote(100)]

    assert trio.run(main) == list(range(100))


def test_the_loop_turns_while_a_coroutine_waits_for_the_next_item_GEN_1(tl, gate):
    async def main():
        generator = tl.remote(held_up).remote(gate)
        assert await (await anext(generator)) == "first"
        waits = asyncio.ensure_future(anext(generator))
        await asyncio.to_thread(gate.wait_for)
        assert not waits.done()
        gate.open()
        return await (await waits)

    assert asyncio.run(main()) == "second"


def test_an_error_is_the_last_ref_of_an_async_for_GEN_2(tl):
    async def broken():
        yield 1
        raise LookupError("away")

    async def main():
        first, last = [ref async for ref in tl.remote(broken).remote()]
        assert await first == 1
        with pytest.raises(LookupError, match="away"):
            await last

    asyncio.run(main())


def test_a_thousand_polls_with_a_timeout_leave_no_task_and_no_waiter_behind_GEN_8(tl, gate):
    async def main():
        generator = tl.remote(held_up).remote(gate)
        await anext(generator)
        await asyncio.to_thread(gate.wait_for)
        tasks = len(asyncio.all_tasks())
        for i in range(1000):
            with pytest.raises(TimeoutError):
                if i % 2:
                    async with asyncio.timeout(0.0001):
                        await anext(generator)
                else:
                    await asyncio.wait_for(anext(generator), 0.0001)
        assert len(asyncio.all_tasks()) == tasks
        sleepers = generator._source.home._engine.sleepers.table
        assert not [waiting for waiting in sleepers.values() if waiting]
        gate.open()
        return await (await anext(generator))

    assert asyncio.run(main()) == "second"


def test_a_cancelled_wait_loses_no_item_and_does_not_stop_the_producer_GEN_8(tl, gate):
    async def main():
        generator = tl.remote(held_up).remote(gate)
        await anext(generator)
        waits = asyncio.ensure_future(anext(generator))
        await asyncio.to_thread(gate.wait_for)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        gate.open()
        return [await ref async for ref in generator]

    assert asyncio.run(main()) == ["second"]


def test_two_coroutines_share_a_stream_without_losing_an_item(tl):
    async def main():
        generator = tl.remote(acount_to).remote(200)

        async def take():
            return [await ref async for ref in generator]

        one, other = await asyncio.gather(take(), take())
        return sorted(one + other)

    assert asyncio.run(main()) == list(range(200))


def test_aclose_stops_the_producer_and_ends_the_iteration_GEN_4(tl, gate):
    async def endless(gate):
        try:
            i = 0
            while True:
                yield i
                i += 1
                await asyncio.sleep(0.001)
        finally:
            gate.note("stopped")

    async def main():
        async with aclosing(tl.remote(endless).remote(gate)) as generator:
            async for ref in generator:
                if await ref == 3:
                    break
            completed = generator.completed()
        assert [ref async for ref in generator] == []
        with pytest.raises(TaskCancelledError):
            await completed

    asyncio.run(main())
    gate.wait_for("stopped")


def test_closing_wakes_a_coroutine_that_waits_for_the_next_item_GEN_4(tl, gate):
    async def main():
        generator = tl.remote(held_up).remote(gate)
        await anext(generator)
        waits = asyncio.ensure_future(anext(generator, "the end"))
        await asyncio.to_thread(gate.wait_for)
        await generator.aclose()
        return await waits

    assert asyncio.run(main()) == "the end"


def test_asend_and_athrow_are_not_possible_GEN_4(tl):
    async def main():
        generator = tl.remote(count_to).remote(1)
        for call in (generator.asend(1), generator.athrow(ValueError)):
            with pytest.raises(NotImplementedError, match="not supported"):
                await call

    asyncio.run(main())


def test_wait_async_takes_generators_and_refs_together_WAIT_3(tl, gate):
    async def main():
        generator, ref = tl.remote(held_up).remote(gate), tl.remote(gate.stay).remote()
        assert await tl.wait_async([ref, generator]) == ([generator], [ref])
        await anext(generator)
        assert await tl.wait_async([ref, generator], timeout=0) == ([], [ref, generator])
        assert await tl.wait_async([ref, generator], timeout=0.01) == ([], [ref, generator])
        gate.open()
        assert await tl.wait_async([generator, ref], 2) == ([generator, ref], [])

    asyncio.run(main())


# -- async generators in workers ------------------------------------------------------------------


def test_an_async_generator_is_a_task_that_shares_its_loop_ACT_23(tl, gate):
    async def held(name):
        gate.note(name)
        yield name
        while gate.count("a") + gate.count("b") < 2:
            await asyncio.sleep(0.001)
        yield name.upper()

    f = tl.remote(held)
    a, b = f.remote("a"), f.remote("b")
    assert [tl.get(ref) for ref in a] == ["a", "A"]
    assert [tl.get(ref) for ref in b] == ["b", "B"]
    assert gate.pids("a") == gate.pids("b")


def test_an_async_generator_that_never_waits_does_not_hold_up_its_loop(tl):
    async def eager():
        i = 0
        while True:
            yield i
            i += 1

    async def quick():
        return "quick"

    generator = tl.remote(eager).options(backpressure=-1).remote()
    assert [tl.get(next(generator)) for _ in range(10)] == list(range(10))
    assert tl.get(tl.remote(quick).remote(), timeout=20) == "quick"
    generator.close()
    del generator
    assert eventually(lambda: nothing_is_kept(tl))


def test_an_async_generator_with_a_number_of_returns_fills_its_refs_REM_7(tl, gate):
    async def f():
        yield 1
        while not gate.count("seen"):
            await asyncio.sleep(0.001)
        yield 2

    one, two = tl.remote(num_returns=2)(f).remote()
    assert tl.get(one) == 1
    gate.note("seen")
    assert tl.get(two) == 2
    few = tl.remote(num_returns=2)(acount_to).remote(1)
    with pytest.raises(ValueError, match="Task returned 1 objects"):
        tl.get(few[1])


def test_an_async_generator_is_cancelled_where_it_waits(tl, gate):
    async def f():
        try:
            yield 1
            gate.note("waits")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            gate.note("cancelled")
            raise

    generator = tl.remote(f).remote()
    next(generator)
    gate.wait_for("waits")
    tl.cancel(generator)
    (bad,) = generator
    with pytest.raises(TaskCancelledError):
        tl.get(bad)
    gate.wait_for("cancelled")
