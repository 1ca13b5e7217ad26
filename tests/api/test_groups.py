"""``as_completed``, ``map`` and ``wait_async``: on every backend, and on one held by hand.

The ``Desk`` is a backend whose objects are done when the test says so, which makes orders and
races plain to write down.  What must hold for real programs runs over real sessions.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any

import pytest
import trio

from conftest import Engine
from taskloom import _current
from taskloom.groups import as_completed, wait_async
from taskloom.groups import map as map_calls
from taskloom.ref import ObjectRef
from taskloom.util import as_completed as ray_as_completed
from taskloom.util import map_unordered

RUNNERS = {"asyncio": asyncio.run, "trio": trio.run}
HANG_S = 30


@pytest.fixture(params=RUNNERS)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]:
    """Runs a coroutine function in asyncio, and in trio."""
    if request.param == "trio":
        return trio.run
    return lambda main: asyncio.run(main())


async def pause() -> None:
    """Let everybody else run."""
    if asyncio._get_running_loop() is not None:
        await asyncio.sleep(0)
    else:
        await trio.lowlevel.checkpoint()


# -- a backend held by hand ---------------------------------------------------------------------


class Desk:
    """Objects that are done when the test finishes them; counts who is subscribed."""

    is_worker = False
    session_id = b"s" * 12

    def __init__(self) -> None:
        self.outcomes: dict[int, object] = {}
        self.subscriptions: list[tuple[set[int], Callable[[int], None], Any]] = []
        self.fetched: list[int] = []
        self.waits = 0
        self._keys = itertools.count(1)
        self.subscribed = threading.Condition()  # guards all of it

    def refs(self, count: int) -> list[ObjectRef[Any]]:
        return [ObjectRef(next(self._keys), self, object()) for _ in range(count)]

    def abandon(self, ref: ObjectRef[Any]) -> None:
        """Nothing to do: there are no tasks behind the refs."""

    def finish(self, ref: ObjectRef[Any], outcome: object = None) -> None:
        with self.subscribed:
            self.outcomes[ref._key] = outcome
            for entry in list(self.subscriptions):
                keys, callback, loop = entry
                if ref._key in keys:
                    keys.discard(ref._key)
                    if not keys:
                        self.subscriptions.remove(entry)
                    if loop is None:
                        callback(ref._key)
                    else:
                        loop.call_soon_threadsafe(callback, ref._key)

    def finish_when_awaited(self, ref: ObjectRef[Any], outcome: object = None) -> None:
        """Finish from another thread, as an engine does, as soon as somebody has subscribed."""

        def work() -> None:
            with self.subscribed:
                assert self.subscribed.wait_for(lambda: self.is_subscribed(ref), HANG_S)
            self.finish(ref, outcome)

        threading.Thread(target=work).start()

    def is_subscribed(self, ref: ObjectRef[Any]) -> bool:
        return any(ref._key in keys for keys, _, _ in self.subscriptions)

    # What groups ask of a backend.

    def is_done(self, ref: ObjectRef[Any]) -> bool:
        return ref._key in self.outcomes

    def result(self, ref: ObjectRef[Any]) -> object:
        self.fetched.append(ref._key)
        outcome = self.outcomes[ref._key]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def get(self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None) -> list[object]:
        return [self.result(ref) for ref in refs]

    def wait(
        self, refs: Sequence[ObjectRef[Any]], num_returns: int, timeout_s: float | None
    ) -> tuple[list[Any], list[Any]]:
        self.waits += 1
        done = [ref for ref in refs if self.is_done(ref)][:num_returns]
        return done, [ref for ref in refs if ref not in done]

    def subscribe(
        self, refs: Sequence[ObjectRef[Any]], callback: Callable[[int], None], loop: Any = None
    ) -> Callable[[], None]:
        entry = ({ref._key for ref in refs}, callback, loop)
        with self.subscribed:
            self.subscriptions.append(entry)
            self.subscribed.notify_all()
            for ref in refs:
                if self.is_done(ref):
                    self.finish(ref, self.outcomes[ref._key])

        def stop() -> None:
            with self.subscribed:
                if entry in self.subscriptions:
                    self.subscriptions.remove(entry)

        return stop

    def drop(self, ref: ObjectRef[Any]) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk()
    monkeypatch.setattr(_current, "_backend", desk)
    return desk


class Calls:
    """A remote function whose calls are finished by hand."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.refs: list[ObjectRef[Any]] = []
        self.items: list[Any] = []

    def remote(self, item: Any) -> ObjectRef[Any]:
        ref = self.desk.refs(1)[0]
        self.items.append(item)
        self.refs.append(ref)
        return ref


