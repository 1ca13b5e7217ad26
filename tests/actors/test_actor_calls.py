"""An actor is made, called and passed around (ACT-1 to ACT-3, ACT-10 to ACT-12, STO-12)."""

from __future__ import annotations

import asyncio
import gc
import os
import sys

import pytest
from tests.gates import Gate, eventually

import taskloom
from taskloom.actor import ActorClassInheritanceException, ActorHandle
from taskloom.exceptions import (
    ActorDiedError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
)

SESSION = {"num_cpus": 2}


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


@taskloom.remote
class Counter:
    """Counts."""

    def __init__(self, start=0, *, step=1):
        self.value = start
        self.step = step

    def add(self, by=None):
        self.value += self.step if by is None else by
        return self.value

    def pid(self):
        return os.getpid()

    def fail(self, what):
        raise KeyError(what)

    def add_slowly(self, gate, by):
        gate.enter("slow")
        return self.add(by)

    @staticmethod
    def twice(x):
        return 2 * x

    @classmethod
    def name_of(cls, suffix):
        return cls.__name__ + suffix

    @taskloom.method(num_returns=2)
    def pair(self):
        return self.value, -self.value

    def nothing(self):
        return None


def is_gone(pid):
    return not os.path.exists(f"/proc/{pid}")


# -- making one ---------------------------------------------------------------------------------


def test_an_actor_keeps_its_state_between_calls_ACT_1(tl):
    counter = Counter.remote(10)
    assert tl.get([counter.add.remote(), counter.add.remote(5)]) == [11, 16]


def test_a_constructor_takes_keywords_and_refs(tl):
    counter = Counter.remote(tl.put(10), step=tl.remote(lambda: 3).remote())
    assert tl.get(counter.add.remote()) == 13


def test_wrong_arguments_of_a_constructor_are_an_error_at_the_call(tl):
    with pytest.raises(TypeError, match="Counter"):
        Counter.remote(1, 2, 3)


def test_two_actors_share_nothing(tl):
    one, two = Counter.remote(), Counter.remote()
    assert tl.get(one.pid.remote()) != tl.get(two.pid.remote())
    tl.get(one.add.remote(7))
    assert tl.get(two.add.remote(0)) == 0


def test_a_class_without_a_constructor_makes_an_actor(tl):
    @tl.remote
    class Plain:
        def hello(self):
            return "hello"

    assert tl.get(Plain.remote().hello.remote()) == "hello"


def test_a_class_that_inherits_from_plain_classes_has_their_methods(tl):
    class Base:
        def who(self):
            return "base"

        def both(self):
            return "base"

    @tl.remote
    class Derived(Base):
        def both(self):
            return "derived " + super().both()

    actor = Derived.remote()
    assert tl.get([actor.who.remote(), actor.both.remote()]) == ["base", "derived base"]


def test_an_actor_class_is_not_called_and_not_inherited_from_ACT_1():
    with pytest.raises(TypeError, match=r"Counter\.remote\(\)"):
        Counter()
    with pytest.raises(ActorClassInheritanceException):

        class More(Counter):
            pass

    assert issubclass(ActorClassInheritanceException, TypeError)


def test_the_class_keeps_its_name_and_docstring():
    assert (Counter.__name__, Counter.__doc__) == ("Counter", "Counts.")
    assert Counter.func(4).add() == 5


# -- calling ------------------------------------------------------------------------------------


def test_static_and_class_methods_are_called_like_others_ACT_2(tl):
    counter = Counter.remote()
    assert tl.get([counter.twice.remote(4), counter.name_of.remote("!")]) == [8, "Counter!"]


