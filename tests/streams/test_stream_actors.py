"""Streams of actors' methods: sync, async and threaded."""

from __future__ import annotations

import asyncio
import threading

import pytest

import taskloom
from gates import Gate, eventually
from taskloom.exceptions import ActorDiedError, DeadlockError, TaskCancelledError


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


@taskloom.remote
class Counter:
    def __init__(self):
        self.total = 0

    def count_to(self, n):
        for i in range(n):
            self.total += 1
            yield i

    def get_total(self):
        return self.total

    def held_up(self, gate):
        try:
            yield "first"
            gate.enter()
            yield "second"
        finally:
            gate.note("left")

    def endless(self, gate):
        try:
            while True:
                yield self.total
        finally:
            gate.note("stopped")

    def broken(self):
        yield 1
        raise KeyError("broken")

    def leave(self):
        yield 1
        taskloom.actor.exit_actor()

    def about_itself(self, own):
        return [taskloom.get(ref) for ref in own.count_to.remote(2)]


@taskloom.remote
class AsyncCounter:
    async def acount_to(self, n):
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    def count_to(self, n):
        for i in range(n):
            yield i, threading.current_thread().name

    async def meet(self, gate, name):
        gate.note(name)
        yield name
        while gate.count("a") + gate.count("b") < 2:
            await asyncio.sleep(0.001)
        yield name.upper()

    async def endless(self, gate):
        try:
            i = 0
            while True:
                yield i
                i += 1
        finally:
            gate.note("stopped")

    async def ping(self):
        return "pong"


def test_a_generator_method_streams_by_default_ACT_23(tl):
    counter = Counter.remote()
    assert [tl.get(ref) for ref in counter.count_to.remote(5)] == [0, 1, 2, 3, 4]
    assert tl.get(counter.get_total.remote()) == 5


def test_an_async_generator_method_streams_to_an_async_for_ACT_23(tl):
    async def main():
        return [await ref async for ref in AsyncCounter.remote().acount_to.remote(100)]

    assert asyncio.run(main()) == list(range(100))


def test_an_item_of_a_method_is_there_before_the_call_has_ended_ACT_23(tl, gate):
    counter = Counter.remote()
    generator = counter.held_up.remote(gate)
    after = counter.get_total.remote()
    assert tl.get(next(generator)) == "first"
    gate.wait_for()
    assert not tl.wait([after], timeout=0)[0]
    gate.open()
    assert tl.get(list(generator)) == ["second"]
    assert tl.get(after) == 0


def test_a_generator_keeps_its_actor_alive_until_it_has_ended(tl):
    generator = Counter.remote().count_to.remote(3)  # no handle is left
    assert [tl.get(ref) for ref in generator] == [0, 1, 2]


def test_two_async_generators_of_an_actor_run_side_by_side_ACT_23(tl, gate):
    actor = AsyncCounter.remote()
    a, b = actor.meet.remote(gate, "a"), actor.meet.remote(gate, "b")
    assert [tl.get(ref) for ref in a] == ["a", "A"]
    assert [tl.get(ref) for ref in b] == ["b", "B"]


def test_a_plain_generator_of_an_async_actor_runs_in_a_thread_ACT_23(tl):
    items = [tl.get(ref) for ref in AsyncCounter.remote().count_to.remote(3)]
    assert [i for i, _ in items] == [0, 1, 2]
    assert {name for _, name in items} == {"taskloom-method"}


def test_generators_of_a_threaded_actor_run_side_by_side_ACT_23(tl, gate):
    counter = Counter.options(max_concurrency=2).remote()
    held, free = counter.held_up.remote(gate), counter.count_to.remote(3)
    assert [tl.get(ref) for ref in free] == [0, 1, 2]
    gate.open()
    assert [tl.get(ref) for ref in held] == ["first", "second"]