class Instant(Calls):
    """One whose calls are done at once."""

    def remote(self, item: Any) -> ObjectRef[Any]:
        ref = super().remote(item)
        self.desk.finish(ref, item)
        return ref


def test_values_come_in_the_order_in_which_they_are_done(desk):
    a, b, c = desk.refs(3)
    values = as_completed([a, b, c])
    desk.finish(c, "c")
    desk.finish(a, "a")

    assert next(values) == "c"
    assert next(values) == "a"
    desk.finish_when_awaited(b, "b")
    assert list(values) == ["b"]


def test_a_sleeping_thread_is_woken_by_the_next_value(desk):
    refs = desk.refs(3)
    values = as_completed(refs)

    def finish_all() -> None:
        for ref in refs:
            # The consumer sleeps when it has asked for a value that is not there.
            while not values._arrivals._wakers:
                time.sleep(0.001)
            desk.finish(ref, ref._key)

    thread = threading.Thread(target=finish_all)
    thread.start()
    assert list(values) == [ref._key for ref in refs]
    thread.join()


def test_a_sleeping_coroutine_is_woken_from_another_thread(desk, run):
    refs = desk.refs(50)
    threads = []

    async def main() -> list[Any]:
        values = as_completed(refs)
        thread = threading.Thread(target=lambda: [desk.finish(ref, ref._key) for ref in refs])
        threads.append(thread)
        thread.start()
        return [value async for value in values]

    assert run(main) == [ref._key for ref in refs]
    threads[0].join()


def test_as_completed_can_give_refs_and_then_fetches_nothing(desk):
    a, b = desk.refs(2)
    desk.finish(b, 2)
    desk.finish(a, 1)

    assert list(as_completed([a, b], yield_obj_refs=True)) == [a, b]
    assert desk.fetched == []


def test_iteration_goes_on_after_the_error_of_a_task(desk):
    a, b = desk.refs(2)
    values = as_completed([a, b])
    desk.finish(a, KeyError("a"))
    desk.finish(b, "b")

    with pytest.raises(KeyError):
        next(values)
    assert list(values) == ["b"]


def test_a_cancelled_step_of_as_completed_loses_no_value(desk):
    (ref,) = desk.refs(1)

    async def main() -> Any:
        values = as_completed([ref])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(values), 0.01)
        desk.finish(ref, "late")
        return await anext(values)

    assert asyncio.run(main()) == "late"


def test_dropping_or_closing_as_completed_leaves_no_subscription(desk):
    refs = desk.refs(2)
    values = as_completed(refs)
    assert desk.subscriptions
    del values
    assert not desk.subscriptions

    values = as_completed(refs)
    values.close()
    assert not desk.subscriptions
    assert list(values) == []


def test_closing_ends_the_wait_of_a_consumer(desk):
    async def main() -> list[Any]:
        values = as_completed(desk.refs(1))
        consumer = asyncio.create_task(collect(values))
        await asyncio.sleep(0)
        values.close()
        return await consumer

    assert asyncio.run(main()) == []


async def collect(values: Any) -> list[Any]:
    return [value async for value in values]


def test_a_second_consumer_is_told(desk):
    async def main() -> None:
        values = as_completed(desk.refs(1))
        first = asyncio.create_task(anext(values))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already being advanced"):
            await anext(values)
        first.cancel()

    asyncio.run(main())


def test_in_a_task_sync_iteration_blocks_where_the_engine_sees_it(desk):
    desk.is_worker = True
    a, b = desk.refs(2)
    values = as_completed([a, b])
    desk.finish(a, 1)
    next(values)
    assert not desk.waits
    desk.finish_when_awaited(b, 2)
    next(values)
    assert desk.waits <= 1  # none if b was done before it was asked for