def test_what_cannot_be_called_is_an_error_at_the_call_ACT_2(tl):
    counter = Counter.remote()
    with pytest.raises(TypeError, match=r"add\.remote\(\)"):
        counter.add()
    with pytest.raises(AttributeError, match="'ActorHandle' object has no attribute 'missing'"):
        _ = counter.missing
    with pytest.raises(TypeError, match=r"Counter\.add\(\)"):
        counter.add.remote(1, 2)
    with pytest.raises(TypeError, match=r"Counter\.fail\(\).*what"):
        counter.fail.remote()
    with pytest.raises(TypeError, match="nope"):
        counter.add.remote(nope=1)
    with pytest.raises(TypeError, match="could not serialize"):
        counter.add.remote(sys._getframe())


def test_a_handle_lists_methods_compares_and_says_what_it_is_ACT_2(tl):
    counter, other = Counter.remote(), Counter.remote()
    (same,) = tl.get([tl.put(counter)])
    assert {"add", "pid", "pair", "twice"} <= set(dir(counter))
    assert same == counter
    assert hash(same) == hash(counter)
    assert counter != other
    assert repr(counter) == f"Actor(Counter, {counter._actor_id.hex()})"
    assert len(counter._actor_id.hex()) == 32


def test_an_exception_comes_as_its_class_and_the_actor_lives_on(tl):
    counter = Counter.remote(1)
    with pytest.raises(KeyError) as caught:
        tl.get(counter.fail.remote("key"))
    assert isinstance(caught.value, RayTaskError)
    assert "Counter.fail" in str(caught.value)
    assert tl.get(counter.add.remote()) == 2


def test_sys_exit_in_a_method_is_an_error_and_the_actor_lives_on(tl):
    @tl.remote
    class Quitter:
        def quit(self):
            sys.exit(3)

        def alive(self):
            return True

    actor = Quitter.remote()
    with pytest.raises(RayTaskError, match="SystemExit"):
        tl.get(actor.quit.remote())
    assert tl.get(actor.alive.remote())


def test_refs_as_arguments_are_values_and_refs_inside_stay_refs(tl):
    @tl.remote
    class Taker:
        def take(self, value, box):
            return value, type(box[0]).__name__, taskloom.get(box[0])

    ref = tl.remote(lambda: 5).remote()
    assert tl.get(Taker.remote().take.remote(ref, [ref])) == (5, "ObjectRef", 5)


def test_the_error_of_an_argument_is_the_error_of_the_call(tl):
    counter = Counter.remote()
    bad = tl.remote(lambda: 1 / 0).remote()
    with pytest.raises(ZeroDivisionError):
        tl.get(counter.add.remote(bad))
    assert tl.get(counter.add.remote(1)) == 1


def test_results_of_actors_are_arguments_of_tasks_and_other_actors(tl):
    double = tl.remote(lambda x: 2 * x)
    one, two = Counter.remote(1), Counter.remote(100)
    assert tl.get(two.add.remote(double.remote(one.add.remote()))) == 104


def test_a_method_with_several_returns_gives_several_refs_ACT_10(tl):
    counter = Counter.remote(3)
    first, second = counter.pair.remote()
    assert tl.get([first, second]) == [3, -3]
    assert counter.nothing.options(num_returns=0).remote() is None
    assert len(counter.pair.options(num_returns=1, name="other").remote().hex()) == 56


def test_unknown_options_of_methods_are_errors_ACT_10():
    with pytest.raises(AssertionError, match="speed"):
        taskloom.method(speed=2)
    with pytest.raises(AssertionError):
        taskloom.method()
    with pytest.raises(TypeError, match="num_returns"):
        taskloom.method(num_returns=1.5)


def test_the_precedence_is_call_before_method_before_actor_ACT_11(tl, gate):
    @tl.remote(max_task_retries=5)
    class Flaky:
        def __init__(self, gate):
            self.gate = gate

        @taskloom.method(max_task_retries=1, retry_exceptions=True)
        def fail(self, name):
            self.gate.note(name)
            raise OSError(name)

    actor = Flaky.remote(gate)
    method = actor.fail
    for ref in (
        method.remote("method"),
        method.options(max_task_retries=2).remote("call"),
        method.options(max_task_retries=0).remote("none"),
        method.options(retry_exceptions=[KeyError]).remote("other class"),
    ):
        with pytest.raises(OSError):
            tl.get(ref)
    counts = [gate.count(name) for name in ("method", "call", "none", "other class")]
    assert counts == [2, 3, 1, 1]


