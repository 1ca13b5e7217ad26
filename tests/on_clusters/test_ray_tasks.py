"""Tasks on Ray: what the translation must get right."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from contextvars import ContextVar

import pytest
from tests.gates import eventually

import taskloom
from taskloom.exceptions import (
    GetTimeoutError,
    RayTaskError,
    TaskCancelledError,
    TaskTimeoutError,
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
def _session(on_ray):
    """All tests here run on Ray."""


def test_a_graph_is_resolved_by_its_refs():
    total = add.remote(add.remote(1, 2), add.remote(3, b=taskloom.put(4)))
    assert taskloom.get(total) == 10


def test_an_error_is_of_the_users_class_with_the_remote_traceback():
    with pytest.raises(Broken) as caught:
        taskloom.get(fail.remote(7))
    assert caught.value.code == 7
    assert isinstance(caught.value, RayTaskError)
    assert "raise Broken(code" in str(caught.value)


def test_dependents_of_a_failed_task_fail_with_its_error_and_do_not_run(tmp_path):
    mark = tmp_path / "ran"

    @taskloom.remote
    def touch(_value):
        mark.touch()

    ref = touch.remote(touch.remote(fail.remote(3)))
    with pytest.raises(Broken):
        taskloom.get(ref)
    assert not mark.exists()


def test_get_raises_as_soon_as_one_has_failed():
    @taskloom.remote
    def wait_for_file(path):
        while not os.path.exists(path):
            time.sleep(0.01)

    slow = wait_for_file.remote("/nowhere/at/all")
    with pytest.raises(Broken):
        taskloom.get([slow, fail.remote(1)], timeout=30)
    taskloom.cancel(slow)
    with pytest.raises(TaskCancelledError):
        taskloom.get(slow, timeout=30)


def test_refs_in_containers_stay_refs_in_arguments_and_results():
    @taskloom.remote
    def look(box):
        (ref,) = box["refs"]
        return isinstance(ref, taskloom.ObjectRef), taskloom.get(ref), [add.remote(1, 1)]

    is_ref, value, made = taskloom.get(look.remote({"refs": [add.remote(20, 1)]}))
    assert (is_ref, value, taskloom.get(made[0])) == (True, 21, 2)


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

    assert taskloom.get(ask.remote([until_open.remote()]), timeout=60) == (0, "open")


def test_nested_tasks_lend_their_cpu_while_they_wait():
    @taskloom.remote
    def tree(depth):
        if not depth:
            return 1
        return sum(taskloom.get([tree.remote(depth - 1) for _ in range(2)]))

    assert taskloom.get(tree.remote(3), timeout=120) == 8


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


def test_coroutines_without_cpu_share_one_process_and_run_side_by_side():
    @taskloom.remote
    async def meet(n):
        await asyncio.sleep(0.2)
        return n, os.getpid()

    found = taskloom.get([meet.remote(n) for n in range(50)], timeout=60)
    assert [n for n, _ in found] == list(range(50))
    assert len({pid for _, pid in found}) == 1


def test_a_coroutine_with_a_cpu_runs_as_a_task_of_its_own():
    @taskloom.remote(num_cpus=1)
    async def inside():
        await asyncio.sleep(0)
        return await add.remote(2, 3)

    assert taskloom.get(inside.remote(), timeout=60) == 5


def test_several_returns_and_none():
    @taskloom.remote(num_returns=2)
    def pair():
        return 1, 2

    @taskloom.remote(num_returns=0)
    def nothing():
        pass

    @taskloom.remote(num_returns=2)
    def breaks_later():
        yield "first"
        raise Broken(1, "later")

    assert taskloom.get(pair.remote()) == [1, 2]
    assert nothing.remote() is None
    first, second = breaks_later.remote()
    assert taskloom.get(first) == "first"
    with pytest.raises(Broken):
        taskloom.get(second)


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


def test_retries_after_exceptions_and_pauses_between_them(tmp_path):
    @taskloom.remote(max_retries=3, retry_exceptions=[Broken], retry_delay=0.05)
    def third_time(path):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 3:
            raise Broken(1, "again")
        return os.path.getsize(path)

    assert taskloom.get(third_time.remote(str(tmp_path / "tries"))) == 3


def test_a_class_that_is_not_named_is_not_retried(tmp_path):
    @taskloom.remote(max_retries=3, retry_exceptions=[KeyError])
    def once(path):
        with open(path, "a") as file:
            file.write("x")
        raise Broken(1, "no more")

    path = tmp_path / "tries"
    with pytest.raises(Broken):
        taskloom.get(once.remote(str(path)))
    assert path.read_text() == "x"


def test_a_worker_that_dies_is_retried_within_the_budget(tmp_path):
    @taskloom.remote(max_retries=2)
    def dies(path, times):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) <= times:
            os._exit(1)
        return os.path.getsize(path)

    assert taskloom.get(dies.remote(str(tmp_path / "a"), 2), timeout=60) == 3
    with pytest.raises(WorkerCrashedError):
        taskloom.get(dies.remote(str(tmp_path / "b"), 9), timeout=60)
    assert (tmp_path / "b").read_text() == "xxx"


def test_timeout_interrupts_a_function_that_sleeps():
    @taskloom.remote(timeout=0.3)
    def sleep():
        time.sleep(60)

    with pytest.raises(TaskTimeoutError) as caught:
        taskloom.get(sleep.remote(), timeout=30)
    assert caught.value.timeout_s == 0.3
    assert type(caught.value) is TaskTimeoutError


def test_timeout_interrupts_a_coroutine():
    @taskloom.remote(timeout=0.3)
    async def sleep():
        await asyncio.sleep(60)

    with pytest.raises(TaskTimeoutError):
        taskloom.get(sleep.remote(), timeout=30)


def test_cancel_wakes_a_function_that_sleeps_and_the_worker_lives_on(tmp_path):
    @taskloom.remote
    def sleep(path):
        open(path, "w").close()
        time.sleep(60)

    path = tmp_path / "began"
    ref = sleep.remote(str(path))
    while not path.exists():
        time.sleep(0.01)
    taskloom.cancel(ref)
    with pytest.raises(TaskCancelledError):
        taskloom.get(ref, timeout=4)  # sooner than the grace after which the worker is killed


def test_cancel_of_what_has_not_begun_and_of_a_coroutine():
    @taskloom.remote(resources={"slot": 4})
    def occupy():
        time.sleep(60)

    @taskloom.remote
    async def doze():
        await asyncio.sleep(60)

    first, second, third = occupy.remote(), occupy.remote(), doze.remote()
    for ref in (second, third, first):
        taskloom.cancel(ref)
        with pytest.raises(TaskCancelledError):
            taskloom.get(ref, timeout=30)


def test_an_await_that_is_cancelled_cancels_the_task(tmp_path):
    @taskloom.remote
    def sleep(path):
        try:
            open(path, "w").close()  # in here: once it can be seen, the interrupt may come
            time.sleep(60)
        except KeyboardInterrupt:
            open(path + ".told", "w").close()
            raise

    path = tmp_path / "began"

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                task = asyncio.ensure_future(_await(sleep.remote(str(path))))
                while not path.exists():
                    await asyncio.sleep(0.01)
                task.cancel()
                while not os.path.exists(f"{path}.told"):
                    await asyncio.sleep(0.01)
                raise TimeoutError

    async def _await(ref):
        await ref

    asyncio.run(main())
    assert os.path.exists(f"{path}.told")


def test_get_with_a_timeout_lets_the_task_go_on():
    @taskloom.remote
    def sleep():
        time.sleep(1)
        return "done"

    ref = sleep.remote()
    with pytest.raises(GetTimeoutError):
        taskloom.get(ref, timeout=0.01)
    assert taskloom.get(ref, timeout=30) == "done"


def test_resources_are_rays():
    @taskloom.remote(num_cpus=0.5, resources={"slot": 2})
    def assigned():
        import ray

        return (
            taskloom.get_runtime_context().get_assigned_resources(),
            ray.get_runtime_context().get_assigned_resources(),
        )

    ours, rays = taskloom.get(assigned.remote())
    assert ours == {"CPU": 0.5, "slot": 2.0}
    assert rays == {"CPU": 0.5, "slot": 2.0}
    assert taskloom.cluster_resources()["slot"] == 4.0
    assert taskloom.cluster_resources()["CPU"] == 2.0


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


def test_what_does_not_pickle_is_refused_at_the_call():
    with pytest.raises(TypeError, match="lock"):
        add.remote(threading.Lock(), 1)
    with pytest.raises(TypeError, match="put"):
        taskloom.put(threading.Lock())


def test_what_a_function_returns_and_cannot_be_pickled_is_its_error():
    @taskloom.remote
    def bad():
        return threading.Lock()

    with pytest.raises(TypeError, match="returned"):
        taskloom.get(bad.remote())


def test_priority_is_refused_at_once():
    with pytest.raises(NotImplementedError, match="priority"):
        add.options(priority=3).remote(1, 2)


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
        taskloom.get(rest, timeout=30)


def test_a_ref_that_was_pickled_by_hand_is_found_by_others():
    import pickle

    blob = pickle.dumps(taskloom.put([1, 2, 3]))

    @taskloom.remote
    def read(data):
        return taskloom.get(pickle.loads(data))

    assert taskloom.get(read.remote(blob)) == [1, 2, 3]


def test_generators_stream_and_a_limit_holds_them_back(tmp_path):
    @taskloom.remote(num_returns="streaming")
    def count(n):
        yield from range(n)

    @taskloom.remote(num_returns="streaming", backpressure=2)
    def careful(path):
        for n in range(10):
            with open(path, "a") as file:
                file.write("x")
            yield n

    assert [taskloom.get(ref) for ref in count.remote(5)] == [0, 1, 2, 3, 4]
    path = tmp_path / "made"
    stream = careful.remote(str(path))
    assert taskloom.get(next(stream)) == 0
    assert path.stat().st_size <= 4
    assert [taskloom.get(ref) for ref in stream] == list(range(1, 10))


def test_an_error_of_a_generator_comes_as_its_last_item():
    @taskloom.remote(num_returns="streaming")
    def breaks():
        yield 1
        raise Broken(9, "in the middle")

    stream = breaks.remote()
    assert taskloom.get(next(stream)) == 1
    with pytest.raises(Broken):
        taskloom.get(next(stream))
    with pytest.raises(StopIteration):
        next(stream)


def test_async_generators_stream():
    @taskloom.remote
    async def count(n):
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    async def main():
        return [await ref async for ref in count.remote(4)]

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_closing_a_stream_ends_its_task():
    @taskloom.remote
    def endless():
        n = 0
        while True:
            yield n
            n += 1
            time.sleep(0.01)

    stream = endless.remote()
    assert taskloom.get(next(stream)) == 0
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


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
        return str(capfd.readouterr().err)

    with pytest.raises(ValueError, match="somebody looked"):
        taskloom.get(after.remote(broken.remote("somebody looked")), timeout=60)
    taskloom.wait([after.remote(broken.remote("nobody looked"))], timeout=60)
    text = [told()]
    assert eventually(lambda: text.append(told()) or "Unhandled error" in "".join(text), 60)
    text.append(told())
    assert "".join(text).count("Unhandled error") == 1
    assert "ValueError: nobody looked" in "".join(text)
    assert "somebody looked" not in "".join(text)
