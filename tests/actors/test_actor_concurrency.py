"""Order, async and threaded actors, concurrency groups, cancelling (ACT-6 to ACT-9, CAN-3)."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest
from tests.gates import Gate

import taskloom
from taskloom.exceptions import DeadlockError, GetTimeoutError, TaskCancelledError

SESSION = {"num_cpus": 2}


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


@taskloom.remote
class Log:
    def __init__(self):
        self.items = []

    def add(self, item):
        self.items.append(item)
        return len(self.items)

    def all(self):
        return self.items

    def wait(self, gate, item):
        gate.enter("wait")
        time.sleep(0.1)  # so that a cancel that was sent before the gate opened is heard by now
        self.items.append(item)


@taskloom.remote
def after(gate, value):
    gate.enter("after")
    return value


# -- order --------------------------------------------------------------------------------------


def test_calls_run_in_the_order_of_submission_ACT_6(tl):
    log = Log.remote()
    for number in range(500):
        log.add.remote(number)
    assert tl.get(log.all.remote()) == list(range(500))


def test_a_call_that_waits_for_its_arguments_holds_up_those_behind_it_ACT_6(tl, gate):
    log = Log.remote()
    first = log.add.remote(after.remote(gate, "first"))
    second = log.add.remote("second")
    gate.wait_for("after")
    assert tl.wait([second], timeout=0)[0] == []
    gate.open()
    tl.get([first, second])
    assert tl.get(log.all.remote()) == ["first", "second"]


def test_out_of_order_execution_lets_ready_calls_pass_ACT_6(tl, gate):
    log = Log.options(allow_out_of_order_execution=True).remote()
    first = log.add.remote(after.remote(gate, "first"))
    tl.get(log.add.remote("second"), timeout=20)
    gate.open()
    tl.get(first)
    assert tl.get(log.all.remote()) == ["second", "first"]


def test_one_caller_does_not_hold_up_another_one_ACT_6(tl, gate):
    log = Log.remote()
    waiting = log.add.remote(after.remote(gate, "driver"))

    @tl.remote(num_cpus=0)
    def other(log):
        return taskloom.get(log.add.remote("task"))

    assert tl.get(other.remote(log), timeout=20) == 1
    gate.open()
    assert tl.get(waiting) == 2


def test_a_call_whose_argument_fails_does_not_hold_up_others(tl, gate):
    @tl.remote
    def fail(gate):
        gate.enter("fail")
        raise ValueError("no")

    log = Log.remote()
    bad = log.add.remote(fail.remote(gate))
    good = log.add.remote("good")
    gate.wait_for("fail")
    gate.open()
    assert tl.get(good) == 1
    with pytest.raises(ValueError):
        tl.get(bad)


def test_calls_of_several_tasks_are_each_in_order(tl):
    @tl.remote
    def write(log, name):
        return taskloom.get([log.add.remote((name, number)) for number in range(100)])

    log = Log.remote()
    tl.get([write.remote(log, name) for name in "ab"])
    items = tl.get(log.all.remote())
    for name in "ab":
        assert [number for who, number in items if who == name] == list(range(100))


def test_order_holds_when_a_call_is_retried_after_an_exception(tl):
    @tl.remote
    class Flaky:
        def __init__(self):
            self.items = []

        @taskloom.method(retry_exceptions=True, max_task_retries=2)
        def add(self, item):
            self.items.append(item)
            if item % 2 and self.items.count(item) < 2:
                raise OSError(item)

        def all(self):
            return self.items

    flaky = Flaky.remote()
    for number in range(4):
        flaky.add.remote(number)
    assert tl.get(flaky.all.remote()) == [0, 1, 1, 2, 3, 3]


def test_in_order_execution_is_refused_where_calls_overlap_ACT_6():
    with pytest.raises(ValueError, match="allow_out_of_order_execution"):
        Log.options(max_concurrency=2, allow_out_of_order_execution=False)


def test_an_actor_that_waits_for_its_own_call_is_told_at_once(tl):
    @tl.remote
    class Selfish:
        def outer(self):
            me = taskloom.get_runtime_context().current_actor
            return taskloom.get(me.inner.remote())

        def through_a_task(self):
            me = taskloom.get_runtime_context().current_actor
            return taskloom.get(taskloom.remote(lambda x: x).remote(me.inner.remote()))

        def wait(self):
            me = taskloom.get_runtime_context().current_actor
            return len(taskloom.wait([me.inner.remote()])[0])

        def in_time(self):
            me = taskloom.get_runtime_context().current_actor
            ref = me.inner.remote()
            try:
                taskloom.get(ref, timeout=0.05)
            except GetTimeoutError:
                return [ref]

        def inner(self):
            return "inner"

    actor = Selfish.remote()
    for method in (actor.outer, actor.through_a_task):
        with pytest.raises(DeadlockError, match="inner was called by a method of the same actor"):
            tl.get(method.remote(), timeout=20)
    assert tl.get(actor.wait.remote(), timeout=20) == 1
    assert tl.get(tl.get(actor.in_time.remote())[0]) == "inner"  # it could wait


def test_a_self_call_may_run_afterwards_and_side_by_side(tl):
    @tl.remote(max_concurrency=2)
    class Busy:
        def outer(self):
            return taskloom.get(taskloom.get_runtime_context().current_actor.inner.remote())

        def inner(self):
            return "inner"

    assert tl.get(Busy.remote().outer.remote(), timeout=20) == "inner"


def test_a_blocked_call_gives_its_cpu_back(fresh):
    fresh.init(num_cpus=1)

    @fresh.remote(num_cpus=1)
    class Owner:
        def __init__(self):
            self.first = taskloom.get(taskloom.remote(lambda: 1).remote())

        def second(self):
            return self.first + taskloom.get(taskloom.remote(lambda: 1).remote())

    owner = Owner.remote()
    assert fresh.get(owner.second.remote(), timeout=30) == 2
    assert "CPU" not in fresh.available_resources()


# -- async actors -------------------------------------------------------------------------------


@taskloom.remote
class Station:
    def __init__(self):
        self.event = asyncio.Event()
        self.here = 0
        self.log = []
        self.thread = threading.get_ident()
        self.loop = asyncio.get_running_loop()

    async def wait(self):
        self.here += 1
        await self.event.wait()
        return self.here

    async def count(self):
        return self.here

    async def open(self):
        self.event.set()

    async def forever(self, gate):
        try:
            gate.note("forever")
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            gate.note("cancelled")
            raise

    def slow(self, gate):
        gate.enter("slow")
        return threading.get_ident() != self.thread

    def spin(self, number):
        self.log.append(number)
        time.sleep(0.001)
        self.log.append(number)
        return self.log

    async def same_loop(self):
        return asyncio.get_running_loop() is self.loop

    async def fail(self):
        raise KeyError("async")

    def a_coroutine(self):
        return self.count()


def test_calls_of_an_async_actor_run_side_by_side_ACT_7(tl):
    station = Station.remote()
    refs = [station.wait.remote() for _ in range(100)]
    while tl.get(station.count.remote()) < 100:
        pass
    tl.get(station.open.remote())
    assert tl.get(refs) == [100] * 100


def test_a_thousand_calls_at_once_and_no_more_ACT_7(tl):
    station = Station.remote()
    refs = [station.wait.remote() for _ in range(1100)]
    opened = station.open.remote()  # stands behind a thousand that wait
    assert tl.wait([opened], timeout=0.2)[0] == []
    assert tl.wait(refs, timeout=0)[0] == []
    tl.cancel(refs[0])
    tl.cancel(refs[1])  # room for two, one of them taken by the next waiting call
    for ref in refs[2:110]:
        tl.cancel(ref)
    tl.get(opened)
    tl.get(refs[110:])


def test_a_sync_method_does_not_hold_up_the_loop_ACT_7(tl, gate):
    station = Station.remote()
    slow = station.slow.remote(gate)
    gate.wait_for("slow")
    assert tl.get(station.count.remote(), timeout=20) == 0
    gate.open()
    assert tl.get(slow)


def test_sync_methods_of_an_async_actor_run_one_at_a_time_ACT_7(tl):
    station = Station.remote()
    log = tl.get([station.spin.remote(number) for number in range(20)])[-1]
    assert log == [number for number in range(20) for _ in range(2)]


def test_the_constructor_of_an_async_actor_runs_in_its_loop(tl):
    assert tl.get(Station.remote().same_loop.remote())


def test_errors_and_coroutines_of_an_async_actor_arrive(tl):
    station = Station.remote()
    with pytest.raises(KeyError):
        tl.get(station.fail.remote())
    assert tl.get(station.a_coroutine.remote()) == 0
    assert tl.get(station.__ray_call__.remote(lambda self: self.here)) == 0


def test_cancelling_an_async_call_is_a_cancelled_error_in_it_CAN_3(tl, gate):
    station = Station.remote()
    ref = station.forever.remote(gate)
    gate.wait_for("forever")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)
    gate.wait_for("cancelled")
    assert tl.get(station.count.remote()) == 0


def test_cancelling_an_await_cancels_the_call(tl, gate):
    station = Station.remote()

    async def wait():
        await station.forever.remote(gate)

    async def main():
        waiting = asyncio.create_task(wait())
        await asyncio.to_thread(gate.wait_for, "forever")
        waiting.cancel()
        await asyncio.wait([waiting])

    asyncio.run(main())
    gate.wait_for("cancelled")


def test_an_async_actor_awaits_tasks_and_other_actors(tl):
    @tl.remote
    class Client:
        async def ask(self, station):
            return await station.count.remote() + await taskloom.remote(lambda: 1).remote()

    assert tl.get(Client.remote().ask.remote(Station.remote())) == 1


def test_a_blocked_coroutine_delays_its_neighbours_and_nothing_else(tl, gate):
    @tl.remote
    class Careless:
        async def block(self, gate):
            gate.enter("block")

        async def quick(self):
            return "quick"

    careless = Careless.remote()
    blocked, quick = careless.block.remote(gate), careless.quick.remote()
    gate.wait_for("block")
    assert tl.get(tl.remote(lambda: 1).remote()) == 1
    assert tl.wait([quick], timeout=0)[0] == []
    gate.open()
    assert tl.get([blocked, quick]) == [None, "quick"]


# -- threads and groups -------------------------------------------------------------------------


@taskloom.remote(max_concurrency=2)
class Pair:
    def __init__(self):
        self.barrier = threading.Barrier(2)

    def meet(self):
        return self.barrier.wait(20) in (0, 1)

    def canceled(self, gate):
        gate.note("inside")
        context = taskloom.get_runtime_context()
        gate.stay()
        while not context.is_canceled():
            time.sleep(0.001)
        gate.note("noticed")

    def pid(self):
        return os.getpid()


def test_a_threaded_actor_runs_as_many_calls_at_once_as_it_may_ACT_8(tl):
    pair = Pair.remote()
    assert tl.get([pair.meet.remote() for _ in range(6)], timeout=20) == [True] * 6


def test_a_threaded_actor_runs_no_more_calls_at_once_than_it_may_ACT_8(tl, gate):
    @tl.remote(max_concurrency=2)
    class Limited:
        def enter(self, gate):
            gate.enter("in")

    limited = Limited.remote()
    refs = [limited.enter.remote(gate) for _ in range(5)]
    gate.wait_for("in", 2)
    assert tl.wait(refs, timeout=0.1)[0] == []
    assert gate.count("in") == 2
    gate.open()
    tl.get(refs)


def test_threads_of_an_actor_wait_for_tasks_side_by_side(tl):
    @tl.remote(max_concurrency=4)
    class Waiting:
        def ask(self, number):
            return taskloom.get(taskloom.remote(lambda: number).remote())

    waiting = Waiting.remote()
    assert tl.get([waiting.ask.remote(n) for n in range(12)]) == list(range(12))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_sync_call_that_is_cancelled_while_it_runs_can_find_out_CAN_3(tl, gate, threads):
    actor = Pair.options(max_concurrency=threads).remote()
    ref = actor.canceled.remote(gate)
    gate.wait_for("inside")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)
    gate.open()
    gate.wait_for("noticed")
    assert tl.get(actor.pid.remote(), timeout=20)


def test_a_call_that_has_not_begun_is_cancelled_for_good_CAN_3(tl, gate):
    log = Log.remote()
    first = log.wait.remote(gate, "first")
    gate.wait_for("wait")
    second, third = log.add.remote("second"), log.add.remote("third")
    tl.cancel(second)
    with pytest.raises(TaskCancelledError):
        tl.get(second)
    gate.open()
    tl.get([first, third])
    assert tl.get(log.all.remote()) == ["first", "third"]


def test_force_is_refused_for_calls_of_actors_CAN_3(tl, gate):
    log = Log.remote()
    ref = log.wait.remote(gate, 1)
    gate.wait_for("wait")
    with pytest.raises(ValueError, match="force=True is not supported for actor tasks"):
        tl.cancel(ref, force=True)
    gate.open()
    tl.get(ref)


def test_cancelling_a_task_cancels_its_calls_CAN_2(tl, gate):
    log = Log.remote()
    held = log.wait.remote(gate, "held")
    gate.wait_for("wait")

    @tl.remote
    def parent(log, gate):
        ref = log.add.remote("child")
        gate.note("submitted")
        taskloom.get(ref)

    ref = parent.remote(log, gate)
    gate.wait_for("submitted")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)
    gate.open()
    tl.get(held)
    assert tl.get(log.all.remote()) == ["held"]


@taskloom.remote(concurrency_groups={"io": 2, "health": 1})
class Grouped:
    @taskloom.method(concurrency_group="health")
    def health(self):
        return "well"

    @taskloom.method(concurrency_group="io")
    def read(self, gate):
        gate.enter("io")

    def compute(self, gate):
        gate.enter("compute")


def test_groups_do_not_hold_each_other_up_ACT_9(tl, gate):
    grouped = Grouped.remote()
    busy = [grouped.compute.remote(gate) for _ in range(2)]
    busy += [grouped.read.remote(gate) for _ in range(4)]
    gate.wait_for("compute")
    gate.wait_for("io", 2)
    assert tl.get(grouped.health.remote(), timeout=20) == "well"
    moved = grouped.compute.options(concurrency_group="health").remote(gate)
    gate.wait_for("compute", 2)
    assert gate.count("io") == 2
    gate.open()
    tl.get([*busy, moved])


def test_groups_of_async_actors_have_their_own_limits_ACT_9(tl, gate):
    @tl.remote(concurrency_groups={"io": 1})
    class Async:
        @taskloom.method(concurrency_group="io")
        async def read(self, gate):
            gate.note("io")
            while not os.path.exists(os.path.join(gate._directory, "open")):
                await asyncio.sleep(0.001)

        async def ping(self):
            return "pong"

    actor = Async.remote()
    refs = [actor.read.remote(gate) for _ in range(2)]
    gate.wait_for("io")
    assert tl.get(actor.ping.remote()) == "pong"
    assert gate.count("io") == 1
    gate.open()
    tl.get(refs)


def test_a_group_that_is_not_there_is_an_error_ACT_9(tl):
    with pytest.raises(ValueError, match="io"):

        @tl.remote
        class NoGroups:
            @taskloom.method(concurrency_group="io")
            def read(self): ...

    grouped = Grouped.remote()
    with pytest.raises(ValueError, match="nope"):
        grouped.compute.options(concurrency_group="nope").remote(None)
    with pytest.raises(ValueError, match="concurrency_groups"):
        Grouped.options(concurrency_groups={"io": 1})
