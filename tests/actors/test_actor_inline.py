"""Actors in the calling process: ``init(local_mode=True)``."""

from __future__ import annotations

import asyncio
import gc
import os

import pytest
from tests.gates import Gate

import taskloom
from taskloom.actor import exit_actor
from taskloom.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorUnschedulableError,
    RayTaskError,
)


@pytest.fixture
def inline(fresh):
    fresh.init(local_mode=True, num_cpus=2, namespace="here")
    return fresh


@taskloom.remote
class Counter:
    def __init__(self, start=0, gate=None):
        self.value = start
        self.gate = gate

    def add(self, by=1):
        self.value += by
        return self.value

    def fail(self):
        raise KeyError("x")

    def pid(self):
        return os.getpid()

    def leave(self):
        exit_actor()

    @taskloom.method(num_returns=2)
    def pair(self):
        return 1, 2

    def me(self):
        context = taskloom.get_runtime_context()
        restarted = context.was_current_actor_reconstructed
        return context.current_actor, context.get_actor_name(), restarted

    def __ray_shutdown__(self):
        if self.gate is not None:
            self.gate.note("ended")


def test_an_actor_lives_in_the_calling_process(inline):
    counter = Counter.remote(10)
    assert inline.get([counter.add.remote(), counter.add.remote(5)]) == [11, 16]
    assert inline.get(counter.pid.remote()) == os.getpid()
    assert inline.get(counter.pair.remote()) == [1, 2]


def test_arguments_are_snapshots_and_refs_are_values(inline):
    @inline.remote
    class Keeper:
        def keep(self, items, box):
            self.items = items
            return inline_get(box[0])

        def kept(self):
            return self.items

    keeper, items = Keeper.remote(), [1]
    assert inline.get(keeper.keep.remote(inline.put(items), [inline.put(2)])) == 2
    items.append(2)
    assert inline.get(keeper.kept.remote()) == [1]


def inline_get(ref):
    return taskloom.get(ref)


def test_errors_are_those_of_worker_processes(inline):
    counter = Counter.remote()
    with pytest.raises(KeyError) as caught:
        inline.get(counter.fail.remote())
    assert isinstance(caught.value, RayTaskError)
    with pytest.raises(ZeroDivisionError):
        inline.get(counter.add.remote(inline.remote(lambda: 1 / 0).remote()))
    with pytest.raises(TypeError, match="add"):
        counter.add.remote(1, 2)
    assert inline.get(counter.add.remote()) == 1


def test_a_constructor_that_fails_is_the_error_of_every_call(inline):
    @inline.remote
    class Broken:
        def __init__(self):
            raise RuntimeError("no")

        def hello(self): ...

    with pytest.raises(ActorDiedError, match="RuntimeError: no") as caught:
        inline.get(Broken.remote().hello.remote())
    assert caught.value.actor_init_failed
    with pytest.raises(ActorUnschedulableError):
        inline.get(Counter.options(num_cpus=100).remote().add.remote())


def test_handles_travel_and_the_last_one_ends_the_actor(inline, tmp_path):
    gate = Gate(tmp_path)
    counter = Counter.remote(0, gate)
    add = inline.remote(lambda box: taskloom.get(box[0].add.remote()))
    assert inline.get(add.remote([counter])) == 1
    assert inline.get(inline.put(counter)) == counter
    del counter
    gc.collect()
    inline.put(1)
    assert gate.count("ended") == 1


def test_names_work(inline):
    counter = Counter.options(name="n").remote()
    assert inline.get_actor("n") == counter
    with pytest.raises(ActorAlreadyExistsError):
        Counter.options(name="n").remote()
    assert Counter.options(name="n", get_if_exists=True).remote() == counter
    assert inline.util.list_named_actors() == ["n"]
    inline.kill(counter)
    with pytest.raises(ValueError):
        inline.get_actor("n")
    with pytest.raises(ActorDiedError, match="kill"):
        inline.get(counter.add.remote())


def test_kill_with_restart_runs_the_constructor_again(inline):
    counter = Counter.options(max_restarts=1, name="again").remote(5)
    inline.get(counter.add.remote())
    inline.kill(counter, no_restart=False)
    assert inline.get(counter.add.remote()) == 6
    assert inline.get(counter.me.remote()) == (counter, "again", True)
    inline.kill(counter, no_restart=False)
    with pytest.raises(ActorDiedError):
        inline.get(counter.add.remote())


def test_leaving_and_terminating_run_the_hook(inline, tmp_path):
    gate = Gate(tmp_path)
    counter, other = Counter.remote(0, gate), Counter.remote(0, gate)
    with pytest.raises(ActorDiedError, match="exit_actor"):
        inline.get(counter.leave.remote())
    with pytest.raises(ActorDiedError, match="__ray_terminate__"):
        inline.get(other.__ray_terminate__.remote())
    assert gate.count("ended") == 2


def test_an_async_actor_has_one_loop(inline):
    @inline.remote
    class Async:
        def __init__(self):
            self.loop = asyncio.get_running_loop()
            self.queue = asyncio.Queue()

        async def put(self, item):
            await self.queue.put(item)
            return asyncio.get_running_loop() is self.loop

        async def take(self):
            return await self.queue.get()

        def size(self):
            return self.queue.qsize()

    actor = Async.remote()
    assert inline.get(actor.put.remote(1))
    assert inline.get([actor.size.remote(), actor.take.remote()]) == [1, 1]

    async def main():
        return await actor.put.remote(2)

    assert asyncio.run(main())


def test_an_actor_holds_its_resources(inline):
    counter = Counter.options(num_cpus=1).remote()
    assert inline.available_resources()["CPU"] == 1
    inline.kill(counter)
    assert inline.available_resources()["CPU"] == 2


def test_retries_of_a_method(inline):
    @inline.remote
    class Flaky:
        def __init__(self):
            self.runs = 0

        @taskloom.method(retry_exceptions=[OSError], max_task_retries=2)
        def run(self):
            self.runs += 1
            if self.runs < 3:
                raise OSError
            return self.runs

    assert inline.get(Flaky.remote().run.remote()) == 3
