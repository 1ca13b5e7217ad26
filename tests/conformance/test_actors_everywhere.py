"""Actors: state, order, names, lives, concurrency."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from tests.conformance.subjects import AT_ONCE, LONG_S, Broken, Counter, add, fail
from tests.gates import Gate, eventually

import taskloom as tl
from taskloom.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorUnavailableError,
    PendingCallsLimitExceeded,
    TaskCancelledError,
    TaskTimeoutError,
)

ONE_BY_ONE = "calls of an actor never overlap"
NO_CRASH = "an actor is an object in the program's own process: nothing crashes alone"
NO_RESTARTS = "Dask restarts no actors"


def test_an_actor_keeps_its_state_and_runs_calls_in_order():
    counter = Counter.remote(10)
    assert tl.get([counter.add.remote() for _ in range(20)]) == list(range(11, 31))


def test_two_actors_of_a_class_do_not_share_state():
    first, second = Counter.remote(), Counter.remote(100)
    assert tl.get([first.add.remote(), second.add.remote()]) == [1, 101]


def test_constructors_and_calls_take_refs():
    counter = Counter.remote(add.remote(2, 3))
    assert tl.get(counter.add.remote(add.remote(2, 3))) == 10


def test_results_of_actors_are_arguments_of_tasks():
    counter = Counter.remote()
    assert tl.get(add.remote(counter.add.remote(), counter.add.remote())) == 3


def test_an_error_of_a_method_leaves_the_actor_alive():
    counter = Counter.remote()
    with pytest.raises(Broken):
        tl.get(counter.fail.remote())
    assert tl.get(counter.add.remote()) == 1


def test_a_call_whose_argument_failed_does_not_run():
    counter = Counter.remote()
    with pytest.raises(Broken):
        tl.get(counter.add.remote(fail.remote(3)))
    assert tl.get(counter.add.remote()) == 1


def test_an_error_of_the_constructor_is_told_by_all_calls():
    @tl.remote
    class Bad:
        def __init__(self):
            raise RuntimeError("cannot be made")

        def hello(self):
            return "hello"

    bad = Bad.remote()
    with pytest.raises(ActorDiedError, match="cannot be made"):
        tl.get(bad.hello.remote(), timeout=LONG_S)


def test_a_named_actor_is_found_in_the_program_and_in_tasks(unique):
    counter = Counter.options(name=unique).remote(1)

    @tl.remote
    def use(name):
        return tl.get(tl.get_actor(name).add.remote(10))

    assert tl.get(tl.get_actor(unique).add.remote()) == 2
    assert tl.get(use.remote(unique), timeout=LONG_S) == 12
    assert tl.get(counter.me.remote())[2] == unique


def test_a_name_is_given_once_and_get_if_exists_finds_its_owner(unique):
    counter = Counter.options(name=unique).remote(1)
    tl.get(counter.add.remote())
    with pytest.raises(ActorAlreadyExistsError):
        Counter.options(name=unique).remote()
    same = Counter.options(name=unique, get_if_exists=True).remote(100)
    assert same == counter
    assert tl.get(same.add.remote()) == 3


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="nobody"):
        tl.get_actor("nobody")


def test_a_killed_actor_answers_no_more_and_its_name_is_free(unique):
    counter = Counter.options(name=unique).remote()
    tl.get(counter.add.remote())
    tl.kill(counter)
    with pytest.raises(ActorDiedError):
        tl.get(counter.add.remote(), timeout=LONG_S)
    assert eventually(lambda: _is_unknown(unique))
    assert tl.get(Counter.options(name=unique).remote(5).add.remote(), timeout=LONG_S) == 6


def _is_unknown(name):
    try:
        tl.get_actor(name)
    except ValueError:
        return True
    return False


@pytest.mark.differs("dask", "its object is let go; the process is a worker's, which goes on")
@pytest.mark.differs("local_mode", NO_CRASH)
def test_an_actor_without_handles_ends():
    counter = Counter.remote()
    pid = tl.get(counter.pid.remote())
    assert pid != os.getpid()
    del counter
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}"), 60)


def test_handles_travel_and_keep_the_actor_alive():
    @tl.remote
    class Keeper:
        def __init__(self):
            self.inner = Counter.remote(100)

        def give(self):
            return self.inner

    keeper = Keeper.remote()
    inner = tl.get(keeper.give.remote(), timeout=LONG_S)
    assert tl.get(inner.add.remote(), timeout=LONG_S) == 101

    @tl.remote
    def use(handles):
        return tl.get(handles[0].add.remote(9))

    assert tl.get(use.remote([inner]), timeout=LONG_S) == 110


def test_an_actor_knows_itself():
    counter = Counter.remote()
    actor_id, handle, name = tl.get(counter.me.remote())
    assert actor_id == counter._actor_id.hex()
    assert handle == counter
    assert name == ""


@pytest.mark.lacks("dask", NO_RESTARTS, raises=NotImplementedError)
@pytest.mark.differs("local_mode", NO_CRASH)
def test_a_crash_restarts_an_actor_within_max_restarts():
    counter = Counter.options(max_restarts=1).remote(7)
    assert tl.get(counter.add.remote()) == 8
    with pytest.raises((ActorUnavailableError, ActorDiedError)):
        tl.get(counter.die.remote(), timeout=LONG_S)
    assert eventually(lambda: _answer(counter) == 8, LONG_S)
    assert tl.get(counter.was_restarted.remote()) is True
    with pytest.raises(ActorDiedError):
        tl.get(counter.die.remote(), timeout=LONG_S)


def _answer(counter):
    try:
        return tl.get(counter.add.remote(), timeout=LONG_S)
    except ActorUnavailableError:
        return None


@pytest.mark.lacks("dask", NO_RESTARTS, raises=NotImplementedError)
@pytest.mark.differs("local_mode", NO_CRASH)
def test_a_call_is_tried_again_after_a_crash_when_max_task_retries_says_so(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(max_restarts=1, max_task_retries=1)
    class Fragile:
        def work(self):
            gate.note("tried")
            if gate.count("tried") == 1:
                os._exit(1)
            return gate.count("tried")

    fragile = Fragile.remote()
    assert tl.get(fragile.work.remote(), timeout=LONG_S) == 2


@pytest.mark.lacks("dask", NO_RESTARTS, raises=NotImplementedError)
def test_kill_may_restart():
    counter = Counter.options(max_restarts=-1).remote()
    assert tl.get([counter.add.remote(), counter.add.remote()]) == [1, 2]
    tl.kill(counter, no_restart=False)
    assert eventually(lambda: _answer(counter) == 1, LONG_S)


def test_exit_actor_ends_it_in_good_order(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    class Polite:
        def leave(self):
            tl.actor.exit_actor()

        def __ray_shutdown__(self):
            gate.note("left")

    polite = Polite.remote()
    with pytest.raises(ActorDiedError):
        tl.get(polite.leave.remote(), timeout=LONG_S)
    gate.wait_for("left")


@pytest.mark.differs("local_mode", ONE_BY_ONE)
def test_an_async_actor_runs_calls_side_by_side():
    @tl.remote
    class Meeting:
        def __init__(self):
            self.here = 0

        async def come(self, n):
            self.here += 1
            while self.here < n:
                await asyncio.sleep(0.01)
            return n

    meeting = Meeting.remote()
    assert tl.get([meeting.come.remote(20) for _ in range(20)], timeout=LONG_S) == [20] * 20


def test_a_plain_method_of_an_async_actor_sees_the_same_state():
    @tl.remote
    class Mixed:
        def __init__(self):
            self.n = 0

        async def add(self):
            self.n += 1

        def show(self):
            return self.n

    mixed = Mixed.remote()
    tl.get([mixed.add.remote() for _ in range(3)], timeout=LONG_S)
    assert tl.get(mixed.show.remote(), timeout=LONG_S) == 3


def test_an_async_actor_awaits_tasks_and_keeps_its_state():
    @tl.remote
    class Adder:
        def __init__(self):
            self.total = 0

        async def add(self, n):
            value = await add.remote(n, 0)
            self.total += value
            return self.total

    adder = Adder.remote()
    tl.get([adder.add.remote(n) for n in (1, 2, 3)], timeout=LONG_S)
    assert tl.get(adder.add.remote(0), timeout=LONG_S) == 6


@pytest.mark.differs("local_mode", ONE_BY_ONE)
def test_a_threaded_actor_runs_as_many_calls_side_by_side_as_it_may():
    @tl.remote(max_concurrency=3)
    class Barrier:
        def __init__(self):
            self.barrier = threading.Barrier(3)

        def meet(self):
            self.barrier.wait(LONG_S)
            return "met"

    barrier = Barrier.remote()
    assert tl.get([barrier.meet.remote() for _ in range(3)], timeout=LONG_S) == ["met"] * 3


@pytest.mark.differs("local_mode", ONE_BY_ONE)
def test_a_concurrency_group_has_a_limit_of_its_own():
    @tl.remote(concurrency_groups={"io": 2})
    class Busy:
        def __init__(self):
            self.open = threading.Event()

        def wait(self):
            return self.open.wait(LONG_S)

        @tl.method(concurrency_group="io")
        def release(self):
            self.open.set()
            return "released"

    busy = Busy.remote()
    waiting = busy.wait.remote()
    assert tl.get(busy.release.remote(), timeout=LONG_S) == "released"
    assert tl.get(waiting, timeout=LONG_S) is True


@pytest.mark.differs("local_mode", ONE_BY_ONE)
def test_a_concurrency_group_of_coroutines_holds_back_what_is_too_much():
    @tl.remote(concurrency_groups={"one": 1})
    class Meeting:
        def __init__(self):
            self.here = self.most = 0

        @tl.method(concurrency_group="one")
        async def alone(self):
            self.here += 1
            self.most = max(self.most, self.here)
            await asyncio.sleep(0.02)
            self.here -= 1
            return self.most

    meeting = Meeting.remote()
    assert tl.get([meeting.alone.remote() for _ in range(4)], timeout=LONG_S) == [1] * 4


@pytest.mark.differs("local_mode", AT_ONCE)
def test_max_pending_calls_is_kept(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    class Slow:
        def wait(self):
            gate.enter()

    slow = Slow.options(max_pending_calls=2).remote()
    refs = [slow.wait.remote() for _ in range(2)]
    with pytest.raises(PendingCallsLimitExceeded):
        slow.wait.remote()
    gate.open()
    tl.get(refs, timeout=LONG_S)


@pytest.mark.differs("local_mode", AT_ONCE)
@pytest.mark.differs("ray", "its ref says so when its turn has come, and it may run all the same")
def test_a_call_that_waits_in_an_actor_and_is_cancelled_never_runs(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    class Slow:
        def __init__(self):
            self.calls = 0

        def wait(self):
            self.calls += 1
            gate.enter("inside")

        def count(self):
            return self.calls

    slow = Slow.remote()
    first, second = slow.wait.remote(), slow.wait.remote()
    gate.wait_for("inside")
    tl.cancel(second)
    with pytest.raises(TaskCancelledError):
        tl.get(second, timeout=LONG_S)
    gate.open()
    tl.get(first, timeout=LONG_S)
    assert tl.get(slow.count.remote(), timeout=LONG_S) == 1


@pytest.mark.differs("local_mode", AT_ONCE)
def test_a_running_method_may_ask_whether_it_was_cancelled(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    class Patient:
        def work(self):
            gate.note("began")
            if eventually(tl.get_runtime_context().is_canceled, LONG_S):
                gate.note("knew")

    patient = Patient.remote()
    ref = patient.work.remote()
    gate.wait_for("began")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref, timeout=LONG_S)
    gate.wait_for("knew")


@pytest.mark.differs("local_mode", AT_ONCE)
def test_a_coroutine_of_an_actor_can_be_cancelled(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    class Dozer:
        async def doze(self):
            gate.note("began")
            await asyncio.sleep(60)

        async def hello(self):
            return "hello"

    dozer = Dozer.remote()
    ref = dozer.doze.remote()
    gate.wait_for("began")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref, timeout=LONG_S)
    assert tl.get(dozer.hello.remote(), timeout=LONG_S) == "hello"


def test_a_method_may_have_several_returns():
    @tl.remote
    class Pair:
        @tl.method(num_returns=2)
        def pair(self):
            return 1, 2

    pair = Pair.remote()
    first, second = pair.pair.remote()
    assert tl.get([second, first]) == [2, 1]


def test_a_method_that_yields_streams():
    counter = Counter.remote()
    assert [tl.get(ref) for ref in counter.items.remote(3)] == [0, 1, 2]


def test_an_async_method_that_yields_streams():
    @tl.remote
    class Source:
        async def items(self, n):
            for i in range(n):
                await asyncio.sleep(0)
                yield i

    source = Source.remote()

    async def main():
        return [await ref async for ref in source.items.remote(3)]

    assert asyncio.run(main()) == [0, 1, 2]


@pytest.mark.lacks("dask", "actors of Dask's hold nothing", raises=NotImplementedError)
def test_an_actor_holds_the_resources_that_it_asks_for():
    @tl.remote(num_cpus=0, resources={"slot": 3})
    class Holder:
        def assigned(self):
            return tl.get_runtime_context().get_assigned_resources()

    holder = Holder.remote()
    assert tl.get(holder.assigned.remote(), timeout=LONG_S) == {"slot": 3.0}


def test_an_actor_is_not_called_without_remote():
    with pytest.raises(TypeError, match="remote"):
        Counter()
    with pytest.raises(TypeError, match="remote"):
        Counter.remote().add()


def test_a_method_is_tried_again_after_an_exception_that_was_named(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(max_task_retries=2)
    class Moody:
        @tl.method(retry_exceptions=[Broken])
        def work(self):
            gate.note("tried")
            if gate.count("tried") < 3:
                raise Broken(1, "again")
            return gate.count("tried")

    moody = Moody.remote()
    assert tl.get(moody.work.remote(), timeout=LONG_S) == 3


def test_a_time_limit_cancels_a_coroutine_of_an_actor():
    @tl.remote
    class Dozer:
        async def doze(self):
            await asyncio.sleep(60)

        async def hello(self):
            return "hello"

    dozer = Dozer.remote()
    with pytest.raises(TaskTimeoutError):
        tl.get(dozer.doze.options(timeout=0.3).remote(), timeout=LONG_S)
    assert tl.get(dozer.hello.remote(), timeout=LONG_S) == "hello"


def test_calls_of_a_task_that_got_the_handle_find_the_same_state():
    counter = Counter.remote()

    @tl.remote
    def count(handle, times):
        for _ in range(times):
            tl.get(handle.add.remote())

    tl.get([count.remote(counter, 5) for _ in range(2)], timeout=LONG_S)
    assert tl.get(counter.add.remote()) == 11


def test_a_handle_in_a_closure_works():
    counter = Counter.remote()
    use = tl.remote(lambda n: tl.get(counter.add.remote(n)))
    assert tl.get(use.remote(3), timeout=LONG_S) == 3


def test_an_actor_makes_tasks_and_actors():
    @tl.remote
    class Boss:
        def __init__(self):
            self.worker = Counter.remote(10)

        def work(self):
            return tl.get(add.remote(self.worker.add.remote(), 100))

    boss = Boss.remote()
    assert tl.get([boss.work.remote(), boss.work.remote()], timeout=LONG_S) == [111, 112]


def test_named_actors_are_listed_and_belong_to_a_namespace(unique):
    here = Counter.options(name=unique).remote(1)
    there = Counter.options(name=unique, namespace="elsewhere").remote(100)
    tl.get([here.add.remote(), there.add.remote()])
    assert unique in tl.util.list_named_actors()
    assert {"name": unique, "namespace": "elsewhere"} in tl.util.list_named_actors(True)
    assert tl.get(tl.get_actor(unique).add.remote()) == 3
    assert tl.get(tl.get_actor(unique, "elsewhere").add.remote()) == 102


def test_subclasses_bring_the_methods_of_their_bases():
    class Base:
        def hello(self):
            return f"hello {self.name()}"

        def name(self):
            return "base"

    @tl.remote
    class Child(Base):
        def name(self):
            return "child"

    assert tl.get(Child.remote().hello.remote()) == "hello child"


def test_an_actor_keeps_a_ref_alive_that_it_was_given():
    @tl.remote
    class Shelf:
        def keep(self, box):
            self.box = box

        def show(self):
            return tl.get(self.box[0])

    shelf = Shelf.remote()
    tl.get(shelf.keep.remote([tl.put("kept")]))
    assert tl.get(shelf.show.remote(), timeout=LONG_S) == "kept"
