"""Streams in the calling process: ``init(local_mode=True)``."""

from __future__ import annotations

import asyncio
import gc
import itertools
from contextvars import ContextVar

import pytest

from taskloom.exceptions import (
    ActorDiedError,
    SessionClosedError,
    StreamingGeneratorReplayInconsistentError,
    TaskCancelledError,
    TaskTimeoutError,
    TaskUnschedulableError,
)


@pytest.fixture
def inline(fresh):
    fresh.init(local_mode=True, num_cpus=2)
    return fresh


def count_to(n):
    yield from range(n)


async def acount_to(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


@pytest.mark.parametrize("produce", [count_to, acount_to])
def test_a_generator_gives_the_refs_of_its_items_GEN_1(inline, produce):
    generator = inline.remote(produce).remote(3)
    assert isinstance(generator, inline.ObjectRefGenerator)
    assert [inline.get(ref) for ref in generator] == [0, 1, 2]
    assert next(generator, None) is None


@pytest.mark.parametrize("produce", [count_to, acount_to])
def test_async_for_works_inside_a_running_loop_GEN_1(inline, produce):
    async def main():
        return [await ref async for ref in inline.remote(produce).remote(3)]

    assert asyncio.run(main()) == [0, 1, 2]


def test_an_endless_generator_makes_what_is_asked_for_and_no_more(inline):
    def numbers():
        yield from itertools.count()

    async def anumbers():
        for i in itertools.count():
            yield i

    for produce in (numbers, anumbers):
        generator = inline.remote(produce).remote()
        made = [inline.get(ref) for ref in itertools.islice(generator, 5)]
        assert made == [0, 1, 2, 3, 4]


def test_items_are_snapshots_and_refs_like_any_other(inline):
    @inline.remote
    def f():
        items = []
        for i in range(3):
            items.append(i)
            yield items

    refs = list(f.remote())
    assert inline.get(refs) == [[0], [0, 1], [0, 1, 2]]
    assert inline.get(inline.remote(len).remote(refs[2])) == 3


def test_an_error_is_the_last_ref_GEN_2(inline):
    @inline.remote
    def f():
        yield 1
        raise KeyError("x")

    first, last = f.remote()
    assert inline.get(first) == 1
    with pytest.raises(KeyError):
        inline.get(last)


def test_an_item_that_does_not_pickle_is_the_error_GEN_2(inline):
    @inline.remote
    def f():
        yield 1
        yield (x for x in ())

    first, last = f.remote()
    assert inline.get(first) == 1
    with pytest.raises(TypeError, match=r"item 1 of .*f\(\)"):
        inline.get(last)


def test_an_argument_that_failed_is_the_error_of_the_stream_GEN_2(inline):
    bad = inline.remote(lambda: 1 / 0).remote()
    (ref,) = inline.remote(count_to).remote(bad)
    with pytest.raises(ZeroDivisionError):
        inline.get(ref)


def test_what_can_never_run_is_the_error_of_the_stream(inline):
    (ref,) = inline.remote(num_cpus=64)(count_to).remote(1)
    with pytest.raises(TaskUnschedulableError):
        inline.get(ref)


def test_questions_are_answered_GEN_3(inline):
    generator = inline.remote(count_to).remote(1)
    assert generator.next_ready()
    assert not generator.is_finished()
    assert inline.wait([generator]) == ([generator], [])
    next(generator)
    assert generator.is_finished()
    assert not generator.next_ready()
    assert inline.get(generator) is generator


def test_completed_runs_the_generator_to_its_end_GEN_3(inline):
    generator = inline.remote(count_to).remote(3)
    next(generator)
    assert inline.get(generator.completed()) is None
    assert [inline.get(ref) for ref in generator] == [1, 2]
    broken = inline.remote(lambda: (yield 1 / 0)).remote()
    with pytest.raises(ZeroDivisionError):
        inline.get(broken.completed())


@pytest.mark.parametrize("way", ["close", "cancel", "drop"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_generator_that_is_stopped_runs_its_finally_blocks_GEN_4(inline, tmp_path, way, is_async):
    path = str(tmp_path / "stopped")

    def produce():
        try:
            yield from itertools.count()
        finally:
            open(path, "w").close()

    async def aproduce():
        try:
            for i in itertools.count():
                yield i
        finally:
            await asyncio.sleep(0)
            open(path, "w").close()

    generator = inline.remote(aproduce if is_async else produce).remote()
    next(generator)
    if way == "cancel":
        inline.cancel(generator)
        (last,) = generator
        with pytest.raises(TaskCancelledError):
            inline.get(last)
    elif way == "close":
        generator.close()
        assert list(generator) == []
    else:
        del generator
        gc.collect()
        inline.put(1)  # finalizers run no user code: the next use of the session does
    assert (tmp_path / "stopped").exists()


def test_a_retried_generator_gives_each_item_once_P2(inline, tmp_path):
    def f(path):
        for i in range(4):
            if i == 2 and not path.exists():
                path.touch()
                raise OSError
            yield i

    generator = inline.remote(retry_exceptions=True)(f).remote(tmp_path / "failed")
    assert [inline.get(ref) for ref in generator] == [0, 1, 2, 3]


def test_a_retry_that_yields_less_contradicts_itself(inline, tmp_path):
    def f(path):
        if path.exists():
            return
        path.touch()
        yield 0
        raise OSError

    first, last = inline.remote(retry_exceptions=True)(f).remote(tmp_path / "failed")
    assert inline.get(first) == 0
    with pytest.raises(StreamingGeneratorReplayInconsistentError):
        inline.get(last)


def test_a_coroutine_that_waits_too_long_is_out_of_time(inline):
    @inline.remote(timeout=0.05)
    async def f():
        yield 1
        await asyncio.Event().wait()

    first, last = f.remote()
    assert inline.get(first) == 1
    with pytest.raises(TaskTimeoutError):
        inline.get(last)


def test_a_step_holds_the_resources_of_the_task_and_no_more(inline):
    @inline.remote(num_cpus=2)
    def f():
        yield inline.available_resources().get("CPU")
        yield inline.get_runtime_context().get_task_name()

    generator = f.remote()
    assert inline.get(next(generator)) is None
    assert inline.available_resources()["CPU"] == 2
    assert inline.get(next(generator)).endswith("f")


NAME = ContextVar("name", default="nobody")


def names():
    for _ in range(2):
        yield NAME.get()
        NAME.set("changed inside")


def test_context_variables_of_the_caller_are_those_of_the_call(inline):
    token = NAME.set("caller")
    generator = inline.remote(names).remote()
    NAME.set("later")
    assert [inline.get(ref) for ref in generator] == ["caller", "changed inside"]
    assert NAME.get() == "later"
    NAME.reset(token)


# -- a number of returns --------------------------------------------------------------------------


@pytest.mark.parametrize("produce", [count_to, acount_to])
def test_a_generator_with_a_number_of_returns_fills_its_refs_REM_7(inline, produce):
    f = inline.remote(num_returns=2)(produce)
    assert inline.get(f.remote(2)) == [0, 1]
    first, second = f.remote(1)
    assert inline.get(first) == 0
    with pytest.raises(ValueError, match="Task returned 1 objects, but num_returns=2"):
        inline.get(second)
    first, second = f.remote(3)
    assert inline.get(first) == 0
    with pytest.raises(ValueError, match="more than num_returns=2"):
        inline.get(second)


# -- actors and groups ----------------------------------------------------------------------------


def test_methods_of_actors_stream_ACT_23(inline):
    @inline.remote
    class Counter:
        def __init__(self):
            self.total = 0

        def count_to(self, n):
            for i in range(n):
                self.total += 1
                yield i

        def get_total(self):
            return self.total

        def leave(self):
            yield 1
            inline.actor.exit_actor()

    counter = Counter.remote()
    generator = counter.count_to.remote(5)
    assert inline.get(next(generator)) == 0
    assert inline.get(counter.get_total.remote()) == 1
    assert [inline.get(ref) for ref in generator] == [1, 2, 3, 4]
    first, last = counter.leave.remote()
    assert inline.get(first) == 1
    with pytest.raises(ActorDiedError, match="exit_actor"):
        inline.get(last)


def test_a_generator_of_an_actor_that_dies_ends_with_that(inline):
    @inline.remote
    class Source:
        def items(self):
            yield from itertools.count()

    actor = Source.remote()
    generator = actor.items.remote()
    next(generator)
    inline.kill(actor)
    (last,) = generator
    with pytest.raises(ActorDiedError):
        inline.get(last)


def test_async_methods_stream_in_the_loop_of_their_actor_ACT_23(inline):
    @inline.remote
    class Source:
        async def __ainit__(self):
            pass

        async def loop(self):
            return id(asyncio.get_running_loop())

        async def items(self):
            for _ in range(2):
                yield id(asyncio.get_running_loop())

        def plain(self):
            yield "plain"

    actor = Source.remote()
    loops = {inline.get(ref) for ref in actor.items.remote()}
    assert loops == {inline.get(actor.loop.remote())}
    assert [inline.get(ref) for ref in actor.plain.remote()] == ["plain"]


def test_a_group_runs_its_streams_to_their_end_and_tells_of_their_errors(inline):
    with inline.TaskGroup() as group:
        generator = group.remote(count_to)(3)
    assert [inline.get(ref) for ref in generator] == [0, 1, 2]

    def broken():
        yield 1
        raise KeyError("x")

    with pytest.raises(ExceptionGroup) as caught, inline.TaskGroup() as group:
        failed = group.remote(broken)()
    assert [type(error.cause) for error in caught.value.exceptions] == [KeyError]
    assert len(list(failed)) == 2


def test_a_group_that_is_left_by_an_error_ends_its_streams(inline):
    with pytest.raises(ExceptionGroup), inline.TaskGroup() as group:
        generator = group.remote(lambda: (yield from itertools.count()))()
        next(generator)
        raise ValueError
    (last,) = generator
    with pytest.raises(TaskCancelledError):
        inline.get(last)


def test_an_error_that_nobody_has_seen_is_reported_once(inline, capsys):
    *_, bad = inline.remote(lambda: (yield 1 / 0)).remote()
    del bad, _
    gc.collect()
    inline.shutdown()
    assert capsys.readouterr().err.count("Unhandled error") == 1


def test_after_the_session_there_is_nothing_more_to_come(inline, tmp_path):
    path = tmp_path / "closed"

    def f(path):
        try:
            yield from itertools.count()
        finally:
            path.touch()

    generator = inline.remote(f).remote(path)
    next(generator)
    inline.shutdown()
    assert path.exists()
    with pytest.raises(SessionClosedError):
        next(generator)
