"""Streams of tasks as the driver consumes them: ``for ref in f.remote()``."""

from __future__ import annotations

import gc
import pickle
import time
import weakref

import numpy as np
import pytest
from kept import kept_ids, nothing_is_kept

from gates import Gate, eventually
from taskloom import ObjectRef, ObjectRefGenerator
from taskloom.exceptions import GetTimeoutError, RayTaskError, TaskCancelledError


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def count_to(n):
    yield from range(n)


# -- one after another ----------------------------------------------------------------------------


def test_a_generator_function_gives_the_refs_of_its_items_in_order_GEN_1(tl):
    generator = tl.remote(count_to).remote(5)

    assert isinstance(generator, ObjectRefGenerator)
    refs = list(generator)
    assert all(isinstance(ref, ObjectRef) for ref in refs)
    assert tl.get(refs) == [0, 1, 2, 3, 4]
    assert next(generator, "the end") == "the end"


def test_a_stream_without_items_ends_at_once_GEN_1(tl):
    assert list(tl.remote(count_to).remote(0)) == []


def test_an_item_is_there_before_the_task_has_ended_GEN_1(tl, gate):
    @tl.remote
    def f():
        yield "first"
        gate.enter()
        yield "second"

    generator = f.remote()
    assert tl.get(next(generator)) == "first"
    gate.wait_for()
    gate.open()
    assert tl.get(next(generator)) == "second"


def test_an_item_is_not_held_behind_a_step_that_takes_long_GEN_1(tl, gate):
    """The second item comes too soon after the first to be sent at once."""

    @tl.remote
    def f():
        yield 1
        yield 2
        yield 3
        gate.enter()
        yield 4

    generator = f.remote()
    assert [tl.get(next(generator)) for _ in range(3)] == [1, 2, 3]
    gate.open()
    assert [tl.get(ref) for ref in generator] == [4]


def test_the_producer_runs_to_its_end_whether_anybody_takes_or_not_GEN_1(tl, gate):
    @tl.remote
    def f():
        yield from range(100)
        gate.note("end")

    generator = f.remote()
    gate.wait_for("end")
    assert tl.get(list(generator)) == list(range(100))


def test_many_items_of_all_sizes_arrive_as_they_were_sent(tl):
    @tl.remote
    def f():
        for size in (0, 10, 40_000, 200_000, 10, 3_000_000):
            yield np.full(size, size % 256, dtype=np.uint8)

    arrays = [tl.get(ref) for ref in f.remote()]
    assert [array.size for array in arrays] == [0, 10, 40_000, 200_000, 10, 3_000_000]
    assert all((array == array.size % 256).all() for array in arrays)


def test_twenty_thousand_items_arrive_once_and_in_order(tl):
    assert [tl.get(ref) for ref in tl.remote(count_to).remote(20_000)] == list(range(20_000))


def test_items_are_refs_like_any_other(tl):
    @tl.remote
    def double(x, box):
        return 2 * x + tl.get(box[0])

    refs = list(tl.remote(count_to).remote(3))
    assert tl.get([double.remote(ref, [ref]) for ref in refs]) == [0, 3, 6]
    assert len({ref.hex() for ref in refs}) == 3


def test_refs_inside_an_item_live_as_long_as_the_item(tl):
    @tl.remote
    def f():
        for i in range(3):
            yield [tl.put(i), i]

    items = [tl.get(ref) for ref in f.remote()]
    assert [tl.get(ref) == i for ref, i in items] == [True] * 3


def test_yield_from_and_a_returned_value_are_as_in_python(tl):
    @tl.remote
    def f():
        got = yield from count_to(2)
        yield got
        return "nobody sees this"

    assert [tl.get(ref) for ref in f.remote()] == [0, 1, None]


def test_what_was_printed_before_an_item_comes_before_it(run_driver):
    done = run_driver(
        """
import sys, taskloom as tl
tl.init(num_cpus=1)
@tl.remote
def f():
    for i in range(3):
        print("making", i)
        yield i
for ref in f.options(backpressure=1).remote():
    i = tl.get(ref)
    sys.stdout.flush()
    # One write: print() makes several, and what the task prints next may come between them.
    sys.stdout.write(f"got {i}\\n")
    sys.stdout.flush()
"""
    )
    lines = [line.rpartition(") ")[2] for line in done.stdout.splitlines()]
    assert sorted(lines) == ["got 0", "got 1", "got 2", "making 0", "making 1", "making 2"]
    assert all(lines.index(f"making {i}") < lines.index(f"got {i}") for i in range(3))


