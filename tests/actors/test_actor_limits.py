"""Limits of time, circles of waiting, and what is said about an actor (ACT-13, 25, 26; 97, 99)."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from tests.captured import printed
from tests.gates import Gate, eventually

import taskloom
from taskloom._engine import actor_desk, diagnosis
from taskloom.exceptions import DeadlockError, TaskCancelledError, TaskTimeoutError

SESSION = {"num_cpus": 2}


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def is_gone(pid):
    return not os.path.exists(f"/proc/{pid}")


# -- timeout= -----------------------------------------------------------------------------------


@taskloom.remote
class Slow:
    def __init__(self):
        self.log = []

    def stay(self, gate):
        gate.note("inside")
        context = taskloom.get_runtime_context()
        while not context.is_canceled():
            time.sleep(0.001)
        gate.note("left")

    def slow_at_first(self, name, times):
        self.log.append(name)
        context = taskloom.get_runtime_context()
        while self.log.count(name) <= times and not context.is_canceled():
            time.sleep(0.001)
        return self.log.count(name)

    def get_log(self):
        return self.log


@taskloom.remote
class AsyncSlow:
    async def stay(self, gate):
        gate.note("inside")
        try:
            await asyncio.Event().wait()
        finally:
            gate.note("left")

    def sync(self, gate):
        gate.enter("sync")
        return "done"

    async def get_log(self):
        return []


@pytest.mark.parametrize("kind", ["serial", "threaded", "async"])
def test_a_call_that_takes_too_long_is_told_so_and_the_actor_lives_on(tl, gate, kind):
    options = {"max_concurrency": 2} if kind == "threaded" else {}
    actor = AsyncSlow.remote() if kind == "async" else Slow.options(**options).remote()
    with pytest.raises(TaskTimeoutError, match=r"Slow\.stay ran longer .*0\.1 s"):
        tl.get(actor.stay.options(timeout=0.1).remote(gate))
    gate.wait_for("left")
    assert tl.get(actor.get_log.remote(), timeout=20) == []


def test_the_time_in_the_line_does_not_count(tl, gate):
    actor = AsyncSlow.remote()
    first, second = actor.sync.remote(gate), actor.sync.options(timeout=0.5).remote(gate)
    gate.wait_for("sync")
    assert tl.wait([second], timeout=0.7)[0] == []  # it has not begun
    gate.open()
    assert tl.get([first, second]) == ["done", "done"]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_that_took_too_long_is_tried_again_in_its_place_P7(tl, threads):
    slow = Slow.options(max_concurrency=threads).remote()
    again = slow.slow_at_first.options(timeout=0.1, retry_exceptions=True, max_task_retries=3)
    refs = [again.remote("a", 2), slow.slow_at_first.remote("b", 0)]
    assert tl.get(refs) == [3, 1]
    log = tl.get(slow.get_log.remote())
    if threads == 1:
        assert log == ["a", "a", "a", "b"]
    with pytest.raises(TaskTimeoutError, match="attempt 2"):
        tl.get(again.options(max_task_retries=1).remote("c", 5))


def test_a_call_that_took_too_long_runs_again_also_when_its_process_dies_meanwhile(tl, gate):
    @tl.remote(max_restarts=1)
    class Dies:
        @taskloom.method(timeout=0.2, retry_exceptions=True, max_task_retries=5)
        def work(self):
            gate.note("run")
            if gate.count("run") > 1:
                return os.getpid()
            while not taskloom.get_runtime_context().is_canceled():
                time.sleep(0.001)
            os._exit(3)

    dies = Dies.remote()
    assert tl.get(dies.work.remote(), timeout=20)
    assert gate.count("run") == 2


def test_bad_limits_are_errors_at_the_call(tl):
    with pytest.raises(ValueError, match="timeout"):
        Slow.remote().stay.options(timeout=-1)
    with pytest.raises(ValueError, match="timeout"):
        Slow.options(timeout=1)


# -- leaving ------------------------------------------------------------------------------------


def test_an_actor_that_takes_too_long_to_leave_is_killed_ACT_13(tl, gate, monkeypatch):
    monkeypatch.setattr(actor_desk, "LEAVE_S", 0.2)

    @tl.remote
    class Clings:
        def pid(self):
            return os.getpid()

        def __ray_shutdown__(self):
            gate.note("hook")
            time.sleep(3600)

    clings = Clings.remote()
    pid = tl.get(clings.pid.remote())
    del clings
    gate.wait_for("hook")
    assert eventually(lambda: is_gone(pid))


def test_a_shutdown_hook_that_is_a_coroutine_is_warned_of_ACT_13(tl):
    with pytest.warns(RuntimeWarning, match="Wrong.__ray_shutdown__ is a coroutine function"):

        @tl.remote
        class Wrong:
            async def __ray_shutdown__(self): ...

            def pid(self):
                return os.getpid()

    wrong = Wrong.remote()
    pid = tl.get(wrong.pid.remote())
    del wrong
    assert eventually(lambda: is_gone(pid))


def test_a_handle_of_itself_does_not_keep_an_actor_97(tl):
    @tl.remote
    class Narcissus:
        def look(self, box):
            self.me = box[0]

        def pid(self):
            return os.getpid()

        def give(self):
            return self.me

    actor = Narcissus.remote()
    pid = tl.get(actor.pid.remote())
    tl.get(actor.look.remote([actor]))
    given = actor.give.remote()
    del actor
    given = tl.get(given)
    assert tl.get(given.pid.remote()) == pid  # a handle that came out of it is like any other
    del given
    assert eventually(lambda: is_gone(pid))


# -- circles ------------------------------------------------------------------------------------


@taskloom.remote(concurrency_groups={"io": 1})
class Circles:
    @taskloom.method(concurrency_group="io")
    def in_a_group(self):
        return taskloom.get(taskloom.get_runtime_context().current_actor.io.remote())

    @taskloom.method(concurrency_group="io")
    def io(self):
        return "io"

    def deep(self, depth):
        me = taskloom.get_runtime_context().current_actor
        return taskloom.get(me.deep.remote(depth - 1)) if depth else "bottom"


@taskloom.remote
class AsyncCircle:
    def outer(self):
        return taskloom.get(taskloom.get_runtime_context().current_actor.inner.remote())

    def waits(self):
        me = taskloom.get_runtime_context().current_actor
        return taskloom.get(me.coroutine.remote())

    def inner(self):
        return "inner"

    async def coroutine(self):
        return "coroutine"


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(diagnosis, "DELAY_S", 0.02)


def test_threads_that_wait_for_what_they_hold_up_are_told_so_99(tl, soon):
    with pytest.raises(DeadlockError, match="Circles.io.* stands behind Circles.in_a_group"):
        tl.get(Circles.remote().in_a_group.remote(), timeout=20)
    circles = Circles.options(max_concurrency=3).remote()
    with pytest.raises(DeadlockError, match="stands behind"):
        tl.get(circles.deep.remote(3), timeout=20)
    assert tl.get(circles.deep.remote(2), timeout=20) == "bottom"


def test_sync_methods_of_an_async_actor_that_wait_for_one_another_are_told_so_99(tl, soon):
    actor = AsyncCircle.remote()
    with pytest.raises(DeadlockError, match="AsyncCircle.inner.* stands behind"):
        tl.get(actor.outer.remote(), timeout=20)
    assert tl.get(actor.waits.remote(), timeout=20) == "coroutine"


def test_a_thread_that_waits_with_a_limit_is_left_alone(tl, soon):
    @tl.remote(concurrency_groups={"io": 1})
    class Patient:
        @taskloom.method(concurrency_group="io")
        def outer(self):
            me = taskloom.get_runtime_context().current_actor
            ready, _ = taskloom.wait([me.inner.remote()], timeout=0.3)
            return len(ready)

        @taskloom.method(concurrency_group="io")
        def inner(self): ...

    assert tl.get(Patient.remote().outer.remote(), timeout=20) == 0


def test_a_circle_of_awaits_is_reported_once(tl, soon, capfd):
    @tl.remote(max_concurrency=1)
    class Awaits:
        async def outer(self):
            return await taskloom.get_runtime_context().current_actor.inner.remote()

        async def inner(self): ...

    actor = Awaits.remote()
    ref = actor.outer.remote()
    assert eventually(lambda: "Awaits" in printed(capfd, "err"))
    for _ in range(3):  # other waits come and go, and each has the engine look again
        tl.get(tl.remote(lambda: taskloom.get(taskloom.remote(lambda: 1).remote())).remote())
        tl.wait([ref], timeout=0.1)
    assert printed(capfd, "err").count("none of them can go on unless") == 1
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)


def test_a_sync_method_of_an_async_actor_hears_that_it_was_cancelled_CAN_3(tl, gate):
    @tl.remote
    class Mixed:
        def work(self):
            gate.note("inside")
            while not taskloom.get_runtime_context().is_canceled():
                time.sleep(0.001)
            gate.note("noticed")

        async def ping(self):
            return "pong"

    mixed = Mixed.remote()
    ref = mixed.work.remote()
    gate.wait_for("inside")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)
    gate.wait_for("noticed")
    assert tl.get(mixed.ping.remote(), timeout=20) == "pong"


# -- what is said -------------------------------------------------------------------------------


def test_what_an_actor_prints_begins_with_its_own_repr_ACT_25(tl, capfd):
    @tl.remote
    class Numbered:
        def __init__(self, number):
            self.number = number

        def __repr__(self):
            if self.number < 0:
                raise ValueError("no repr")
            return f"Numbered({self.number})"

        def say(self, text):
            print(text)
            os.system(f"echo {text} from a child")
            return os.getpid()

        async def asay(self, text):
            print(text)
            return os.getpid()

    class Plain:
        say = Numbered.func.say

    def is_said(line):
        return line in printed(capfd)

    for number, name in ((7, "Numbered(7)"), (-1, "Numbered")):
        actor = Numbered.remote(number)
        pid = tl.get(actor.asay.remote("hello"))
        assert eventually(lambda: is_said(f"({name} pid={pid}) hello\n"))  # noqa: B023
        pid = tl.get(actor.say.remote("hi"))
        assert eventually(lambda: is_said(f"({name} pid={pid}) hi from a child\n"))  # noqa: B023
    for threads in (1, 2):
        pid = tl.get(tl.remote(Plain).options(max_concurrency=threads).remote().say.remote("so"))
        assert eventually(lambda: is_said(f"(Plain pid={pid}) so\n"))  # noqa: B023


def test_a_long_queue_of_one_actor_is_warned_of_ACT_26(tl, gate, capfd):
    @tl.remote
    class Busy:
        def stay(self, gate):
            gate.enter("stay")

        def quick(self): ...

    busy = Busy.options(name="busy").remote()
    refs = [busy.stay.remote(gate)]
    gate.wait_for("stay")
    refs += [busy.quick.remote() for _ in range(11_000)]  # some are handed out already
    wanted = "more than 10000 calls of the actor Busy named 'busy'"
    assert eventually(lambda: wanted in printed(capfd, "err"))
    assert printed(capfd, "err").count("more than 5000 calls of the actor Busy") == 1
    gate.open()
    tl.get(refs)
