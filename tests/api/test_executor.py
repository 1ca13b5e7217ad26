"""``Executor``: what programs written for ``concurrent.futures`` rely on, over every backend."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import itertools
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import Engine
from taskloom import _current
from taskloom.exceptions import TaskCancelledError
from taskloom.executor import Executor
from taskloom.ref import ObjectRef

HANG_S = 30
REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("REQUEST", default="none")


@pytest.fixture(scope="module", params=[{"local_mode": True}, {}], ids=["inline", "engine"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine({"num_cpus": 2, **request.param})
    yield engine
    engine.taskloom.shutdown()


@pytest.fixture
def workers(tl: ModuleType, engine: Engine) -> ModuleType:
    """For what only worker processes can show."""
    if "local_mode" in engine.options:
        pytest.skip("nothing is ever pending in the calling process")
    return tl


class Gate:
    """A file that tasks wait for, and a directory in which each leaves its name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "open"

    def open(self) -> None:
        self.file.touch()

    def started(self) -> set[str]:
        return {path.name for path in self.directory.iterdir() if path != self.file}

    def wait_for(self, condition: Callable[[set[str]], bool]) -> set[str]:
        deadline = time.monotonic() + HANG_S
        while not condition(self.started()):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return self.started()


def through(directory: str, name: str) -> str:
    """Say that it has begun, and wait for the gate."""
    Path(directory, name).touch()
    deadline = time.monotonic() + HANG_S
    while not os.path.exists(os.path.join(directory, "open")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return name


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def square(x: int) -> int:
    return x * x


class Box:
    def __init__(self, value: int) -> None:
        self.value = value

    def get(self) -> int:
        return self.value

    async def aget(self) -> int:
        return self.value


# -- submit ---------------------------------------------------------------------------------------


def test_it_is_an_executor_whose_futures_are_futures(tl):
    with tl.Executor() as executor:
        future = executor.submit(square, 3)

        assert isinstance(executor, concurrent.futures.Executor)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(HANG_S) == 9


def test_keyword_arguments_named_like_the_executors_own_arrive(tl):
    with tl.Executor() as executor:
        future = executor.submit(dict, fn=1, call=2, args=3)

        assert future.result(HANG_S) == {"fn": 1, "call": 2, "args": 3}


def test_anything_that_can_be_called_can_be_submitted(tl):
    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return x

    with tl.Executor() as executor:
        calls: list[tuple[Any, tuple[Any, ...], Any]] = [
            (math.sqrt, (4,), 2.0),
            (int, ("5",), 5),
            (functools.partial(square, 3), (), 9),
            (Box(7).get, (), 7),
            (Box(8).aget, (), 8),
            (lambda: 10, (), 10),
            (later, (11,), 11),
            (tl.remote(square), (4,), 16),
            ([1, 2].count, (2,), 1),
        ]
        futures = [executor.submit(fn, *args) for fn, args, _ in calls]

        assert [future.result(HANG_S) for future in futures] == [value for *_, value in calls]


def test_a_bound_method_sees_its_object_as_it_is_at_each_call(tl):
    box = Box(1)
    with tl.Executor() as executor:
        first = executor.submit(box.get).result(HANG_S)
        box.value = 2

        assert (first, executor.submit(box.get).result(HANG_S)) == (1, 2)


def test_a_ref_as_an_argument_arrives_as_its_value(tl):
    with tl.Executor() as executor:
        assert executor.submit(square, tl.put(5)).result(HANG_S) == 25


def test_the_users_error_is_raised_as_its_class(tl):
    with tl.Executor() as executor:
        future = executor.submit(lambda: {}["missing"])

        with pytest.raises(KeyError):
            future.result(HANG_S)
        assert isinstance(future.exception(), KeyError)


def test_whatever_is_wrong_with_a_call_is_the_exception_of_its_future(tl):
    with tl.Executor() as executor:
        wrong = executor.submit(square, 1, 2, 3)
        unpicklable = executor.submit(square, threading.Lock())

        assert isinstance(wrong.exception(HANG_S), TypeError)
        assert isinstance(unpicklable.exception(HANG_S), TypeError)


def test_a_function_is_pickled_once_however_often_it_is_submitted(tl):
    pickled: list[int] = []

    class Counted:
        def __reduce__(self) -> Any:
            pickled.append(1)
            return Counted, ()

    counted = Counted()

    def f(x: int) -> int:
        assert counted is not None
        return x

    with tl.Executor() as executor:
        assert list(executor.map(f, range(10))) == list(range(10))
    assert len(pickled) == 1


def test_context_variables_are_those_of_the_submitter(tl):
    token = REQUEST.set("r-1")
    try:
        with tl.Executor(max_workers=1) as executor:
            futures = [executor.submit(REQUEST.get) for _ in range(3)]
    finally:
        REQUEST.reset(token)

    assert [future.result(HANG_S) for future in futures] == ["r-1"] * 3


def test_task_options_are_passed_on_and_checked(tl):
    with tl.Executor(num_cpus=64) as executor:
        future = executor.submit(square, 1)
        assert isinstance(future.exception(HANG_S), tl.exceptions.TaskUnschedulableError)
        remote = executor.submit(tl.remote(num_cpus=1)(square), 1)
        assert isinstance(remote.exception(HANG_S), tl.exceptions.TaskUnschedulableError)

    with pytest.raises(ValueError, match="no_such_option"):
        tl.Executor(no_such_option=1)
    with pytest.raises(ValueError, match="num_returns"):
        tl.Executor(num_returns=2)


@pytest.mark.parametrize(
    ("max_workers", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)]
)
def test_a_wrong_number_of_workers_is_refused(tl, max_workers, error):
    with pytest.raises(error):
        tl.Executor(max_workers)