def test_context_variables_last_from_item_to_item(tl):
    @tl.remote
    def f():
        from contextvars import ContextVar

        seen = ContextVar("seen", default=0)
        for _ in range(3):
            yield seen.get()
            seen.set(seen.get() + 1)

    assert [tl.get(ref) for ref in f.remote()] == [0, 1, 2]


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 3])
def test_an_error_after_k_items_is_the_k_plus_first_ref_and_then_it_ends_GEN_2(tl, k):
    @tl.remote
    def f():
        yield from range(k)
        raise KeyError("broken")

    *good, bad = f.remote()

    assert tl.get(good) == list(range(k))
    with pytest.raises(KeyError, match="broken") as caught:
        tl.get(bad)
    assert isinstance(caught.value, RayTaskError)


def test_an_item_that_does_not_pickle_is_the_error_and_names_the_member_GEN_2(tl):
    @tl.remote
    def f():
        import threading

        yield "good"
        yield {"lock": threading.Lock()}
        yield "never"

    good, bad = f.remote()
    assert tl.get(good) == "good"
    with pytest.raises(TypeError, match=r"item 1 of f\(\).*item\['lock'\]"):
        tl.get(bad)


def test_an_error_before_the_first_item_comes_through_the_stream_too_GEN_2(tl):
    failed = tl.remote(lambda: 1 / 0).remote()

    (ref,) = tl.remote(count_to).remote(failed)

    with pytest.raises(ZeroDivisionError):
        tl.get(ref)


def test_an_error_that_was_seen_in_the_stream_is_not_reported_again(run_driver):
    done = run_driver(
        """
import taskloom as tl
tl.init(num_cpus=1)
@tl.remote
def f(text):
    yield 1
    raise ValueError(text)
*_, bad = f.remote("seen")
try:
    tl.get(bad)
except ValueError:
    pass
del bad
*_, bad = f.remote("nobody asks")
del bad
tl.shutdown()
"""
    )
    assert done.stderr.count("Unhandled error") == 1
    assert "nobody asks" in done.stderr


def test_close_of_the_generator_runs_its_finally_blocks(tl, gate):
    @tl.remote
    def f():
        try:
            yield 1
            yield object.__new__(type(iter(())))  # pickles
            yield (x for x in ())  # does not
        finally:
            gate.note("cleaned up")

    *_, bad = f.remote()
    gate.wait_for("cleaned up")
    with pytest.raises(TypeError):
        tl.get(bad)


# -- questions ------------------------------------------------------------------------------------


def test_next_ready_and_is_finished_do_not_wait_GEN_3(tl, gate):
    @tl.remote
    def f():
        gate.enter()
        yield 1

    generator = f.remote()
    gate.wait_for()
    assert not generator.next_ready()
    assert not generator.is_finished()
    gate.open()
    assert eventually(generator.next_ready)
    assert not generator.is_finished()
    assert tl.get(next(generator)) == 1
    tl.get(generator.completed())
    assert not generator.next_ready()
    assert generator.is_finished()


def test_completed_is_done_when_the_generator_has_ended_GEN_3(tl, gate):
    @tl.remote
    def f():
        yield 1
        gate.enter()

    generator = f.remote()
    with pytest.raises(GetTimeoutError):
        tl.get(generator.completed(), timeout=0)
    gate.open()
    assert tl.get(generator.completed()) is None
    assert [tl.get(ref) for ref in generator] == [1]


def test_completed_raises_the_error_of_the_generator_GEN_3(tl):
    @tl.remote
    def f():
        yield 1
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        tl.get(f.remote().completed())


def test_a_task_can_wait_for_the_end_of_a_stream_GEN_3(tl):
    @tl.remote
    def after(nothing):
        return nothing, "done"

    generator = tl.remote(count_to).remote(3)
    assert tl.get(after.remote(generator.completed())) == (None, "done")
    assert tl.get(list(generator)) == [0, 1, 2]


def test_get_of_a_generator_is_the_generator_GET_5(tl):
    generator = tl.remote(count_to).remote(1)
    assert tl.get(generator) is generator


