"""``ObjectRef``: identity, awaiting, futures and lifetime (rows REF of the reference)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import functools
import gc
import os
import pickle
import re
import signal
import threading
from types import ModuleType
from typing import Any

import cloudpickle
import pytest
from tests.gates import Gate, eventually

from taskloom import _current
from taskloom._core import invariants
from taskloom.exceptions import ObjectLostError, RayTaskError, TaskCancelledError

try:
    import uvloop
except ImportError:
    uvloop = None  # it does not exist everywhere


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def in_engine(function: Any) -> Any:
    """Call ``function(loom)`` in the engine's thread, between two of its turns."""
    backend: Any = _current.peek()
    return backend._portal.call(functools.partial(function, backend._engine.loom))


def kept_objects() -> int:
    return in_engine(lambda loom: len(loom.graph.objects))


# -- identity -----------------------------------------------------------------------------------


def test_a_ref_looks_as_in_ray_REF_1(tl: ModuleType):
    ref = tl.remote(lambda: 1).remote()

    assert re.fullmatch(r"ObjectRef\([0-9a-f]{56}\)", repr(ref))
    assert ref.hex() == ref.binary().hex()
    assert len(ref.binary()) == ref.size() == 28
    assert re.fullmatch(r"[0-9a-f]{48}", ref.task_id())
    assert ref.hex().startswith(ref.task_id())
    assert isinstance(ref.job_id(), str)
    assert isinstance(ref.owner_address(), str)
    assert isinstance(ref.call_site(), str)
    assert not ref.is_nil()
    assert tl.ObjectRef.nil().is_nil()
    assert tl.ObjectRef.from_random() != tl.ObjectRef.from_random()
    assert tl.ObjectRef[int] is not None


def test_a_ref_is_itself_by_the_object_it_names_REF_1(tl):
    ref, other = tl.put(1), tl.put(1)
    twin = tl.ObjectRef(ref.binary())

    assert twin == ref
    assert hash(twin) == hash(ref)
    assert ref != other
    assert {ref: "x"}[twin] == "x"
    assert tl.ObjectRef.from_binary(ref.binary()) == ref
    assert tl.ObjectRef.from_hex(ref.hex()) == ref
    assert tl.get(twin) == 1
    assert copy.copy(ref) == copy.deepcopy(ref) == ref


def test_the_refs_of_one_call_have_one_task_id_REF_1(tl):
    a, b = tl.remote(num_returns=2)(lambda: (1, 2)).remote()

    assert a != b
    assert a.task_id() == b.task_id()


def test_a_ref_keeps_its_name_on_its_travels_REF_1(tl):
    ref = tl.put(1)

    assert tl.get(tl.remote(lambda refs: refs[0].hex()).remote([ref])) == ref.hex()
    assert tl.get(tl.remote(lambda refs: refs[0]).remote([ref])) == ref


def test_a_nil_ref_cannot_be_fetched_REF_1(tl):
    with pytest.raises(ValueError, match="does not"):
        tl.get(tl.ObjectRef.nil())


# -- await --------------------------------------------------------------------------------------

LOOPS = [asyncio.new_event_loop] + ([uvloop.new_event_loop] if uvloop else [])


@pytest.mark.parametrize("new_loop", LOOPS, ids=lambda f: f.__module__)
def test_a_ref_can_be_awaited_in_any_loop_and_any_number_of_times_REF_2(tl, new_loop):
    ref = tl.remote(lambda: "value").remote()

    async def twice():
        return await ref, await ref

    for _ in range(2):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            assert runner.run(twice()) == ("value", "value")


async def test_await_raises_what_get_raises_REF_2(tl):
    ref = tl.remote(lambda: {}["missing"]).remote()
    for _ in range(2):
        with pytest.raises(KeyError) as raised:
            await ref
        assert isinstance(raised.value, RayTaskError)


def test_a_ref_from_the_id_of_one_just_dropped_is_as_good_as_that_was(tl):
    @tl.remote
    def total(refs):
        return sum(tl.get(refs))

    ref = tl.remote(lambda: 3).remote()
    tl.get(ref)
    name = ref.binary()
    del ref
    again = tl.ObjectRef.from_binary(name)  # the release has not been served: nobody was rung

    assert tl.get(total.remote([again, again])) == 6
    assert tl.get(again) == 3


def test_two_loops_in_two_threads_await_one_ref_REF_2(tl, gate):
    @tl.remote
    def held():
        gate.enter()
        return "value"

    ref = held.remote()
    values: list[str] = []

    async def wait():
        values.append(await ref)

    threads = [threading.Thread(target=lambda: asyncio.run(wait())) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: len(ref._home._sleepers.waiting(ref._record)) == 2)
    gate.open()
    for thread in threads:
        thread.join(20)

    assert values == ["value", "value"]