def test_futures_can_be_waited_for_together(tl):
    with tl.Executor() as executor:
        futures = [executor.submit(square, i) for i in range(20)]
        done = concurrent.futures.as_completed(futures, timeout=HANG_S)

        assert sorted(future.result() for future in done) == [i * i for i in range(20)]


# -- asyncio --------------------------------------------------------------------------------------


def test_it_serves_run_in_executor_and_wrap_future(tl):
    async def main() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        with tl.Executor() as executor:
            wrapped = asyncio.wrap_future(executor.submit(square, 3))
            return await loop.run_in_executor(executor, square, 2), await wrapped

    assert asyncio.run(main()) == (4, 9)


# -- max_workers ----------------------------------------------------------------------------------


def test_no_more_than_max_workers_run_at_once(workers, gate):
    with workers.Executor(max_workers=1, num_cpus=0.1) as executor:
        futures = [executor.submit(through, str(gate.directory), str(i)) for i in range(3)]
        assert gate.wait_for(bool) == {"0"}
        assert not any(future.done() for future in futures)
        gate.open()

        assert [future.result(HANG_S) for future in futures] == ["0", "1", "2"]


def test_many_calls_go_through_few_places(tl):
    with tl.Executor(max_workers=2) as executor:
        futures = [executor.submit(square, i) for i in range(500)]

        assert [future.result(HANG_S) for future in futures] == [i * i for i in range(500)]


def test_a_call_that_is_held_back_can_be_cancelled(workers, gate):
    with workers.Executor(max_workers=1) as executor:
        running = executor.submit(through, str(gate.directory), "running")
        held = [executor.submit(through, str(gate.directory), f"held-{i}") for i in range(3)]
        assert held[0].cancel()
        assert held[1].cancel()
        assert held[0].cancelled()
        gate.open()

        assert running.result(HANG_S) == "running"
        assert held[2].result(HANG_S) == "held-2"
        with pytest.raises(concurrent.futures.CancelledError):
            held[0].result(HANG_S)
        assert gate.started() == {"running", "held-2"}


def test_a_call_that_runs_cannot_be_cancelled(workers, gate):
    with workers.Executor() as executor:
        future = executor.submit(through, str(gate.directory), "running")
        gate.wait_for(bool)

        assert not future.cancel()
        gate.open()
        assert future.result(HANG_S) == "running"
        assert not future.cancel()


def test_a_wrong_call_that_was_held_back_makes_room_for_the_next(tl):
    with tl.Executor(max_workers=1) as executor:
        futures = [executor.submit(square, i, "one too many") for i in range(50)]
        last = executor.submit(square, 4)

        assert last.result(HANG_S) == 16
        assert all(isinstance(future.exception(HANG_S), TypeError) for future in futures)