@pytest.mark.parametrize("function", [as_completed, wait_async])
def test_what_is_no_list_of_refs_is_refused(desk, function):
    (ref,) = desk.refs(1)
    for wrong in (ref, [ref, 1], [1]):
        with pytest.raises(TypeError):
            outcome = function(wrong)
            outcome.send(None)
    with pytest.raises(ValueError, match="unique"):
        outcome = function([ref, ref])
        outcome.send(None)


# -- wait_async -----------------------------------------------------------------------------------


def test_wait_async_keeps_the_order_and_returns_at_most_what_was_asked_for(desk, run):
    refs = desk.refs(4)
    for ref in refs[1:]:
        desk.finish(ref)

    async def main() -> Any:
        return await wait_async(refs, num_returns=2)

    assert run(main) == ([refs[1], refs[2]], [refs[0], refs[3]])


def test_wait_async_returns_when_enough_are_done_and_fetches_nothing(desk, run):
    a, b, c = refs = desk.refs(3)
    desk.finish(a, KeyError("a failed ref is done"))
    desk.finish_when_awaited(c)

    async def main() -> Any:
        return await wait_async(refs, num_returns=2)

    assert run(main) == ([a, c], [b])
    assert desk.fetched == []
    assert not desk.subscriptions


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_wait_async_gives_up_in_time_and_leaves_nothing_behind(desk, run, timeout):
    a, b = refs = desk.refs(2)
    desk.finish(a)

    async def main() -> Any:
        return await wait_async(refs, num_returns=2, timeout=timeout)

    assert run(main) == ([a], [b])
    assert not desk.subscriptions


def test_a_cancelled_wait_async_leaves_nothing_behind(desk):
    async def main() -> None:
        waiting = asyncio.create_task(wait_async(desk.refs(2)))
        await asyncio.sleep(0)
        assert desk.subscriptions
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert not desk.subscriptions

    async def main_in_trio() -> None:
        with trio.move_on_after(0.01):
            await wait_async(desk.refs(2))

    trio.run(main_in_trio)
    assert not desk.subscriptions


def test_asking_again_and_again_does_not_stop_the_loop(desk, run):
    refs = desk.refs(1)

    async def main() -> None:
        if run is not trio.run:
            asyncio.get_running_loop().call_soon(desk.finish, refs[0])
        else:
            trio.lowlevel.current_trio_token().run_sync_soon(desk.finish, refs[0])
        while not (await wait_async(refs, timeout=0))[0]:
            pass

    run(main)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"num_returns": 0}, ValueError),
        ({"num_returns": 3}, ValueError),
        ({"num_returns": 1.5}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
    ],
)
def test_wrong_numbers_are_refused_by_wait_async(desk, arguments, error):
    async def main() -> None:
        with pytest.raises(error):
            await wait_async(desk.refs(2), **arguments)

    asyncio.run(main())


def test_wait_async_of_nothing_is_nothing():
    async def main() -> Any:
        return await wait_async([])

    assert asyncio.run(main()) == ([], [])


# -- await ref and its callbacks ------------------------------------------------------------------


def test_a_cancelled_await_leaves_no_callback_behind(desk):
    (ref,) = desk.refs(1)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ref, 0.01)
        assert not desk.subscriptions

    asyncio.run(main())

    async def main_in_trio() -> None:
        with trio.move_on_after(0.01):
            await ref

    trio.run(main_in_trio)
    assert not desk.subscriptions


def test_a_trio_task_in_guest_mode_waits_in_trio(desk):
    (ref,) = desk.refs(1)
    desk.finish_when_awaited(ref, "guest")

    async def in_trio() -> Any:
        return await ref

    async def host() -> Any:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            in_trio,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        return (await done).unwrap()

    assert asyncio.run(host()) == "guest"


def test_awaiting_where_no_loop_runs_says_what_is_needed(desk):
    (ref,) = desk.refs(1)

    with pytest.raises(RuntimeError, match="asyncio or trio"):
        ref.__await__().send(None)


def test_asyncio_wait_takes_refs_and_cleans_up_after_a_timeout(desk):
    a, b = desk.refs(2)
    desk.finish(a, 1)

    async def main() -> None:
        done, pending = await asyncio.wait([a, b], timeout=0.01)
        assert (done, pending) == ({a}, {b})
        assert not desk.subscriptions

    asyncio.run(main())