@pytest.mark.parametrize("concurrency", [1, 2])
def test_dropping_the_generator_ends_the_method_at_its_next_item_GEN_7(tl, gate, concurrency):
    counter = Counter.options(max_concurrency=concurrency).remote()
    generator = counter.endless.remote(gate)
    next(generator)
    del generator
    gate.wait_for("stopped")
    assert tl.get(counter.get_total.remote()) == 0


def test_dropping_the_generator_ends_an_async_method_that_never_waits_GEN_7(tl, gate):
    actor = AsyncCounter.remote()
    generator = actor.endless.remote(gate)
    next(generator)
    del generator
    gate.wait_for("stopped")
    assert tl.get(actor.ping.remote()) == "pong"


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_method_that_stands_still_for_want_of_room_is_ended_too_GEN_7(tl, gate, concurrency):
    counter = Counter.options(max_concurrency=concurrency).remote()
    generator = counter.endless.options(backpressure=2).remote(gate)
    next(generator)
    generator.close()
    gate.wait_for("stopped")
    assert tl.get(counter.get_total.remote()) == 0


def test_an_error_of_a_method_is_the_last_ref_GEN_2(tl):
    first, last = Counter.remote().broken.remote()
    assert tl.get(first) == 1
    with pytest.raises(KeyError, match="broken"):
        tl.get(last)


def test_an_actor_that_leaves_in_the_middle_ends_the_stream_with_its_death(tl):
    first, last = Counter.remote().leave.remote()
    assert tl.get(first) == 1
    with pytest.raises(ActorDiedError, match="exit_actor"):
        tl.get(last)


def test_kill_ends_the_stream_after_the_items_that_had_come(tl, gate):
    counter = Counter.remote()
    generator = counter.held_up.remote(gate)
    assert tl.get(next(generator)) == "first"
    gate.wait_for()
    tl.kill(counter)
    (last,) = generator
    with pytest.raises(ActorDiedError):
        tl.get(last)


def test_a_restarted_actor_yields_each_item_once(tl, gate):
    @tl.remote(max_restarts=1, max_task_retries=1)
    class Fragile:
        def items(self, gate):
            for i in range(4):
                if i == 2 and not gate.count("died"):
                    gate.enter("here")
                    gate.note("died")
                    import os

                    os.kill(os.getpid(), 9)
                gate.note(f"made {i}")
                yield i

    generator = Fragile.remote().items.remote(gate)
    taken = [tl.get(next(generator)), tl.get(next(generator))]
    gate.open()
    assert taken + [tl.get(ref) for ref in generator] == [0, 1, 2, 3]
    assert [gate.count(f"made {i}") for i in range(4)] == [2, 2, 1, 1]


def test_a_method_that_consumes_a_stream_of_its_own_actor_gets_an_error(tl):
    counter = Counter.remote()
    with pytest.raises(DeadlockError):
        tl.get(counter.about_itself.remote(counter), timeout=20)


def test_the_limit_of_an_actor_holds_for_all_its_generators_GEN_6(tl, gate):
    @tl.remote(_actor_generator_backpressure_num_objects=2)
    class Limited:
        def make(self):
            for i in range(6):
                gate.note("made")
                yield i

        @tl.method(backpressure=-1)
        def make_all(self):
            yield from range(6)

    actor = Limited.remote()
    generator = actor.make.remote()
    gate.wait_for("made", 2)
    assert [tl.get(ref) for ref in generator] == list(range(6))
    unlimited = actor.make_all.remote()
    tl.get(unlimited.completed())
    assert len(list(unlimited)) == 6


def test_cancel_of_a_stream_that_waits_in_line_runs_nothing(tl, gate):
    counter = Counter.remote()
    held = counter.held_up.remote(gate)
    next(held)
    queued = counter.endless.remote(gate)
    tl.cancel(queued)
    (bad,) = queued
    with pytest.raises(TaskCancelledError):
        tl.get(bad)
    gate.open()
    assert tl.get(list(held)) == ["second"]
    assert tl.get(counter.get_total.remote()) == 0
    assert gate.count("stopped") == 0
    assert eventually(lambda: gate.count("left") == 1)