class Unhurried:
    """A backend whose tasks begin when the test says so, and can be withdrawn until then."""

    is_worker = False
    session_id = b"u" * 12

    def __init__(self) -> None:
        self.begun: set[int] = set()
        self.outcomes: dict[int, Any] = {}
        self.told: dict[int, Callable[[int], None]] = {}
        self._keys = itertools.count(1)

    def submit(self, spec: Any, args: Any, kwargs: Any) -> ObjectRef[Any]:
        return ObjectRef(next(self._keys), self, object())

    def finish(self, key: int, outcome: Any) -> None:
        self.outcomes[key] = outcome
        if key in self.told:
            self.told[key](key)

    def withdraw(self, ref: ObjectRef[Any]) -> bool:
        if ref._key in self.begun:
            return False
        self.finish(ref._key, TaskCancelledError())
        return True

    def is_done(self, ref: ObjectRef[Any]) -> bool:
        return ref._key in self.outcomes

    def result(self, ref: ObjectRef[Any]) -> Any:
        if isinstance(self.outcomes[ref._key], BaseException):
            raise self.outcomes[ref._key]
        return self.outcomes[ref._key]

    def subscribe(self, refs: Any, callback: Any, loop: Any = None) -> Callable[[], None]:
        self.told[refs[0]._key] = callback
        return lambda: None

    def drop(self, ref: ObjectRef[Any]) -> None:
        pass


def test_a_task_that_has_not_begun_is_withdrawn(monkeypatch):
    backend = Unhurried()
    monkeypatch.setattr(_current, "_backend", backend)
    executor = Executor()
    first, second, third = (executor.submit(square, i) for i in range(3))
    backend.begun.add(1)

    assert not first.cancel()
    assert second.cancel()
    assert second.cancelled()
    assert concurrent.futures.wait([second], timeout=HANG_S).done == {second}
    executor.shutdown(wait=False, cancel_futures=True)
    assert third.cancelled()
    backend.finish(1, "first")
    executor.shutdown()
    assert first.result() == "first"


class Busy(Unhurried):
    """The same in a worker, where whoever waits does so in the backend."""

    is_worker = True

    def wait(self, refs: Any, num_returns: int, timeout_s: float | None) -> Any:
        return list(refs), []


class HookedCondition(threading.Condition):
    """Calls ``hook`` once, just before somebody takes the lock."""

    hook: Callable[[], None] | None = None

    def __enter__(self) -> bool:
        hook, self.hook = self.hook, None
        if hook is not None:
            hook()
        return super().__enter__()


def test_in_a_task_a_call_that_ends_while_it_is_looked_at_is_not_waited_for(monkeypatch):
    backend = Busy()
    monkeypatch.setattr(_current, "_backend", backend)
    executor = Executor(max_workers=1)
    executor._changed = HookedCondition()
    first = executor.submit(square, 1)
    held = executor.submit(square, 2)

    def all_ends() -> None:
        backend.finish(1, "first")
        while 2 not in backend.told:
            time.sleep(0.001)
        backend.finish(2, "held")
        assert concurrent.futures.wait([first, held], timeout=HANG_S).not_done == set()
        while executor._outstanding:
            time.sleep(0.001)

    executor._changed.hook = all_ends
    waiting = threading.Thread(target=held.result, daemon=True)
    waiting.start()
    waiting.join(HANG_S)
    assert not waiting.is_alive()


# -- map ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map_keeps_the_order_and_stops_with_the_shortest(tl, chunksize):
    with tl.Executor() as executor:
        values = executor.map(pow, range(10), itertools.repeat(2), chunksize=chunksize)

        assert list(values) == [i**2 for i in range(10)]


def test_map_of_an_async_function_in_chunks(tl):
    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return x

    with tl.Executor() as executor:
        assert list(executor.map(later, range(7), chunksize=3)) == list(range(7))


def test_map_in_chunks_keeps_the_options_of_a_remote_function(tl):
    greedy = tl.remote(num_cpus=64)(square)
    with tl.Executor() as executor:
        values = executor.map(greedy, range(4), chunksize=2)

        with pytest.raises(tl.exceptions.TaskUnschedulableError):
            next(values)


def test_map_submits_before_the_first_value_is_asked_for(workers, gate):
    with workers.Executor() as executor:
        values = executor.map(through, itertools.repeat(str(gate.directory)), "ab")
        gate.wait_for(lambda started: len(started) == 2)
        gate.open()

        assert list(values) == ["a", "b"]