def test_a_callback_that_raises_is_reported_by_the_loop_and_stops_nobody(desk):
    (ref,) = desk.refs(1)
    seen: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: seen.append(context["exception"]))
        ref.add_done_callback(lambda _ref: 1 / 0)
        ref.add_done_callback(seen.append)
        desk.finish(ref, 1)
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert isinstance(seen[0], ZeroDivisionError)
    assert seen[1] is ref


def test_a_removed_callback_is_not_called(desk):
    (ref,) = desk.refs(1)

    async def main() -> None:
        ref.add_done_callback(print)
        ref.add_done_callback(print)
        assert ref.remove_done_callback(print) == 2
        assert ref.remove_done_callback(print) == 0
        assert not desk.subscriptions

    asyncio.run(main())


# -- futures --------------------------------------------------------------------------------------


def test_a_future_of_a_ref_gives_value_and_error(desk):
    import concurrent.futures

    a, b = desk.refs(2)
    futures = [a.future(), b.future()]
    desk.finish(a, "value")
    desk.finish(b, KeyError("b"))
    done, _ = concurrent.futures.wait(futures, timeout=HANG_S)

    assert done == set(futures)
    assert futures[0].result() == "value"
    assert isinstance(futures[1].exception(), KeyError)
    assert not futures[0].running()


def test_waiting_for_the_first_exception_of_futures_ends_early(desk):
    import concurrent.futures

    a, b = desk.refs(2)
    futures = [a.future(), b.future()]
    desk.finish(b, KeyError("b"))
    done, pending = concurrent.futures.wait(
        futures, timeout=HANG_S, return_when=concurrent.futures.FIRST_EXCEPTION
    )

    assert (done, pending) == ({futures[1]}, {futures[0]})


def test_a_cancelled_future_ends_its_subscription_and_waits(desk):
    import concurrent.futures

    (ref,) = desk.refs(1)
    future = ref.future()

    assert future.cancel()
    assert future.cancel()
    assert not desk.subscriptions
    assert concurrent.futures.wait([future], timeout=HANG_S).done == {future}
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()


def test_a_future_that_is_settled_keeps_neither_ref_nor_engine(desk):
    (ref,) = desk.refs(1)
    future = ref.future()
    desk.finish(ref, "value")

    assert future.result(HANG_S) == "value"
    assert future._attached is None


def test_a_callback_that_ends_its_thread_does_not_end_the_others(desk, monkeypatch):
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))
    a, b = desk.refs(2)
    a.future().add_done_callback(lambda _future: (_ for _ in ()).throw(SystemExit))
    future = b.future()
    desk.finish(a)
    desk.finish(b, "b")

    assert future.result(HANG_S) == "b"
    assert told == [SystemExit]


# -- map ------------------------------------------------------------------------------------------


def test_map_takes_no_more_items_than_it_may_have_in_flight(desk):
    calls = Instant(desk)
    values = map_calls(calls, itertools.count(), limit=3)

    assert calls.items == []  # nothing before the first step
    assert [next(values) for _ in range(4)] == [0, 1, 2, 3]
    assert len(calls.items) <= 4 + 3


def test_closing_map_stops_submitting(desk):
    calls = Instant(desk)
    with closing(map_calls(calls, itertools.count(), limit=2)) as values:
        next(values)
    submitted = len(calls.items)

    assert list(values) == []
    assert len(calls.items) == submitted


def test_values_of_map_keep_the_order_of_the_items(desk):
    calls = Calls(desk)

    async def main() -> list[Any]:
        values = map_calls(calls, "abc")
        first = asyncio.ensure_future(anext(values))
        await asyncio.sleep(0)
        for ref, item in reversed(list(zip(calls.refs, calls.items, strict=True))):
            desk.finish(ref, item)
        return [await first, *[value async for value in values]]

    assert asyncio.run(main()) == ["a", "b", "c"]


def test_unordered_values_of_map_come_as_they_are_done(desk):
    calls = Calls(desk)

    def finish_backwards() -> None:
        with desk.subscribed:
            assert desk.subscribed.wait_for(lambda: len(desk.subscriptions) == 3, HANG_S)
        for ref, item in reversed(list(zip(calls.refs, calls.items, strict=True))):
            desk.finish(ref, item)

    thread = threading.Thread(target=finish_backwards)
    thread.start()
    assert list(map_calls(calls, "abc", ordered=False)) == ["c", "b", "a"]
    thread.join()