def test_classes_to_retry_may_be_defined_anywhere(tl):
    class Odd(Exception):
        pass

    @tl.remote
    class Flaky:
        def __init__(self):
            self.runs = 0

        @taskloom.method(max_task_retries=1, retry_exceptions=[Odd])
        def run(self):
            self.runs += 1
            if self.runs == 1:
                raise Odd
            return self.runs

    handle = Flaky.remote()
    through = tl.remote(lambda box: taskloom.get(box[0].run.remote()))
    assert tl.get(through.remote([handle])) == 2


def test_a_call_is_awaited(tl):
    async def main():
        counter = Counter.remote()
        return await asyncio.gather(*(counter.add.remote() for _ in range(3)))

    assert asyncio.run(main()) == [1, 2, 3]


def test_attributes_are_read_through_ray_call_ACT_3(tl):
    counter = Counter.remote(9)
    offset = 100
    assert (
        tl.get(
            counter.__ray_call__.remote(lambda self, a, b=0: self.value + a + b + offset, 1, b=2)
        )
        == 112
    )
    assert tl.get(counter.__ray_ready__.remote()) is True


# -- handles ------------------------------------------------------------------------------------


@taskloom.remote
def add_through(box, by):
    handle = box if isinstance(box, ActorHandle) else box["handle"][0]
    return taskloom.get(handle.add.remote(by))


def test_a_handle_is_passed_to_tasks_alone_and_in_containers_STO_12(tl):
    counter = Counter.remote()
    tl.get(add_through.remote(counter, 1))
    tl.get(add_through.remote({"handle": [counter]}, 1))
    assert tl.get(add_through.remote(tl.put(counter), 1)) == 3


def test_a_handle_is_captured_by_a_closure(tl):
    counter = Counter.remote(1)
    assert tl.get(tl.remote(lambda: taskloom.get(counter.add.remote())).remote()) == 2


def test_a_handle_is_passed_to_another_actor(tl):
    @tl.remote
    class Owner:
        def __init__(self, handle):
            self.handle = handle

        def add(self):
            return taskloom.get(self.handle.add.remote())

    counter = Counter.remote()
    owner = Owner.remote(counter)
    assert tl.get([owner.add.remote(), owner.add.remote()]) == [1, 2]


def test_a_task_makes_an_actor_and_returns_its_handle(tl):
    @tl.remote
    def make():
        handle = Counter.remote(5)
        taskloom.get(handle.add.remote())
        return handle

    handle = tl.get(make.remote())
    assert tl.get(handle.add.remote()) == 7


def test_an_actor_ends_after_its_last_handle_is_gone_and_its_calls_are_done_ACT_12(tl, gate):
    counter = Counter.remote()
    pid = tl.get(counter.pid.remote())
    copy = tl.put([counter])
    slow = counter.add_slowly.remote(gate, 5)
    queued = counter.add.remote(1)
    del counter
    gate.wait_for("slow")
    del copy
    assert not is_gone(pid)
    gate.open()
    assert tl.get([slow, queued]) == [5, 6]
    assert eventually(lambda: is_gone(pid))


def test_the_handle_of_a_call_may_be_a_temporary(tl):
    assert tl.get(Counter.remote(3).add.remote()) == 4


def test_an_actor_lives_while_a_task_has_its_handle(tl, gate):
    @tl.remote
    def hold(box, gate):
        gate.enter("held")
        return taskloom.get(box[0].add.remote())

    counter = Counter.remote()
    ref = hold.remote([counter], gate)
    del counter
    gate.wait_for("held")
    gate.open()
    assert tl.get(ref) == 1