def test_a_loop_that_closed_while_it_waited_disturbs_nobody_REF_2(tl, gate):
    ref = tl.remote(gate.enter).remote()
    loop = asyncio.new_event_loop()

    async def wait():
        await ref

    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0.01))
    task._log_destroy_pending = False
    loop.close()
    gate.open()

    assert tl.get(ref) is None
    assert tl.get(tl.remote(lambda: 1).remote()) == 1


def test_a_task_awaits_in_a_loop_of_its_own_REF_2(tl):
    @tl.remote
    def outer():
        import asyncio

        import taskloom

        async def main():
            inner = taskloom.remote(lambda x: x + 1)
            return await asyncio.gather(*(inner.remote(n) for n in range(3)))

        return asyncio.run(main())

    assert tl.get(outer.remote()) == [1, 2, 3]


# -- asyncio's combinators ----------------------------------------------------------------------


async def test_gather_of_refs_REF_3(tl):
    f = tl.remote(lambda x: 10 // x)

    assert await asyncio.gather(*(f.remote(x) for x in (1, 2, 5))) == [10, 5, 2]
    mixed = await asyncio.gather(f.remote(0), f.remote(1), return_exceptions=True)
    assert isinstance(mixed[0], ZeroDivisionError)
    assert mixed[1] == 10


async def test_wait_for_a_ref_REF_3(tl, gate):
    assert await asyncio.wait_for(tl.remote(lambda: 1).remote(), 20) == 1
    ref = tl.remote(gate.enter).remote()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ref, 0.05)
    gate.open()
    assert await ref is None


async def test_a_timeout_block_around_a_ref_REF_3(tl, gate):
    ref = tl.remote(gate.enter).remote()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await ref
    gate.open()
    async with asyncio.timeout(20):
        await ref


async def test_asyncio_wait_takes_refs_REF_3(tl, gate):
    quick = tl.remote(num_cpus=0)(lambda: "quick").remote()
    slow = tl.remote(num_cpus=0)(gate.enter).remote()
    done, pending = await asyncio.wait([quick, slow], return_when=asyncio.FIRST_COMPLETED)
    assert (done, pending) == ({quick}, {slow})
    assert quick.result() == "quick"
    done, pending = await asyncio.wait([slow], timeout=0.02)
    assert (done, pending) == (set(), {slow})
    gate.open()
    done, pending = await asyncio.wait([quick, slow])

    assert (done, pending) == ({quick, slow}, set())


async def test_asyncio_as_completed_of_refs_REF_3(tl):
    f = tl.remote(lambda x: x)
    values = [await step for step in asyncio.as_completed([f.remote(n) for n in range(5)])]

    assert sorted(values) == list(range(5))


async def test_ensure_future_and_wrap_future_of_refs_REF_3(tl):
    ref = tl.remote(lambda: 1).remote()

    assert await asyncio.ensure_future(ref) == 1
    assert await asyncio.wrap_future(ref.future()) == 1
    assert await asyncio.shield(ref) == 1


async def test_a_ref_has_the_duck_type_of_a_future_REF_3(tl, gate):
    ref = tl.remote(gate.enter).remote()
    assert not ref.done()
    assert not ref.cancelled()
    for ask in (ref.result, ref.exception):
        with pytest.raises(asyncio.InvalidStateError):
            ask()
    called: list[Any] = []
    ref.add_done_callback(called.append)
    gate.open()
    await ref
    await asyncio.sleep(0)

    assert called == [ref]
    assert ref.done()
    assert ref.exception() is None
    assert ref.result() is None


async def test_the_exception_of_a_failed_ref_REF_3(tl):
    ref = tl.remote(lambda: 1 / 0).remote()
    await asyncio.wait([ref])

    assert isinstance(ref.exception(), ZeroDivisionError)
    assert not ref.cancelled()
    with pytest.raises(ZeroDivisionError):
        ref.result()


async def test_a_cancelled_ref_says_so_REF_3(tl, gate):
    ref = tl.remote(gate.enter).remote()
    gate.wait_for()
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        await ref

    assert ref.cancelled()
    assert not isinstance(ref.exception(), asyncio.CancelledError)