def test_wait_takes_generators_and_refs_together_WAIT_3(tl, gate):
    @tl.remote
    def f():
        yield "first"
        gate.enter()
        yield "second"

    generator, ref = f.remote(), tl.remote(gate.stay).remote()
    ready, rest = tl.wait([ref, generator])
    assert (ready, rest) == ([generator], [ref])
    next(generator)
    ready, rest = tl.wait([ref, generator], timeout=0)
    assert (ready, rest) == ([], [ref, generator])
    gate.open()
    ready, rest = tl.wait([generator, ref], num_returns=2)
    assert (ready, rest) == ([generator, ref], [])
    assert tl.get(next(generator)) == "second"


def test_a_generator_at_its_end_is_ready_WAIT_3(tl):
    generator = tl.remote(count_to).remote(1)
    assert tl.wait([generator])[0] == [generator]
    next(generator)
    assert tl.wait([generator])[0] == [generator]
    assert next(generator, None) is None


def test_send_and_throw_are_not_possible_GEN_4(tl):
    generator = tl.remote(count_to).remote(1)
    for call in (lambda: generator.send(1), lambda: generator.throw(ValueError)):
        with pytest.raises(NotImplementedError, match="not supported"):
            call()


def test_a_generator_cannot_be_pickled_passed_or_put_GEN_5(tl):
    generator = tl.remote(count_to).remote(1)
    text = "You cannot return or pass a generator to other task"
    for attempt in (
        lambda: pickle.dumps(generator),
        lambda: tl.remote(print).remote(generator),
        lambda: tl.remote(print).remote([generator]),
        lambda: tl.put({"a": generator}),
    ):
        with pytest.raises(TypeError, match=text) as refused:
            attempt()
        assert "._" not in str(refused.value), "the generator is at fault, not what it consists of"
    assert tl.get(list(generator)) == [0]


def test_ray_s_private_step_gives_no_ref_when_time_is_up(tl, gate):
    @tl.remote
    def f():
        gate.enter()
        yield 1

    generator = f.remote()
    assert generator._next_sync(timeout_s=0.01).is_nil()
    gate.open()
    assert tl.get(generator._next_sync(timeout_s=20)) == 1
    with pytest.raises(StopIteration):
        generator._next_sync()


@pytest.mark.filterwarnings("ignore::taskloom.exceptions.RayDeprecationWarning")
def test_the_deprecated_kind_works_by_get_and_by_itself_GEN_9(tl):
    f = tl.remote(num_returns="dynamic")(count_to)
    assert [tl.get(ref) for ref in tl.get(f.remote(3))] == [0, 1, 2]
    assert isinstance(f.remote(0), tl.DynamicObjectRefGenerator)


# -- the end --------------------------------------------------------------------------------------


def endless(gate):
    try:
        i = 0
        while True:
            yield np.full(200_000, i % 256, dtype=np.uint8)
            i += 1
            time.sleep(0.002)
    finally:
        gate.note("stopped")


def test_dropping_the_generator_stops_the_producer_and_frees_what_was_not_taken_GEN_7(tl, gate):
    generator = tl.remote(endless).remote(gate)
    kept = next(generator)
    assert eventually(lambda: len(kept_ids(tl)) >= 5)
    del generator
    gate.wait_for("stopped")
    assert eventually(lambda: kept_ids(tl) == [kept.hex()])
    assert tl.get(kept)[0] == 0


def test_a_generator_in_a_cycle_is_dropped_by_the_collector_GEN_7(tl, gate):
    generator = tl.remote(endless).remote(gate)
    next(generator)
    circle = [generator]
    circle.append(circle)
    gone = weakref.ref(generator)
    del generator, circle
    gc.collect()
    assert gone() is None
    gate.wait_for("stopped")


@pytest.mark.parametrize("way", ["close", "cancel"])
def test_close_and_cancel_stop_the_producer_GEN_4(tl, gate, way):
    generator = tl.remote(endless).remote(gate)
    next(generator)
    completed = generator.completed()
    if way == "close":
        generator.close()
        assert list(generator) == []
        assert generator.is_finished()
        assert not generator.next_ready()
        generator.close()
    else:
        tl.cancel(generator)
        *_, last = generator
        with pytest.raises(TaskCancelledError):
            tl.get(last)
    gate.wait_for("stopped")
    with pytest.raises(TaskCancelledError):
        tl.get(completed)