@pytest.mark.parametrize("ordered", [True, False])
def test_an_error_in_map_is_raised_in_its_place_or_returned(desk, ordered):
    class Failing(Calls):
        def remote(self, item: Any) -> ObjectRef[Any]:
            if item == "unpicklable":
                raise TypeError(item)
            ref = super().remote(item)
            desk.finish(ref, KeyError(item) if item == "fails" else item)
            return ref

    items = ["a", "fails", "unpicklable", "b"]
    values = map_calls(Failing(desk), items, ordered=ordered, return_exceptions=True)
    assert [type(value) for value in values] == [str, KeyError, TypeError, str]

    values = map_calls(Failing(desk), items, ordered=ordered)
    assert next(values) == "a"
    with pytest.raises(KeyError):
        next(values)
    with pytest.raises(TypeError):
        next(values)
    assert list(values) == ["b"]


def test_an_error_of_the_items_comes_after_the_values_before_it(desk):
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the source is broken")

    values = map_calls(Instant(desk), items(), return_exceptions=True)
    assert [next(values), next(values)] == [1, 2]
    with pytest.raises(OSError, match="broken"):
        next(values)
    assert list(values) == []


@pytest.mark.parametrize("ordered", [True, False])
def test_map_reads_async_items(desk, run, ordered):
    async def items() -> AsyncIterator[int]:
        for i in range(100):
            await pause()
            yield i

    calls = Instant(desk)

    async def main() -> list[Any]:
        values = map_calls(calls, items(), ordered=ordered, limit=3)
        taken = []
        async for value in values:
            taken.append(value)
            assert len(calls.items) <= len(taken) + 3
        return taken

    assert run(main) == list(range(100))


def test_a_slow_source_does_not_hold_back_values_that_are_done(desk, run):
    async def main() -> None:
        gate = asyncio.Event() if run is not trio.run else trio.Event()

        async def items() -> AsyncIterator[int]:
            yield 1
            await gate.wait()
            yield 2

        values = map_calls(Instant(desk), items())
        assert await anext(values) == 1  # while the source waits
        gate.set()
        assert [value async for value in values] == [2]

    run(main)


def test_an_error_of_async_items_comes_after_the_values_before_it(desk, run):
    async def items() -> AsyncIterator[int]:
        yield 1
        raise OSError("the source is broken")

    async def main() -> None:
        values = map_calls(Instant(desk), items())
        assert await anext(values) == 1
        with pytest.raises(OSError, match="broken"):
            await anext(values)

    run(main)


def test_closing_map_ends_the_reading_of_async_items(desk, run):
    ended = []

    async def items() -> AsyncIterator[int]:
        try:
            for i in itertools.count():
                await pause()
                yield i
        finally:
            ended.append(True)

    async def main() -> None:
        source = items()
        async with aclosing(map_calls(Instant(desk), source, limit=1)) as values:
            assert await anext(values) == 0
        await source.aclose()
        assert ended == [True]
        assert [value async for value in values] == []

    run(main)


def test_a_map_that_is_dropped_ends_the_reading_of_async_items(desk):
    calls = Instant(desk)

    async def items() -> AsyncIterator[int]:
        for i in itertools.count():
            await asyncio.sleep(0)
            yield i

    async def main() -> None:
        values = map_calls(calls, items(), limit=1)
        await anext(values)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert others
        del values
        gc.collect()
        await asyncio.wait(others, timeout=HANG_S)
        assert all(task.done() for task in others)

    asyncio.run(main())


def test_a_cancelled_step_of_map_loses_no_value(desk):
    calls = Calls(desk)

    async def main() -> list[Any]:
        values = map_calls(calls, "ab")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(values), 0.01)
        for ref, item in zip(calls.refs, calls.items, strict=True):
            desk.finish(ref, item)
        return [value async for value in values]

    assert asyncio.run(main()) == ["a", "b"]


def test_map_over_async_items_needs_async_for(desk):
    async def items() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match="async for"):
        iter(map_calls(Instant(desk), items()))


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_a_wrong_limit_is_refused(desk, limit, error):
    with pytest.raises(error):
        map_calls(Instant(desk), [], limit=limit)


