"""Actors on Ray."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

import taskloom
from taskloom.actor import exit_actor
from taskloom.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorUnavailableError,
    PendingCallsLimitExceeded,
)


@taskloom.remote
class Counter:
    def __init__(self, n=0):
        self.n = n

    def add(self, k=1):
        self.n += k
        return self.n

    def fail(self):
        raise KeyError("no such thing")

    def pid(self):
        return os.getpid()

    def die(self):
        os._exit(1)

    def leave(self):
        exit_actor()

    def me(self):
        context = taskloom.get_runtime_context()
        handle = context.current_actor
        return context.get_actor_id(), handle, context.was_current_actor_reconstructed

    def items(self, n):
        yield from range(n)


@pytest.fixture(autouse=True)
def _session(on_ray):
    """All tests here run on Ray."""


def test_calls_run_in_order_and_keep_state():
    counter = Counter.remote(10)
    assert taskloom.get([counter.add.remote() for _ in range(20)]) == list(range(11, 31))


def test_constructor_and_calls_take_refs():
    @taskloom.remote
    def five():
        return 5

    counter = Counter.remote(five.remote())
    assert taskloom.get(counter.add.remote(five.remote())) == 10


def test_an_error_of_a_method_leaves_the_actor_alive():
    counter = Counter.remote()
    with pytest.raises(KeyError):
        taskloom.get(counter.fail.remote())
    assert taskloom.get(counter.add.remote()) == 1


def test_an_error_of_the_constructor_is_told_by_all_calls():
    @taskloom.remote
    class Bad:
        def __init__(self):
            raise RuntimeError("cannot be made")

        def hello(self):
            return "hello"

    bad = Bad.remote()
    with pytest.raises(ActorDiedError, match="cannot be made"):
        taskloom.get(bad.hello.remote(), timeout=60)


def test_named_actors_are_found_here_and_in_tasks():
    counter = Counter.options(name="shared").remote(1)
    assert taskloom.get(taskloom.get_actor("shared").add.remote()) == 2

    @taskloom.remote
    def use(name):
        return taskloom.get(taskloom.get_actor(name).add.remote(10))

    assert taskloom.get(use.remote("shared")) == 12
    with pytest.raises(ActorAlreadyExistsError):
        Counter.options(name="shared").remote()
    same = Counter.options(name="shared", get_if_exists=True).remote()
    assert same == counter
    taskloom.kill(counter)
    with pytest.raises(ActorDiedError):
        taskloom.get(counter.add.remote(), timeout=30)
    with pytest.raises(ValueError, match="shared"):
        taskloom.get_actor("shared")
    again = Counter.options(name="shared").remote(5)  # the name is free
    assert taskloom.get(again.add.remote(), timeout=60) == 6
    taskloom.kill(again)
    with pytest.raises(ValueError, match="nobody"):
        taskloom.get_actor("nobody")


def test_handles_travel_and_keep_the_actor_alive():
    @taskloom.remote
    class Keeper:
        def __init__(self):
            self.inner = Counter.remote(100)

        def give(self):
            return self.inner

    keeper = Keeper.remote()
    inner = taskloom.get(keeper.give.remote())
    assert taskloom.get(inner.add.remote()) == 101

    @taskloom.remote
    def use(handles):
        return taskloom.get(handles[0].add.remote(9))

    assert taskloom.get(use.remote([inner])) == 110


def test_an_actor_knows_itself_and_its_own_handle_does_not_keep_it_alive():
    counter = Counter.remote()
    actor_id, handle, again = taskloom.get(counter.me.remote())
    assert actor_id == counter._actor_id.hex()
    assert again is False
    assert taskloom.get(handle.add.remote()) == 1


def test_an_actor_without_handles_ends():
    counter = Counter.remote()
    pid = taskloom.get(counter.pid.remote())
    del counter
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


def test_a_crash_restarts_within_max_restarts():
    counter = Counter.options(max_restarts=1).remote(7)
    assert taskloom.get(counter.add.remote()) == 8
    with pytest.raises((ActorUnavailableError, ActorDiedError)):
        taskloom.get(counter.die.remote(), timeout=60)
    deadline = time.monotonic() + 60
    while True:
        try:
            assert taskloom.get(counter.add.remote(), timeout=60) == 8
            break
        except ActorUnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert taskloom.get(counter.me.remote())[2] is True
    with pytest.raises(ActorDiedError):
        taskloom.get(counter.die.remote(), timeout=60)


def test_exit_actor_ends_it_in_good_order(tmp_path):
    mark = str(tmp_path / "left")

    @taskloom.remote
    class Polite:
        def leave(self):
            exit_actor()

        def __ray_shutdown__(self):
            open(mark, "w").close()

    polite = Polite.remote()
    with pytest.raises(ActorDiedError):
        taskloom.get(polite.leave.remote(), timeout=60)
    deadline = time.monotonic() + 30
    while not os.path.exists(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert os.path.exists(mark)


def test_async_actors_run_calls_side_by_side_and_groups_limit_them():
    @taskloom.remote(concurrency_groups={"one": 1})
    class Meeting:
        def __init__(self):
            self.here = 0
            self.most = 0

        async def come(self, n):
            self.here += 1
            while self.here < n:
                await asyncio.sleep(0.01)
            return n

        @taskloom.method(concurrency_group="one")
        async def alone(self):
            self.most = max(self.most, 1)
            await asyncio.sleep(0.05)
            return "alone"

        def plain(self):
            return self.here

    meeting = Meeting.remote()
    assert taskloom.get([meeting.come.remote(5) for _ in range(5)], timeout=60) == [5] * 5
    assert taskloom.get([meeting.alone.remote() for _ in range(3)], timeout=60) == ["alone"] * 3
    assert taskloom.get(meeting.plain.remote()) == 5


def test_threaded_actors_run_calls_side_by_side():
    import threading

    @taskloom.remote(max_concurrency=3)
    class Barrier:
        def __init__(self):
            self.barrier = threading.Barrier(3)

        def meet(self):
            self.barrier.wait(30)
            return "met"

    barrier = Barrier.remote()
    assert taskloom.get([barrier.meet.remote() for _ in range(3)], timeout=60) == ["met"] * 3


def test_concurrency_groups_of_threads():
    @taskloom.remote(concurrency_groups={"io": 2})
    class Busy:
        def __init__(self):
            self.open = False

        def wait(self):
            while not self.open:
                time.sleep(0.01)
            return "waited"

        @taskloom.method(concurrency_group="io")
        def release(self):
            self.open = True
            return "released"

    busy = Busy.remote()
    waiting = busy.wait.remote()
    assert taskloom.get(busy.release.remote(), timeout=60) == "released"
    assert taskloom.get(waiting, timeout=60) == "waited"


def test_methods_stream():
    counter = Counter.remote()
    assert [taskloom.get(ref) for ref in counter.items.remote(3)] == [0, 1, 2]


def test_kill_may_restart():
    counter = Counter.options(max_restarts=-1).remote()
    before = taskloom.get(counter.pid.remote())
    taskloom.kill(counter, no_restart=False)
    deadline = time.monotonic() + 60
    while True:
        try:
            after = taskloom.get(counter.pid.remote(), timeout=60)
            if after != before:
                break
        except (ActorUnavailableError, ActorDiedError):
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_max_pending_calls_is_kept(tmp_path):
    gate = tmp_path / "gate"

    @taskloom.remote
    class Slow:
        def wait(self, path):
            while not os.path.exists(path):
                time.sleep(0.01)

    slow = Slow.options(max_pending_calls=2).remote()
    refs = [slow.wait.remote(str(gate)) for _ in range(2)]
    with pytest.raises(PendingCallsLimitExceeded):
        slow.wait.remote(str(gate))
    gate.touch()
    taskloom.get(refs, timeout=60)
