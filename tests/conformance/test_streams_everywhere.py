"""Streams: generators whose items arrive one by one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time

import pytest
from tests.conformance.subjects import LONG_S, ONE_PROCESS, Broken, add
from tests.gates import Gate, eventually

import taskloom as tl


@tl.remote
def count(n):
    yield from range(n)


@tl.remote
def breaks(after):
    yield from range(after)
    raise Broken(9, "in the middle")


@tl.remote
def endless(gate):
    try:
        for n in itertools.count():
            gate.note("made")
            yield n
            time.sleep(0.005)
    finally:
        gate.note("closed")


def test_a_generator_streams_refs():
    stream = count.remote(5)
    assert isinstance(stream, tl.ObjectRefGenerator)
    assert [tl.get(ref) for ref in stream] == [0, 1, 2, 3, 4]


def test_async_for_over_a_stream():
    async def main():
        return [await ref async for ref in count.remote(4)]

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_async_generators_stream():
    @tl.remote
    async def slowly(n):
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    assert [tl.get(ref) for ref in slowly.remote(4)] == [0, 1, 2, 3]


def test_an_empty_stream_ends_at_once():
    assert list(count.remote(0)) == []


def test_an_error_comes_after_the_items_before_it_and_ends_the_stream():
    stream = breaks.remote(3)
    assert [tl.get(next(stream)) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Broken) as caught:
        tl.get(next(stream))
    assert caught.value.code == 9
    with pytest.raises(StopIteration):
        next(stream)


def test_items_can_be_taken_before_the_generator_has_ended(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def two():
        yield "first"
        gate.stay()
        yield "second"

    stream = two.remote()
    assert tl.get(next(stream), timeout=LONG_S) == "first"
    gate.open()
    assert tl.get(next(stream), timeout=LONG_S) == "second"


def test_closing_a_stream_ends_its_generator(tmp_path):
    gate = Gate(tmp_path)
    stream = endless.remote(gate)
    assert tl.get(next(stream)) == 0
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    gate.wait_for("closed")


def test_dropping_a_stream_ends_its_generator_before_the_next_call_at_the_latest(tmp_path):
    gate = Gate(tmp_path)
    stream = endless.remote(gate)
    assert tl.get(next(stream)) == 0
    del stream
    tl.get(add.remote(1, 1), timeout=LONG_S)
    gate.wait_for("closed")


def test_closing_or_dropping_a_stream_is_no_error_to_be_told(tmp_path, capfd):
    gate = Gate(tmp_path)
    closed, dropped = endless.remote(gate), endless.remote(gate)
    assert tl.get([next(closed), next(dropped)], timeout=LONG_S) == [0, 0]
    closed.close()
    del closed, dropped
    tl.get(add.remote(1, 1), timeout=LONG_S)
    gate.wait_for("closed", 2)
    tl.get(add.remote(1, 1), timeout=LONG_S)
    assert "Unhandled" not in capfd.readouterr().err


def test_a_limit_holds_the_generator_back(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(backpressure=2)
    def careful():
        for n in range(20):
            gate.note("made")
            yield n

    stream = careful.remote()
    assert tl.get(next(stream), timeout=LONG_S) == 0
    assert [tl.get(ref) for ref in count.remote(20)] == list(range(20))  # time for more
    # One is taken, two are there, one is being made; a cluster may ask for one ahead.
    assert gate.count("made") <= 5
    assert [tl.get(ref) for ref in stream] == list(range(1, 20))


def test_items_of_a_stream_are_arguments_of_tasks():
    assert [tl.get(add.remote(ref, 10)) for ref in count.remote(3)] == [10, 11, 12]


def test_large_items_stream():
    @tl.remote
    def blocks(n):
        for i in range(n):
            yield bytes([i]) * 300_000

    assert [tl.get(ref)[:1] for ref in blocks.remote(4)] == [b"\0", b"\1", b"\2", b"\3"]


def test_completed_is_done_when_the_generator_has_ended():
    stream = count.remote(3)
    tl.get(stream.completed(), timeout=LONG_S)
    assert [tl.get(ref) for ref in stream] == [0, 1, 2]


def test_a_task_may_consume_a_stream_of_another():
    @tl.remote
    def total(n):
        return sum(tl.get(ref) for ref in count.remote(n))

    assert tl.get(total.remote(5), timeout=LONG_S) == 10


def test_wait_takes_streams_among_refs():
    stream = count.remote(1)
    ready, rest = tl.wait([stream], timeout=LONG_S)
    assert (ready, rest) == ([stream], [])
    assert tl.get(next(stream)) == 0


def test_a_finished_stream_says_so():
    stream = count.remote(1)
    assert tl.get(next(stream)) == 0
    assert list(stream) == []
    assert eventually(stream.is_finished)


def test_two_streams_may_be_taken_by_turns():
    first, second = count.remote(3), count.remote(3)
    found = [tl.get(ref) for pair in zip(first, second, strict=True) for ref in pair]
    assert found == [0, 0, 1, 1, 2, 2]


def test_leaving_an_async_for_early_ends_the_generator(tmp_path):
    gate = Gate(tmp_path)

    async def main():
        stream = endless.remote(gate)
        async with contextlib.aclosing(stream):
            async for ref in stream:
                if await ref == 3:
                    break

    asyncio.run(main())
    gate.wait_for("closed")


@pytest.mark.differs("local_mode", ONE_PROCESS)
def test_a_stream_whose_worker_dies_is_made_again(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(max_retries=1)
    def fragile():
        yield "first"
        gate.note("tried")
        if gate.count("tried") == 1:
            os._exit(1)
        yield "second"

    assert [tl.get(ref, timeout=LONG_S) for ref in fragile.remote()] == ["first", "second"]


def test_a_stream_that_raises_is_made_again_when_it_was_asked_for(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(max_retries=2, retry_exceptions=True)
    def moody():
        yield "first"
        gate.note("tried")
        if gate.count("tried") == 1:
            raise Broken(1, "again")
        yield "second"

    assert [tl.get(ref, timeout=LONG_S) for ref in moody.remote()] == ["first", "second"]