def test_map_with_a_buffer_takes_items_as_they_are_used(tl):
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in itertools.count():
            taken.append(i)
            yield i

    with tl.Executor() as executor:
        values = executor.map(square, items(), buffersize=3)
        assert taken == [0, 1, 2]
        assert [next(values) for _ in range(5)] == [0, 1, 4, 9, 16]
        assert len(taken) <= 9


def test_map_raises_the_error_in_its_place(tl):
    with tl.Executor() as executor:
        values = executor.map(lambda x: 1 // x, [1, 0, 1])

        assert next(values) == 1
        with pytest.raises(ZeroDivisionError):
            next(values)


def test_map_gives_up_in_time_and_cancels_what_was_held_back(workers, gate):
    with workers.Executor(max_workers=1) as executor:
        values = executor.map(through, itertools.repeat(str(gate.directory)), "abc", timeout=0.05)
        with pytest.raises(TimeoutError):
            next(values)
        gate.open()
    assert gate.started() <= {"a"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"chunksize": 0}, ValueError),
        ({"buffersize": 0}, ValueError),
        ({"buffersize": "1"}, TypeError),
    ],
)
def test_wrong_numbers_are_refused_by_map(tl, arguments, error):
    with tl.Executor() as executor, pytest.raises(error):
        executor.map(square, [1], **arguments)


# -- shutdown -------------------------------------------------------------------------------------


def test_nothing_can_be_submitted_after_shutdown(tl):
    executor = tl.Executor()
    executor.shutdown()
    executor.shutdown()

    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)


def test_shutdown_waits_for_all_calls(tl):
    executor = tl.Executor(max_workers=2)
    futures = [executor.submit(square, i) for i in range(20)]
    executor.shutdown()

    assert all(future.done() for future in futures)


def test_shutdown_can_leave_the_calls_alone(workers, gate):
    executor = workers.Executor(max_workers=1)
    futures = [executor.submit(through, str(gate.directory), name) for name in "ab"]
    executor.shutdown(wait=False)
    assert not any(future.done() for future in futures)
    gate.open()

    assert [future.result(HANG_S) for future in futures] == ["a", "b"]


def test_shutdown_can_cancel_what_has_not_begun(workers, gate):
    executor = workers.Executor(max_workers=1)
    futures = [executor.submit(through, str(gate.directory), name) for name in "abc"]
    gate.wait_for(bool)
    executor.shutdown(wait=False, cancel_futures=True)
    gate.open()
    executor.shutdown()

    assert futures[0].result() == "a"
    assert [future.cancelled() for future in futures] == [False, True, True]
    assert gate.started() == {"a"}


def test_an_executor_works_inside_a_task_on_all_cpus(tl):
    @tl.remote
    def total(n: int) -> int:
        import taskloom

        with taskloom.Executor(max_workers=1) as executor:
            futures = [executor.submit(square, i) for i in range(n)]
            return sum(future.result() for future in reversed(futures))

    assert tl.get([total.remote(5) for _ in range(3)], timeout=HANG_S) == [30] * 3


def test_a_held_call_does_not_start_the_next_session(fresh, tmp_path):
    gate = Gate(tmp_path)
    fresh.init(num_cpus=1)
    executor = fresh.Executor(max_workers=1)
    futures = [executor.submit(through, str(tmp_path), name) for name in "ab"]
    gate.wait_for(bool)
    fresh.shutdown()

    for future in futures:
        assert future.exception(HANG_S) is not None
    assert not fresh.is_initialized()


def test_a_program_that_ends_finishes_what_it_submitted_first(run_driver, tmp_path):
    program = """
import sys, taskloom
from pathlib import Path

executor = taskloom.Executor(max_workers=1)
for i in range(5):
    executor.submit(Path(sys.argv[1], str(i)).touch)
"""
    ended = run_driver(program, args=[str(tmp_path)])

    assert (ended.returncode, ended.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2", "3", "4"}


def test_the_futures_of_an_executor_are_released_with_it(tl):
    executor = tl.Executor()
    executor.submit(square, 2).result(HANG_S)
    executor.shutdown()
    gone = weakref.ref(executor)
    del executor
    deadline = time.monotonic() + HANG_S
    while gone() is not None:  # the thread that settled the future may still be on its way out
        assert time.monotonic() < deadline
        gc.collect()