def test_a_handle_in_a_cycle_ends_with_the_garbage_collection(tl):
    class Node:
        pass

    node = Node()
    node.self, node.handle = node, Counter.remote()
    pid = tl.get(node.handle.pid.remote())
    del node
    assert eventually(lambda: gc.collect() >= 0 and is_gone(pid))


def test_an_actor_that_nobody_keeps_is_constructed_and_ends(tl, gate):
    @tl.remote
    class Once:
        def __init__(self, gate):
            gate.note("made")

        def __ray_shutdown__(self):
            gate.note("ended")

    Once.remote(gate)
    gate.wait_for("ended")
    assert gate.count("made") == 1


def test_a_handle_of_another_session_is_refused(fresh):
    fresh.init(num_cpus=1)
    counter = Counter.remote()
    fresh.get(counter.__ray_ready__.remote())
    fresh.shutdown()
    fresh.init(num_cpus=1)
    with pytest.raises(ValueError, match="session"):
        counter.add.remote()
    with pytest.raises(ValueError, match="session"):
        fresh.kill(counter)
    again = Counter.remote(1)
    assert fresh.get(again.add.remote()) == 2


def test_calls_that_are_pending_at_shutdown_end(fresh, gate):
    from taskloom.exceptions import SessionClosedError

    fresh.init(num_cpus=1)
    counter = Counter.remote()
    ref = counter.add_slowly.remote(gate, 1)
    gate.wait_for("slow")
    record = ref._record
    fresh.shutdown()
    assert isinstance(record.outcome.revive(), SessionClosedError)


# -- the constructor ----------------------------------------------------------------------------


@taskloom.remote
class Broken:
    def __init__(self):
        raise RuntimeError("no such database")

    def hello(self):
        return "hello"


def test_a_constructor_that_fails_is_the_error_of_every_call_ACT_16(tl, capfd):
    actor = Broken.remote()
    for _ in range(2):
        with pytest.raises(ActorDiedError, match="no such database") as caught:
            tl.get(actor.hello.remote())
        assert isinstance(caught.value, RayActorError)
        assert caught.value.actor_init_failed
        assert caught.value.actor_id == actor._actor_id.hex()
        assert "RuntimeError" in str(caught.value)


def test_an_argument_that_fails_is_the_error_of_every_call(tl):
    actor = Counter.remote(tl.remote(lambda: 1 / 0).remote())
    with pytest.raises(ZeroDivisionError):
        tl.get(actor.add.remote())
    with pytest.raises(ZeroDivisionError):
        tl.get(actor.add.remote())


def test_calls_wait_for_the_constructor_and_its_arguments(tl, gate):
    @tl.remote
    def later(gate):
        gate.enter("later")
        return 40

    counter = Counter.remote(later.remote(gate))
    refs = [counter.add.remote() for _ in range(3)]
    gate.wait_for("later")
    assert tl.wait(refs, timeout=0)[0] == []
    gate.open()
    assert tl.get(refs) == [41, 42, 43]


def test_calls_in_a_group_end_with_it(tl, gate):
    async def open_when_cancelled(ref):
        with pytest.raises(TaskCancelledError):
            await ref
        gate.open()

    async def main():
        counter = Counter.remote()
        with pytest.raises(ExceptionGroup) as caught:
            async with tl.TaskGroup() as group:
                slow = group.remote(counter.add_slowly)(gate, 1)
                queued = group.remote(counter.add)(1)
                await asyncio.to_thread(gate.wait_for, "slow")
                opening = asyncio.create_task(open_when_cancelled(queued))
                group.remote(tl.remote(lambda: 1 / 0))()
        assert caught.group_contains(ZeroDivisionError)
        assert slow.done()
        await opening
        return await counter.add.remote(0)

    assert asyncio.run(main()) == 1  # the one that ran has ended, the other never began
