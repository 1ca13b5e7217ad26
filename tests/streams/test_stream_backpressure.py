"""Back-pressure: a producer that is as many items ahead as it may be stands still."""

from __future__ import annotations

import asyncio

import pytest
from kept import nothing_is_kept

from gates import Gate, eventually

SESSION = {"num_cpus": 1}


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def make(gate, n):
    for i in range(n):
        gate.note("made")
        yield i


async def amake(gate, n):
    for i in range(n):
        gate.note("made")
        yield i


def stands_behind(generator, made):
    """Whether the producer comes to ask for room behind so many items."""
    stream = generator._source._stream
    return eventually(lambda: stream.room is not None and stream.room[0] == made)


@pytest.mark.parametrize("produce", [make, amake])
@pytest.mark.parametrize("limit", [1, 3])
def test_the_producer_stands_still_when_so_many_items_are_not_taken_GEN_6(tl, gate, produce, limit):
    generator = tl.remote(backpressure=limit)(produce).remote(gate, 10)
    for taken in range(10):
        if taken + limit < 10:
            assert stands_behind(generator, taken + limit)
            assert gate.count("made") == taken + limit
        assert tl.get(next(generator)) == taken
    assert next(generator, "the end") == "the end"


def test_ray_s_name_of_the_option_does_the_same_GEN_6(tl, gate):
    f = tl.remote(make).options(_generator_backpressure_num_objects=2)
    generator = f.remote(gate, 5)
    assert stands_behind(generator, 2)
    assert gate.count("made") == 2
    assert [tl.get(ref) for ref in generator] == list(range(5))


def test_without_a_limit_nothing_stands_still_GEN_6(tl, gate):
    generator = tl.remote(backpressure=-1)(make).remote(gate, 300)
    gate.wait_for("made", 300)
    assert len(list(generator)) == 300


def test_looking_at_the_next_item_does_not_take_it_GEN_6(tl, gate):
    generator = tl.remote(backpressure=1)(make).remote(gate, 3)
    assert tl.wait([generator])[0] == [generator]
    assert generator.next_ready()
    assert stands_behind(generator, 1)
    assert gate.count("made") == 1
    next(generator)
    gate.wait_for("made", 2)


@pytest.mark.parametrize("produce", [make, amake])
def test_who_stands_still_lends_his_cpu_GEN_6(tl, gate, produce):
    generator = tl.remote(backpressure=1, num_cpus=1)(produce).remote(gate, 3)
    assert stands_behind(generator, 1)
    assert tl.get(tl.remote(lambda: "ran").remote(), timeout=20) == "ran"
    assert [tl.get(ref) for ref in generator] == [0, 1, 2]


@pytest.mark.parametrize("produce", [make, amake])
def test_a_producer_and_a_consumer_share_one_cpu_GEN_6(tl, gate, produce):
    @tl.remote
    def consume():
        f = tl.remote(backpressure=1, num_cpus=1)(produce)
        return [tl.get(ref) for ref in f.remote(gate, 20)]

    assert tl.get(consume.remote(), timeout=60) == list(range(20))


def test_a_coroutine_consumes_what_a_task_on_the_same_cpu_makes_GEN_6(tl, gate):
    @tl.remote(num_cpus=1)
    async def consume():
        generator = tl.remote(backpressure=1)(make).remote(gate, 20)
        return [await ref async for ref in generator]

    assert tl.get(consume.remote(), timeout=60) == list(range(20))


@pytest.mark.parametrize("produce", [make, amake])
@pytest.mark.parametrize("way", ["cancel", "close", "drop"])
def test_who_stands_still_is_stopped_as_any_other_GEN_7(tl, gate, produce, way):
    generator = tl.remote(backpressure=1)(produce).remote(gate, 10**9)
    assert stands_behind(generator, 1)
    if way == "cancel":
        tl.cancel(generator)
    elif way == "close":
        generator.close()
    del generator
    assert eventually(lambda: nothing_is_kept(tl))
    assert eventually(lambda: tl.available_resources().get("CPU") == 1)
    assert gate.count("made") == 1


def test_a_dropped_stream_that_goes_on_for_its_end_has_no_limit_any_more_GEN_7(tl, gate):
    generator = tl.remote(backpressure=1)(make).remote(gate, 50)
    assert stands_behind(generator, 1)
    completed = generator.completed()
    del generator
    assert tl.get(completed, timeout=20) is None
    assert gate.count("made") == 50


def test_an_error_behind_the_limit_comes_after_the_items_GEN_6(tl):
    @tl.remote(backpressure=2)
    def f():
        yield from range(3)
        raise KeyError("x")

    *items, last = f.remote()
    assert tl.get(items) == [0, 1, 2]
    with pytest.raises(KeyError):
        tl.get(last)


def test_an_async_for_takes_items_as_for_does_GEN_6(tl, gate):
    async def main():
        generator = tl.remote(backpressure=2)(make).remote(gate, 30)
        return [await ref async for ref in generator]

    assert asyncio.run(main()) == list(range(30))


def test_a_retried_producer_counts_what_was_taken_before_GEN_6(tl, gate):
    @tl.remote(backpressure=2, retry_exceptions=True)
    def f():
        for i in range(6):
            if i == 3 and not gate.count("failed"):
                gate.note("failed")
                raise OSError
            gate.note("made")
            yield i

    generator = f.remote()
    assert [tl.get(ref) for ref in generator] == list(range(6))
    assert gate.count("made") == 3 + 6
