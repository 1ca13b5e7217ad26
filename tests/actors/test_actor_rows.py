"""What must be the same on the engine and in the calling process, row by row."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading

import pytest
from tests.gates import Gate, eventually

import taskloom
from taskloom.actor import exit_actor
from taskloom.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorUnschedulableError,
    RayTaskError,
    TaskTimeoutError,
)


@pytest.fixture(params=[False, True], ids=["engine", "local_mode"])
def ray(request, fresh):
    fresh.init(num_cpus=2, namespace="here", local_mode=request.param)
    return fresh


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


@taskloom.remote
class Counter:
    def __init__(self, start=0, *, gate=None):
        self.value = start
        self.gate = gate
        self.log = []
        if gate is not None:
            gate.note("made")

    def add(self, by=1):
        self.value += by
        self.log.append(by)
        return self.value

    def get_log(self):
        return self.log

    def fail(self):
        raise KeyError("x")

    def leave(self):
        exit_actor()

    @taskloom.method(num_returns=2)
    def pair(self):
        return self.value, -self.value

    def times(self, a, b):
        return a * b

    twice = functools.partialmethod(times, 2)

    @staticmethod
    def static(x):
        return x

    def __len__(self):
        return self.value

    def __ray_shutdown__(self):
        if self.gate is not None:
            self.gate.note("ended")


@taskloom.remote
class Station:
    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.depth = 0

    async def same_loop(self):
        await asyncio.sleep(0)
        return asyncio.get_running_loop() is self.loop

    def blocking(self):
        async def main():
            return "a loop of its own"

        return asyncio.run(main())

    async def through_itself(self, depth):
        self.depth = max(self.depth, depth)
        if depth == 3:
            return self.depth
        me = taskloom.get_runtime_context().current_actor
        return await me.through_itself.remote(depth + 1)

    @taskloom.method(num_returns=3)
    def three(self):
        yield from range(3)

    @taskloom.method(timeout=0.05)
    async def too_long(self):
        await asyncio.sleep(30)

    def canceled(self):
        return taskloom.get_runtime_context().is_canceled()

    async def acanceled(self):
        return taskloom.get_runtime_context().is_canceled()


def test_state_is_kept_and_calls_are_in_order_ACT_1_ACT_6(ray):
    counter = Counter.remote(10)
    assert ray.get([counter.add.remote(number) for number in range(5)])[-1] == 20
    assert ray.get(counter.get_log.remote()) == list(range(5))


def test_an_actor_class_is_neither_called_nor_inherited_from_ACT_1(ray):
    with pytest.raises(TypeError, match="Actors cannot be instantiated directly"):
        Counter()
    with pytest.raises(TypeError, match="not supported"):

        class More(Counter): ...


def test_methods_of_all_kinds_are_called_ACT_2(ray):
    counter = Counter.remote(3)
    refs = [counter.twice.remote(4), counter.static.remote("x"), counter.__len__.remote()]
    assert ray.get(refs) == [8, "x", 3]
    assert "twice" in dir(counter)


def test_wrong_calls_are_errors_at_once_ACT_2(ray):
    counter = Counter.remote()
    with pytest.raises(TypeError, match=r"add\.remote\(\)"):
        counter.add()
    with pytest.raises(AttributeError, match="'ActorHandle' object has no attribute 'nope'"):
        _ = counter.nope
    with pytest.raises(TypeError, match="times"):
        counter.times.remote(1)
    with pytest.raises(ValueError, match="Invalid option keyword nope"):
        counter.add.options(nope=1)


def test_any_function_runs_on_an_actor_ACT_3(ray):
    counter, offset = Counter.remote(5), 100
    ref = counter.__ray_call__.remote(lambda self, a, *, b: self.value + a + b + offset, 1, b=2)
    assert ray.get(ref) == 108
    assert ray.get(counter.__ray_ready__.remote())


def test_an_actor_that_can_never_be_placed_is_an_error_ACT_5(ray):
    with pytest.raises(ActorUnschedulableError):
        ray.get(Counter.options(num_cpus=100).remote().add.remote())


def test_actors_that_ask_for_nothing_hold_nothing_ACT_5(ray):
    counters = [Counter.remote() for _ in range(5)]
    assert ray.get([counter.add.remote() for counter in counters]) == [1] * 5
    assert ray.available_resources()["CPU"] == 2
    held = Counter.options(num_cpus=1).remote()
    ray.get(held.add.remote())
    assert ray.available_resources()["CPU"] == 1


def test_async_methods_share_a_loop_and_sync_ones_have_none_ACT_7(ray):
    station = Station.remote()
    assert ray.get([station.same_loop.remote(), station.same_loop.remote()]) == [True, True]
    assert ray.get(station.blocking.remote()) == "a loop of its own"


def test_an_async_actor_awaits_calls_of_its_own_ACT_7(ray):
    station = Station.remote()
    assert ray.get(station.through_itself.remote(0), timeout=20) == 3

    async def main():
        return await station.through_itself.remote(1), await station.same_loop.remote()

    assert asyncio.run(main()) == (3, True)


def test_a_generator_of_an_async_actor_fills_several_refs_ACT_10(ray):
    assert ray.get(Station.remote().three.remote()) == [0, 1, 2]


def test_several_returns_ACT_10_ACT_11(ray):
    counter = Counter.remote(3)
    assert ray.get(counter.pair.remote()) == [3, -3]
    assert ray.get(counter.pair.options(num_returns=1).remote()) == (3, -3)
    assert counter.add.options(num_returns=0).remote() is None


def test_the_last_handle_ends_an_actor_in_good_order_ACT_12_ACT_13(ray, gate):
    counter = Counter.remote(gate=gate)
    add = ray.remote(lambda box: taskloom.get(box[0].add.remote()))
    assert ray.get(add.remote([counter])) == 1
    ray.get(counter.add.remote())
    del counter
    assert eventually(lambda: gc.collect() >= 0 and ray.put(0) and gate.count("ended") == 1)


def test_async_actors_that_are_garbage_disturb_nobody_ACT_12(ray):
    for _ in range(3):
        station = Station.remote()
        cycle = [station]
        cycle.append(cycle)
        try:
            ray.get(station.__ray_call__.remote(lambda self: 1 / 0))
        except ZeroDivisionError as error:
            cycle.append(error)
        del station, cycle
        gc.collect()
        assert ray.get(Counter.remote().add.remote()) == 1


@pytest.mark.parametrize("end", ["leave", "__ray_terminate__", "kill"])
def test_after_its_end_every_call_says_why_ACT_13_ACT_14_ACT_15(ray, gate, end):
    counter = Counter.remote(gate=gate)
    ray.get(counter.add.remote())
    if end == "kill":
        ray.kill(counter)
    else:
        with pytest.raises(ActorDiedError):
            ray.get(getattr(counter, end).remote())
    why = {"leave": "exit_actor", "kill": r"kill\(\)"}.get(end, end)
    with pytest.raises(ActorDiedError, match=why):
        ray.get(counter.add.remote())
    assert eventually(lambda: gate.count("ended") == (end != "kill"))


def test_a_constructor_that_fails_is_the_error_of_every_call_ACT_16(ray):
    @ray.remote
    class Broken:
        def __init__(self):
            raise RuntimeError("no such database")

        def hello(self): ...

    broken = Broken.remote()
    for method in (broken.hello, broken.__ray_ready__):
        with pytest.raises(ActorDiedError, match="no such database") as caught:
            ray.get(method.remote())
        assert caught.value.actor_init_failed


def test_a_restart_begins_with_the_constructor_ACT_14_ACT_17(ray, gate):
    counter = Counter.options(max_restarts=1, max_task_retries=-1).remote(5, gate=gate)
    assert ray.get(counter.add.remote()) == 6
    ray.kill(counter, no_restart=False)
    assert eventually(lambda: gate.count("made") == 2)
    context = counter.__ray_call__.remote(
        lambda self: taskloom.get_runtime_context().was_current_actor_reconstructed
    )
    assert ray.get(context)
    assert ray.get(counter.add.remote()) == 6
    ray.kill(counter, no_restart=False)
    with pytest.raises(ActorDiedError):
        ray.get(counter.add.remote())


def test_names_ACT_18_ACT_19_ACT_21(ray):
    counter = Counter.options(name="n").remote()
    assert ray.get_actor("n") == counter
    with pytest.raises(ActorAlreadyExistsError):
        Counter.options(name="n").remote()
    assert Counter.options(name="n", get_if_exists=True).remote() == counter
    other = Counter.options(name="n", namespace="there", get_if_exists=True).remote()
    assert other != counter
    assert ray.util.list_named_actors() == ["n"]
    assert len(ray.util.list_named_actors(all_namespaces=True)) == 2
    ray.kill(counter)
    for name, error in (("n", ValueError), ("", ValueError), (3, TypeError)):
        with pytest.raises(error):
            ray.get_actor(name)


def test_get_if_exists_of_many_threads_makes_one_actor_ACT_19(ray):
    kind = Counter.options(name="race", get_if_exists=True)
    found = []
    threads = [threading.Thread(target=lambda: found.append(kind.remote())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_detached_actor_lives_until_it_is_killed_and_says_so_ACT_20(ray):
    with pytest.warns(UserWarning, match=r"'d' lives until kill\(\) or shutdown\(\)"):
        counter = Counter.options(name="d", lifetime="detached").remote(7)
    ray.get(counter.add.remote())
    del counter
    gc.collect()
    again = ray.get_actor("d")
    assert ray.get(again.add.remote()) == 9
    ray.kill(again)
    with pytest.raises(ValueError):
        ray.get_actor("d")


def test_an_actor_has_a_handle_of_itself_ACT_24(ray):
    counter = Counter.remote()
    me = counter.__ray_call__.remote(lambda _: taskloom.get_runtime_context().current_actor)
    assert ray.get(me) == counter
    with pytest.raises(RuntimeError):
        _ = ray.get_runtime_context().current_actor


def test_an_exception_is_the_users_and_the_actor_lives_on(ray):
    counter = Counter.remote()
    with pytest.raises(KeyError) as caught:
        ray.get(counter.fail.remote())
    assert isinstance(caught.value, RayTaskError)
    assert ray.get(counter.add.remote()) == 1


def test_a_coroutine_that_takes_too_long_is_told_so(ray):
    station = Station.remote()
    with pytest.raises(TaskTimeoutError, match=r"Station\.too_long .*0\.05 s"):
        ray.get(station.too_long.remote())
    assert ray.get(station.same_loop.remote())


def test_sync_methods_of_async_actors_may_ask_for_a_cancel_and_coroutines_may_not_CAN_3(ray):
    station = Station.remote()
    assert ray.get(station.canceled.remote()) is False
    with pytest.raises(RuntimeError, match="CancelledError"):
        ray.get(station.acanceled.remote())
    with pytest.raises(RuntimeError, match="only available in a task"):
        ray.get_runtime_context().is_canceled()