def test_trio_awaits_a_ref_REF_2(tl, gate):
    trio = pytest.importorskip("trio")
    ref = tl.remote(num_cpus=0)(gate.enter).remote()

    async def main():
        assert await tl.remote(lambda: 1).remote() == 1
        with trio.move_on_after(0.05) as scope:
            await ref
        assert scope.cancelled_caught
        gate.open()
        with trio.fail_after(20):
            return await ref

    assert trio.run(main) is None


# -- futures ------------------------------------------------------------------------------------


def test_futures_of_refs_work_with_concurrent_futures_REF_5(tl, gate):
    f = tl.remote(lambda x: x)
    futures = [f.remote(n).future() for n in range(5)]

    assert sorted(d.result() for d in concurrent.futures.as_completed(futures)) == list(range(5))
    done, not_done = concurrent.futures.wait(futures)
    assert (len(done), not_done) == (5, set())
    failed = tl.remote(lambda: 1 / 0).remote().future()
    assert isinstance(failed.exception(20), ZeroDivisionError)


def test_cancelling_the_future_does_not_cancel_the_task_REF_5(tl, gate):
    @tl.remote
    def held():
        gate.enter()
        return 1

    ref = held.remote()
    future = ref.future()
    assert not future.running()
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    gate.open()

    assert tl.get(ref) == 1


def test_the_future_keeps_the_object_when_the_ref_is_gone_REF_5(tl, gate):
    def held():
        gate.enter()
        return "value"

    future = tl.remote(held).remote().future()
    gc.collect()
    gate.open()

    assert future.result(20) == "value"


# -- lifetime -----------------------------------------------------------------------------------


def test_objects_go_with_their_last_ref_REF_6(fresh):
    fresh.init(num_cpus=2)
    f = fresh.remote(lambda x: x)
    for _ in range(10):
        refs = [fresh.put(n) for n in range(500)] + [f.remote(n) for n in range(500)]
        fresh.get(refs)
        del refs

    assert eventually(lambda: kept_objects() == 0)
    in_engine(invariants.check)
    assert in_engine(lambda loom: len(loom.graph.nodes)) == 0


def test_objects_made_and_kept_by_workers_go_too_REF_6(fresh):
    fresh.init(num_cpus=2)

    @fresh.remote
    def outer(box):
        import taskloom

        inner = taskloom.remote(lambda x: x)
        refs = [inner.remote(n) for n in range(20)] + [taskloom.put(1)]
        taskloom.get([*refs, *box])
        return refs

    returned = [fresh.get(outer.remote([fresh.put(0)])) for _ in range(5)]
    assert kept_objects() > 0
    assert [fresh.get(refs) for refs in returned] == [[*range(20), 1]] * 5
    del returned
    gc.collect()
    # Workers tell with the next message they send.
    f = fresh.remote(lambda: 1)
    assert eventually(lambda: fresh.get([f.remote() for _ in range(8)]) and kept_objects() == 0)


def test_an_object_lives_while_a_task_that_needs_it_waits_REF_6(tl, gate):
    @tl.remote(num_cpus=0)
    def held():
        gate.enter()

    total = tl.remote(lambda x, _: x).remote(tl.put("kept"), held.remote())
    gc.collect()
    gate.wait_for()
    gate.open()

    assert tl.get(total) == "kept"


def test_a_ref_captured_by_a_function_keeps_its_object_REF_6(tl):
    def make(ref):
        @tl.remote
        def f():
            import taskloom

            return taskloom.get(ref)

        return f

    f = make(tl.put("captured"))
    gc.collect()
    assert tl.get([f.remote() for _ in range(4)]) == ["captured"] * 4


def test_a_ref_pickled_out_of_sight_keeps_its_object_REF_6(tl):
    ref = tl.put("pinned")
    blobs = [pickle.dumps(ref), cloudpickle.dumps(ref)]
    del ref
    gc.collect()

    assert [tl.get(pickle.loads(blob)) for blob in blobs] == ["pinned", "pinned"]


def test_a_ref_of_an_object_that_is_gone_is_an_error_REF_6(fresh):
    fresh.init(num_cpus=2)
    ref = fresh.put(1)
    name = ref.binary()
    del ref
    assert eventually(lambda: kept_objects() == 0)

    with pytest.raises(ObjectLostError):
        fresh.get(fresh.ObjectRef(name))


def test_a_ref_of_a_worker_outlives_the_worker_REF_7(tl):
    @tl.remote
    def make():
        import taskloom

        return os.getpid(), [taskloom.put("kept"), taskloom.remote(lambda: "made").remote()]

    pid, refs = tl.get(make.remote())
    os.kill(pid, signal.SIGKILL)

    assert tl.get(refs) == ["kept", "made"]