def test_a_function_of_many_returns_cannot_be_mapped(desk):
    class Pair(Calls):
        def remote(self, item: Any) -> Any:
            return [super().remote(item), super().remote(item)]

    with pytest.raises(TypeError, match="one return value"):
        list(map_calls(Pair(desk), [1]))


# -- Ray's own names ------------------------------------------------------------------------------


def test_rays_as_completed_takes_rays_arguments(desk):
    a, b = desk.refs(2)
    desk.finish(a, 1)
    values = ray_as_completed([a, b], chunk_size=2, timeout=1.0, fetch_local=False)

    assert next(values) == 1  # although the chunk is not full


def test_rays_map_unordered_takes_items_without_end(desk):
    calls = Instant(desk)
    values = map_unordered(calls, itertools.count(), backpressure_size=5, chunk_size=2)

    assert sorted(itertools.islice(values, 20)) == list(range(20))
    assert len(calls.items) <= 25


def test_rays_map_unordered_can_give_refs_and_take_all_at_once(desk):
    calls = Instant(desk)
    refs = list(map_unordered(calls, range(200), backpressure_size=None, yield_obj_refs=True))

    assert {ref._key for ref in refs} == {ref._key for ref in calls.refs}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"chunk_size": 0}, ValueError),
        ({"num_returns": 1}, ValueError),
        ({"backpressure_size": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"chunksize": 1}, TypeError),
    ],
)
def test_wrong_arguments_of_rays_functions_are_refused(desk, arguments, error):
    with pytest.raises(error):
        map_unordered(Instant(desk), [1], **arguments)


# -- real sessions --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[{"local_mode": True}, {}], ids=["inline", "engine"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine({"num_cpus": 2, **request.param})
    yield engine
    engine.taskloom.shutdown()


def test_as_completed_of_real_tasks(tl, run):
    double = tl.remote(lambda x: 2 * x)
    assert sorted(tl.as_completed([double.remote(i) for i in range(20)])) == [
        2 * i for i in range(20)
    ]

    async def main() -> list[Any]:
        return [v async for v in tl.as_completed([double.remote(i) for i in range(20)])]

    assert sorted(run(main)) == [2 * i for i in range(20)]


def test_map_of_a_plain_function_over_real_tasks(tl, run):
    assert list(tl.map(lambda x: x + 1, range(50))) == list(range(1, 51))

    async def main() -> list[Any]:
        return [v async for v in tl.map(lambda x: x + 1, range(50), limit=4)]

    assert run(main) == list(range(1, 51))


def test_map_of_an_async_function_over_real_tasks(tl):
    @tl.remote
    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return x

    assert sorted(tl.map(later, range(20), ordered=False)) == list(range(20))


def test_the_error_of_a_real_task_has_its_class(tl):
    values = tl.map(lambda x: 1 // x, [1, 0, 2])

    assert next(values) == 1
    with pytest.raises(ZeroDivisionError):
        next(values)
    assert next(values) == 0


def test_wait_async_of_real_tasks(tl, run):
    square = tl.remote(lambda x: x * x)

    async def main() -> Any:
        refs = [square.remote(i) for i in range(10)]
        ready, unready = await wait_async(refs, num_returns=10)
        return ready == refs, unready

    assert run(main) == (True, [])


def test_groups_work_inside_a_task(tl):
    @tl.remote
    def total(n: int) -> int:
        import taskloom

        plus = taskloom.remote(lambda x: x + 1)
        mapped = sum(taskloom.map(plus, range(n)))
        unordered = sum(taskloom.map(plus, range(n), ordered=False))
        completed = sum(taskloom.as_completed([plus.remote(i) for i in range(n)]))
        return mapped + unordered + completed

    # On all CPUs at once: those that wait must lend theirs.
    assert tl.get([total.remote(10) for _ in range(4)]) == [3 * 55] * 4


def test_refs_of_different_sessions_do_not_mix(tl):
    (foreign,) = Desk().refs(1)
    own = tl.put(1)

    with pytest.raises(ValueError, match="another session"):
        as_completed([own, foreign])
    assert _current.peek() is own._home
