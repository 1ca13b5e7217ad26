"""Streams whose producers or consumers die, are tried again, or run out of time."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import pytest
from kept import nothing_is_kept

from gates import Gate, eventually
from taskloom.exceptions import (
    StreamingGeneratorReplayInconsistentError,
    TaskCancelledError,
    TaskTimeoutError,
    WorkerCrashedError,
)


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def dies_behind(gate, k, times=1):
    """Yields k items and dies, so many times; then six in all."""
    for i in range(6):
        if i == k and gate.count("died") < times:
            gate.note("died")
            gate.stay()
            os.kill(os.getpid(), signal.SIGKILL)
        yield i
        gate.note(f"made {i}")


def test_a_death_half_way_is_the_error_behind_the_items_that_had_come_row_50(tl, gate):
    generator = tl.remote(max_retries=0)(dies_behind).remote(gate, 3)
    taken = [tl.get(next(generator)) for _ in range(3)]
    gate.open()
    assert taken == [0, 1, 2]
    (last,) = generator
    with pytest.raises(WorkerCrashedError, match="SIGKILL"):
        tl.get(last)


@pytest.mark.parametrize("taken", [0, 3])
def test_a_retry_begins_anew_and_each_item_is_observed_once_P2(tl, gate, taken):
    generator = tl.remote(max_retries=2)(dies_behind).remote(gate, 3, times=2)
    gate.wait_for("died")
    values = [tl.get(next(generator)) for _ in range(taken)]
    gate.open()
    assert values + [tl.get(ref) for ref in generator] == [0, 1, 2, 3, 4, 5]
    assert gate.count("made 0") == 3


def test_refs_that_were_filled_before_a_death_stay_as_they_were_P2(tl, gate):
    @tl.remote(num_returns=3, max_retries=1)
    def f():
        attempt = gate.count("begun")
        gate.note("begun")
        yield attempt
        if not attempt:
            gate.enter()
            os.kill(os.getpid(), signal.SIGKILL)
        yield attempt
        yield attempt

    a, b, c = f.remote()
    assert tl.get(a) == 0
    gate.open()
    assert tl.get([a, b, c]) == [0, 1, 1]


def test_an_exception_is_tried_again_where_the_user_asked_for_it(tl, gate):
    @tl.remote(retry_exceptions=[OSError], max_retries=1)
    def f(error):
        for i in range(4):
            if i == 2 and not gate.count("failed"):
                gate.note("failed")
                raise error
            yield i

    assert [tl.get(ref) for ref in f.remote(OSError())] == [0, 1, 2, 3]
    assert gate.count("failed") == 1


def test_a_retry_that_yields_less_contradicts_itself(tl, gate):
    @tl.remote(retry_exceptions=True, max_retries=1)
    def f():
        if gate.count("begun"):
            yield 0
            return
        gate.note("begun")
        yield from range(3)
        raise OSError

    *items, last = f.remote()
    assert tl.get(items) == [0, 1, 2]
    with pytest.raises(StreamingGeneratorReplayInconsistentError, match="after 3 items.*after 1"):
        tl.get(last)


def test_large_items_of_a_dead_attempt_are_freed(tl, gate):
    @tl.remote(max_retries=1)
    def f():
        for i in range(4):
            yield np.full(300_000, i, dtype=np.uint8)
        if not gate.count("died"):
            gate.enter("died")
            os.kill(os.getpid(), signal.SIGKILL)

    generator = f.remote()
    gate.wait_for("died")
    gate.open()
    assert [int(tl.get(ref)[0]) for ref in generator] == [0, 1, 2, 3]
    # that nothing is left in the store is seen by the fixture that watches for leaks


def test_a_stream_that_runs_out_of_time_ends_with_that_error(tl, gate):
    @tl.remote(timeout=0.2)
    def f():
        yield 1
        gate.stay()

    first, last = f.remote()
    assert tl.get(first) == 1
    with pytest.raises(TaskTimeoutError):
        tl.get(last)


def test_a_stream_that_is_retried_after_its_time_goes_on_where_it_was(tl, gate):
    @tl.remote(timeout=0.3, retry_exceptions=[TaskTimeoutError], max_retries=1)
    def f():
        yield 1
        if not gate.count("late"):
            gate.note("late")
            gate.stay()
        yield 2

    assert [tl.get(ref) for ref in f.remote()] == [1, 2]


@pytest.mark.parametrize("force", [False, True])
def test_cancel_of_a_generator_is_cancel_of_its_task(tl, gate, force):
    generator = tl.remote(dies_behind).remote(gate, 2)
    assert tl.get([next(generator), next(generator)]) == [0, 1]
    gate.wait_for("died")
    tl.cancel(generator, force=force)
    (last,) = generator
    with pytest.raises(TaskCancelledError):
        tl.get(last)
    assert eventually(lambda: tl.available_resources().get("CPU") == 2)


# -- groups ---------------------------------------------------------------------------------------


def test_a_group_waits_for_the_streams_in_it(tl, gate):
    with tl.TaskGroup() as group:
        generator = group.remote(dies_behind)(gate, None)
    assert [tl.get(ref) for ref in generator] == [0, 1, 2, 3, 4, 5]
    assert gate.count("made 5") == 1


def test_a_failed_member_ends_the_streams_of_its_group(tl, gate):
    @tl.remote
    def endless():
        while True:
            yield 1

    @tl.remote
    def fails(gate):
        gate.stay()
        raise ValueError("first")

    with pytest.raises(ExceptionGroup) as caught, tl.TaskGroup() as group:
        generator = group.remote(endless)()
        assert tl.get(next(generator)) == 1
        group.remote(fails)(gate)
        gate.open()
    assert [type(error.cause) for error in caught.value.exceptions] == [ValueError]
    *_, last = generator
    with pytest.raises(TaskCancelledError):
        tl.get(last)


def test_a_stream_that_fails_is_an_error_of_its_group(tl):
    def broken():
        yield 1
        raise KeyError("x")

    with pytest.raises(ExceptionGroup) as caught, tl.TaskGroup() as group:
        generator = group.remote(broken)()
    assert [type(error.cause) for error in caught.value.exceptions] == [KeyError]
    assert len(list(generator)) == 2


# -- consumers inside tasks -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 500])
def test_a_task_consumes_a_stream_that_it_has_submitted(tl, n):
    @tl.remote
    def consume():
        return [tl.get(ref) for ref in tl.remote(range_of).remote(n)]

    assert tl.get(consume.remote()) == list(range(n))


def range_of(n):
    yield from range(n)


def test_a_coroutine_consumes_a_stream_that_it_has_submitted(tl):
    @tl.remote
    async def consume():
        return [await ref async for ref in tl.remote(range_of).remote(200)]

    assert tl.get(consume.remote()) == list(range(200))


def test_a_task_consumes_the_stream_of_an_actor_and_sees_its_error(tl):
    @tl.remote
    class Source:
        def items(self):
            yield 1
            raise KeyError("x")

    @tl.remote
    def consume(source):
        first, last = source.items.remote()
        try:
            tl.get(last)
        except KeyError:
            return tl.get(first)

    assert tl.get(consume.remote(Source.remote())) == 1


def test_questions_of_a_consumer_in_a_task_are_exact_GEN_3(tl):
    @tl.remote
    def consume():
        generator = tl.remote(range_of).remote(1)
        tl.get(generator.completed())
        seen = [generator.next_ready(), generator.is_finished()]
        assert tl.wait([generator], timeout=0)[0] == [generator]
        next(generator)
        return [*seen, generator.next_ready(), generator.is_finished()]

    assert tl.get(consume.remote()) == [True, False, False, True]


def test_items_that_a_task_has_taken_can_be_returned(tl):
    @tl.remote
    def consume():
        return list(tl.remote(range_of).remote(3))

    assert tl.get(tl.get(consume.remote())) == [0, 1, 2]


def test_a_generator_that_a_task_drops_is_stopped_and_freed_GEN_7(tl, gate):
    def endless():
        try:
            while True:
                yield np.zeros(200_000, dtype=np.uint8)
        finally:
            gate.note("stopped")

    @tl.remote
    def consume():
        generator = tl.remote(backpressure=10)(endless).remote()
        return tl.get(next(generator)).size

    assert tl.get(consume.remote()) == 200_000
    gate.wait_for("stopped")
    assert eventually(lambda: nothing_is_kept(tl))


def test_a_generator_whose_consumer_dies_is_stopped_and_freed_GEN_7(tl, gate):
    def endless():
        try:
            while True:
                yield 1
        finally:
            gate.note("stopped")

    @tl.remote(max_retries=0)
    def consume():
        generator = tl.remote(backpressure=10)(endless).remote()
        next(generator)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerCrashedError):
        tl.get(consume.remote())
    gate.wait_for("stopped")
    assert eventually(lambda: nothing_is_kept(tl))


def test_a_consumer_that_is_cancelled_while_it_waits_hears_so(tl, gate):
    def held():
        gate.enter("held")
        yield 1

    @tl.remote
    def consume():
        try:
            return list(tl.remote(held).remote())
        except KeyboardInterrupt:
            gate.note("interrupted")
            raise

    ref = consume.remote()
    gate.wait_for("held")
    tl.cancel(ref)
    gate.wait_for("interrupted")
    with pytest.raises(TaskCancelledError):
        tl.get(ref)


def test_a_generator_cannot_be_returned_by_a_task_GEN_5(tl):
    @tl.remote
    def f():
        return tl.remote(range_of).remote(1)

    with pytest.raises(TypeError, match="You cannot return or pass a generator"):
        tl.get(f.remote())


def test_why_says_what_a_stream_waits_for(tl, gate):
    blockers = [tl.remote(gate.enter).remote() for _ in range(2)]
    gate.wait_for(count=2)
    generator = tl.remote(range_of).remote(1)
    assert "queued" in generator.completed().why()
    gate.open()
    tl.get(blockers)
    assert [tl.get(ref) for ref in generator] == [0]


def test_deep_chains_of_streams_end_one_behind_the_other(tl):
    @tl.remote
    def chain(depth):
        if not depth:
            yield from range(3)
            return
        for ref in chain.remote(depth - 1):
            yield tl.get(ref) + 1

    assert [tl.get(ref) for ref in chain.remote(4)] == [4, 5, 6]


def test_a_stream_works_under_ray_s_name(run_driver):
    script = """
import ray
ray.init(num_cpus=2)
@ray.remote
def f(n):
    for i in range(n):
        yield i
generator = f.remote(3)
assert isinstance(generator, ray.ObjectRefGenerator)
print(sum(ray.get(ref) for ref in generator))
"""
    done = run_driver(f"import taskloom.compat.ray as compat\ncompat.install()\n{script}")
    assert (done.stdout.strip(), done.returncode) == ("3", 0), done.stderr
    assert sys.modules.get("ray") is None