def test_a_live_ref_to_the_end_keeps_the_producer_going_and_its_items_are_not_kept_GEN_7(tl, gate):
    @tl.remote
    def f():
        for i in range(5):
            yield np.full(200_000, i, dtype=np.uint8)
        gate.enter("ended")

    generator = f.remote()
    completed = generator.completed()
    del generator
    gate.wait_for("ended")
    assert eventually(lambda: kept_ids(tl) == [])
    gate.open()
    assert tl.get(completed) is None


def test_when_that_ref_goes_too_the_producer_is_stopped_GEN_7(tl, gate):
    generator = tl.remote(endless).remote(gate)
    next(generator)
    completed = generator.completed()
    del generator
    assert not tl.wait([completed], timeout=0)[0]
    del completed
    gate.wait_for("stopped")


def test_a_stream_that_was_never_begun_to_be_taken_is_dropped_like_any_other(tl, gate):
    blocked = [tl.remote(gate.stay).remote() for _ in range(2)]
    queued = tl.remote(lambda: (yield gate.note("ran"))).remote()
    del queued  # before any worker has it
    gate.open()
    tl.get(blocked)
    del blocked
    assert eventually(lambda: nothing_is_kept(tl))
    assert gate.count("ran") == 0


def test_a_finished_stream_that_is_dropped_leaves_no_object_behind(tl):
    generator = tl.remote(count_to).remote(1000)
    tl.get(generator.completed())
    assert len(kept_ids(tl)) >= 1000
    del generator
    assert eventually(lambda: nothing_is_kept(tl))


def test_a_consumed_stream_leaves_no_object_behind(tl):
    for ref in tl.remote(count_to).remote(1000):
        tl.get(ref)
    del ref
    assert eventually(lambda: nothing_is_kept(tl))


def test_a_stream_outlives_its_session_as_an_error(fresh, gate):
    fresh.init(num_cpus=1)
    generator = fresh.remote(endless).remote(gate)
    assert fresh.get(next(generator))[0] == 0
    assert eventually(lambda: len(kept_ids(fresh)) >= 5)  # they are there, and nobody took them
    fresh.shutdown()
    *others, last = generator
    assert len(others) >= 4
    with pytest.raises(ValueError, match="session"):
        fresh.get(last)


# -- generators with a number of returns ----------------------------------------------------------


def test_refs_are_filled_one_by_one_while_the_generator_runs_REM_7(tl, gate):
    @tl.remote(num_returns=3)
    def f():
        yield "a"
        yield "b"
        gate.enter()
        yield "c"

    a, b, c = f.remote()
    assert tl.get([a, b]) == ["a", "b"]
    assert tl.wait([c], timeout=0)[0] == []
    gate.open()
    assert tl.get(c) == "c"


def test_a_task_that_needs_an_early_ref_does_not_wait_for_the_others_REM_7(tl, gate):
    @tl.remote(num_returns=2)
    def f():
        yield 1
        gate.enter()
        yield 2

    one, two = f.remote()
    assert tl.get(tl.remote(lambda x: x + 10).remote(one)) == 11
    gate.open()
    assert tl.get(two) == 2


def test_too_few_items_are_the_error_of_the_refs_that_got_none_REM_7(tl):
    a, b, c = tl.remote(num_returns=3)(count_to).remote(1)
    assert tl.get(a) == 0
    for ref in (b, c):
        with pytest.raises(ValueError, match=r"Task returned 1 objects, but num_returns=3\."):
            tl.get(ref)


def test_too_many_items_are_the_error_of_the_last_ref_REM_7(tl):
    a, b = tl.remote(num_returns=2)(count_to).remote(3)
    assert tl.get(a) == 0
    with pytest.raises(ValueError, match=r"Task returned more than num_returns=2 objects\."):
        tl.get(b)


def test_an_error_is_that_of_the_refs_that_were_not_filled_before_REM_7(tl):
    @tl.remote(num_returns=3)
    def f():
        yield "a"
        raise KeyError("x")

    a, b, c = f.remote()
    assert tl.get(a) == "a"
    for ref in (b, c):
        with pytest.raises(KeyError):
            tl.get(ref)


def test_large_items_fill_refs_as_small_ones_do_REM_7(tl):
    @tl.remote(num_returns=3)
    def f():
        for i in range(3):
            yield np.full(300_000, i, dtype=np.uint8)

    assert [int(array[-1]) for array in tl.get(f.remote())] == [0, 1, 2]
