"""Tasks on clusters: what the translation must get right."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from contextvars import ContextVar

import pytest
from tests.captured import printed
from tests.gates import Gate, eventually
from tests.on_clusters.conftest import LONG_S

import taskloom
from taskloom import _current
from taskloom.exceptions import (
    GetTimeoutError,
    TaskCancelledError,
    WorkerCrashedError,
)

colour: ContextVar[str] = ContextVar("colour", default="none")


class Broken(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@taskloom.remote
def add(a, b):
    return a + b


@taskloom.remote
def fail(code):
    raise Broken(code, "it broke")


@pytest.fixture(autouse=True)
def _session(cluster):
    """All tests here run on both."""


def test_a_ref_of_a_task_that_has_not_ended_can_travel_and_be_waited_for(tmp_path):
    gate = tmp_path / "gate"

    @taskloom.remote(num_cpus=0.1)
    def until_open():
        while not gate.exists():
            time.sleep(0.01)
        return "open"

    @taskloom.remote(num_cpus=0.1)
    def ask(box):
        ready, _ = taskloom.wait(box, timeout=0)
        gate.touch()
        return len(ready), taskloom.get(box[0])

    assert taskloom.get(ask.remote([until_open.remote()]), timeout=LONG_S) == (0, "open")


def test_await_gather_as_completed_and_wait_async_work_in_the_users_loop():
    async def main():
        assert await add.remote(1, 1) == 2
        assert await asyncio.gather(*[add.remote(n, n) for n in range(4)]) == [0, 2, 4, 6]
        refs = [add.remote(n, 0) for n in range(4)]
        assert sorted([value async for value in taskloom.as_completed(refs)]) == [0, 1, 2, 3]
        ready, rest = await taskloom.wait_async(refs, num_returns=4)
        assert (ready, rest) == (refs, [])
        with pytest.raises(Broken):
            await fail.remote(1)

    asyncio.run(main())


def test_coroutines_without_cpu_share_processes_and_run_side_by_side(cluster):
    @taskloom.remote
    async def meet(n):
        await asyncio.sleep(0.2)
        return n, os.getpid()

    found = taskloom.get([meet.remote(n) for n in range(50)], timeout=LONG_S)
    assert [n for n, _ in found] == list(range(50))
    assert len({pid for _, pid in found}) <= {"ray": 1, "dask": 2}[cluster]


def test_a_coroutine_with_a_cpu_runs_as_a_task_of_its_own():
    @taskloom.remote(num_cpus=1)
    async def inside():
        await asyncio.sleep(0)
        return await add.remote(2, 3)

    assert taskloom.get(inside.remote(), timeout=LONG_S) == 5


def test_large_values_do_not_pass_through_the_driver():
    numpy = pytest.importorskip("numpy")

    @taskloom.remote
    def make(n):
        return numpy.ones(n)

    @taskloom.remote
    def total(array):
        return float(array.sum()), array.flags.writeable

    ref = make.remote(1_000_000)
    assert taskloom.get(total.remote(ref)) == (1_000_000.0, False)
    assert ref._record.outcome is None, "the driver has fetched what nobody asked it for"
    assert taskloom.get(ref).shape == (1_000_000,)
    assert taskloom.get(total.remote(numpy.ones(500_000)))[0] == 500_000.0


def test_a_worker_that_dies_is_retried_within_the_budget(tmp_path):
    @taskloom.remote(max_retries=2)
    def dies(path, times):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) <= times:
            os._exit(1)
        return os.path.getsize(path)

    assert taskloom.get(dies.remote(str(tmp_path / "a"), 2), timeout=LONG_S) == 3
    with pytest.raises(WorkerCrashedError):
        taskloom.get(dies.remote(str(tmp_path / "b"), 9), timeout=LONG_S)
    assert (tmp_path / "b").read_text() == "xxx"


@pytest.mark.parametrize("num_cpus", [1, 0])
def test_a_task_that_kills_its_worker_as_it_begins_runs_no_more_often_than_it_may(
    tmp_path, num_cpus
):
    """Short ones go before it: the worker dies with what it has to say of them."""

    @taskloom.remote
    def fine(n):
        return n

    @taskloom.remote(max_retries=1, num_cpus=num_cpus)
    def dies(path):
        with open(path, "a") as file:
            file.write("x")
        os._exit(1)

    for turn in "ab":
        path = tmp_path / turn
        before = [fine.remote(n) for n in range(6)]
        poison = dies.remote(str(path))
        after = [fine.remote(n) for n in range(6)]
        with pytest.raises(WorkerCrashedError):
            taskloom.get(poison, timeout=LONG_S)
        assert taskloom.get(before + after, timeout=LONG_S) == [*range(6), *range(6)]
        assert path.read_text() == "xx"


def test_cancel_wakes_a_function_that_sleeps_and_the_worker_lives_on(tmp_path):
    gate = Gate(tmp_path)

    @taskloom.remote
    def sleep():
        try:
            gate.note("began")
            time.sleep(60)
        except KeyboardInterrupt:
            gate.note("told")  # not if the worker is killed, which comes after a grace
            raise

    ref = sleep.remote()
    gate.wait_for("began")
    taskloom.cancel(ref)
    with pytest.raises(TaskCancelledError):
        taskloom.get(ref, timeout=LONG_S)
    assert gate.count("told") == 1


def test_an_await_that_is_cancelled_cancels_the_task(tmp_path):
    gate = Gate(tmp_path)

    @taskloom.remote
    def sleep():
        try:
            gate.note("began")  # in here: once it can be seen, the interrupt may come
            time.sleep(60)
        except KeyboardInterrupt:
            gate.note("told")
            raise

    async def value_of(ref):
        return await ref

    async def main():
        waits = asyncio.create_task(value_of(sleep.remote()))
        # Not a look at the gate that may succeed at once: a coroutine that is cancelled before its
        # first step awaits nothing.
        await asyncio.to_thread(gate.wait_for, "began")
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        await asyncio.to_thread(gate.wait_for, "told")

    asyncio.run(main())


def test_get_with_a_timeout_lets_the_task_go_on(tmp_path):
    gate = Gate(tmp_path)

    @taskloom.remote
    def stay():
        gate.enter()
        return "done"

    ref = stay.remote()
    with pytest.raises(GetTimeoutError):
        taskloom.get(ref, timeout=0.01)
    gate.open()
    assert taskloom.get(ref, timeout=LONG_S) == "done"


def test_resources_are_those_of_the_cluster(cluster):
    @taskloom.remote(num_cpus=0.5, resources={"slot": 2})
    def assigned():
        rays = None
        if cluster == "ray":
            import ray

            rays = ray.get_runtime_context().get_assigned_resources()
        return taskloom.get_runtime_context().get_assigned_resources(), rays

    ours, rays = taskloom.get(assigned.remote())
    assert ours == {"CPU": 0.5, "slot": 2.0}
    assert rays in (None, ours)

    def all_are_there():
        found = taskloom.cluster_resources()
        return (found["CPU"], found["slot"]) == (2.0, 4.0)

    # Tests before this one end workers of Dask, and others take their places before long.
    assert eventually(all_are_there), taskloom.cluster_resources()


def test_context_variables_and_the_runtime_context_reach_the_task():
    @taskloom.remote(name="painter")
    def look():
        context = taskloom.get_runtime_context()
        return colour.get(), context.get_task_name(), context.get_task_id(), context.namespace

    token = colour.set("blue")
    try:
        ref = look.remote()
    finally:
        colour.reset(token)
    seen, name, task_id, namespace = taskloom.get(ref)
    assert (seen, name, task_id) == ("blue", "painter", ref.task_id())
    assert namespace == taskloom.get_runtime_context().namespace


def test_what_a_function_returns_and_cannot_be_pickled_is_its_error():
    @taskloom.remote
    def bad():
        return threading.Lock()

    with pytest.raises(TypeError, match="returned"):
        taskloom.get(bad.remote())


def test_priority_is_refused_at_once_where_there_is_none(cluster):
    urgent = add.options(priority=3)
    if cluster == "dask":
        assert taskloom.get(urgent.remote(1, 2)) == 3
        return
    with pytest.raises(NotImplementedError, match="priority"):
        urgent.remote(1, 2)


def test_a_group_ends_what_is_left_when_one_fails():
    @taskloom.remote
    def sleep():
        time.sleep(60)

    with pytest.raises(BaseExceptionGroup) as caught:
        with taskloom.TaskGroup():
            rest = sleep.remote()
            fail.remote(5)
    (error,) = caught.value.exceptions
    assert isinstance(error, Broken)
    with pytest.raises(TaskCancelledError):
        taskloom.get(rest, timeout=LONG_S)


def test_an_error_that_nobody_looked_at_is_printed_once_by_the_last_that_has_it(capfd):
    @taskloom.remote
    def broken(text):
        raise ValueError(text)

    @taskloom.remote
    def after(value):
        return value

    def told() -> str:
        gc.collect()
        taskloom.get(after.remote(1))  # the next call prints what there is to tell
        return printed(capfd, "err")

    with pytest.raises(ValueError, match="somebody looked"):
        taskloom.get(after.remote(broken.remote("somebody looked")), timeout=LONG_S)
    taskloom.wait([after.remote(broken.remote("nobody looked"))], timeout=LONG_S)
    assert eventually(lambda: "Unhandled error" in told(), 60)
    text = told()
    assert text.count("Unhandled error") == 1
    assert "ValueError: nobody looked" in text
    assert "somebody looked" not in text


def test_the_values_of_one_function_may_be_small_at_first_and_large_later(cluster):
    @taskloom.remote
    def zeros(count):
        return bytes(count)

    @taskloom.remote
    def size(value):
        return len(value)

    for count in (10, 10, 200_000, 10, 1_000_000, 0):
        ref = zeros.remote(count)
        assert taskloom.get(size.remote(ref), timeout=LONG_S) == count
        assert len(taskloom.get(ref, timeout=LONG_S)) == count


def test_a_call_knows_its_own_name_also_when_it_has_no_arguments():
    @taskloom.remote
    def whoami():
        return taskloom.get_runtime_context().get_task_id()

    refs = []
    for _ in range(3):  # what is known of the function meanwhile changes how it is called
        refs.append(whoami.remote())
        assert taskloom.get(refs[-1], timeout=LONG_S) == refs[-1].task_id()
    assert len(set(refs)) == 3


def test_get_of_hundreds_raises_when_the_last_one_has_failed_and_the_first_one_runs(tmp_path):
    gate = tmp_path / "gate"

    @taskloom.remote(max_retries=0)
    def one_of_many(number):
        if number == 299:
            raise Broken(number, "the last one")
        while number == 0 and not gate.exists():
            time.sleep(0.01)
        return number

    refs = [one_of_many.remote(number) for number in range(300)]
    with pytest.raises(Broken):
        taskloom.get(refs, timeout=LONG_S)
    assert taskloom.wait(refs[:1], timeout=0)[0] == []
    gate.touch()
    assert taskloom.get(refs[:299], timeout=LONG_S) == list(range(299))


def test_a_stream_that_was_cancelled_or_has_failed_is_not_closed_again_when_it_is_dropped(
    tmp_path, monkeypatch
):
    closed = []

    @taskloom.remote
    def items(code):
        if code:
            raise Broken(code, "at once")
        yield "first"
        Gate(tmp_path).stay(LONG_S)

    stream = items.remote(0)
    monkeypatch.setattr(type(stream._source._stream), "close", lambda _: closed.append(True))
    assert taskloom.get(next(stream), timeout=LONG_S) == "first"
    taskloom.cancel(stream)
    with pytest.raises((TaskCancelledError, StopIteration)):
        taskloom.get(next(stream), timeout=LONG_S)
    del stream
    stream = items.remote(5)
    with pytest.raises(Broken):
        taskloom.get(next(stream), timeout=LONG_S)
    assert eventually(lambda: not _current.peek().calls.running)
    del stream
    assert not closed


def test_an_error_that_a_group_or_a_stream_has_raised_is_not_told_again(capfd):
    @taskloom.remote
    def broken_items():
        yield 1
        raise Broken(6, "it broke")

    with pytest.raises(BaseExceptionGroup):
        with taskloom.TaskGroup():
            fail.remote(5)
    stream = broken_items.remote()
    assert taskloom.get(next(stream), timeout=LONG_S) == 1
    with pytest.raises(Broken):
        taskloom.get(next(stream), timeout=LONG_S)
    del stream
    assert eventually(lambda: not _current.peek().calls.running)
    taskloom.get(add.remote(1, 1), timeout=LONG_S)  # the next call prints what there is to tell
    assert "Unhandled error" not in printed(capfd, "err")
