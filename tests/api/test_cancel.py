"""``cancel``: tasks that wait, that run, that are done, and their children (rows CAN)."""

from __future__ import annotations

import asyncio
import os
import time
from types import ModuleType

import pytest
from tests.gates import Gate, eventually

from taskloom.exceptions import RayError, TaskCancelledError, WorkerCrashedError


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


def free_again(tl: ModuleType) -> bool:
    """All CPUs come back, and the pool still works."""
    f = tl.remote(num_cpus=0)(lambda: 1)
    return (
        eventually(lambda: tl.available_resources().get("CPU") == 2.0) and tl.get(f.remote()) == 1
    )


# -- one task -----------------------------------------------------------------------------------


def test_a_task_that_waits_for_a_cpu_never_runs_CAN_1(tl, gate):
    held = tl.remote(num_cpus=2)(gate.enter).remote()
    gate.wait_for()
    pending = [tl.remote(gate.note).remote("ran") for _ in range(5)]
    for ref in pending:
        tl.cancel(ref)
    for ref in pending:
        with pytest.raises(TaskCancelledError):
            tl.get(ref)
    gate.open()
    tl.get(held)

    assert free_again(tl)
    assert gate.count("ran") == 0


def test_a_get_of_many_is_interrupted_between_two_values_CAN_5(tl, gate):
    def load_until_cancelled() -> str:
        from taskloom import _current

        gate.note("first")
        link, end = _current._backend._link, time.monotonic() + 60
        while not link.deferred and time.monotonic() < end:
            time.sleep(0.001)
        return "first"

    class Slow:
        def __reduce__(self):
            return load_until_cancelled, ()

    class Later:
        def __reduce__(self):
            return gate.note, ("second",)

    @tl.remote
    def get_both(refs):
        tl.get(refs)

    task = get_both.remote([tl.put(Slow()), tl.put(Later())])
    assert eventually(lambda: gate.count("first") == 1)
    tl.cancel(task)
    with pytest.raises(TaskCancelledError):
        tl.get(task)
    assert free_again(tl)
    assert gate.count("second") == 0


def test_a_task_that_waits_for_a_dependency_never_runs_CAN_1(tl, gate):
    held = tl.remote(gate.enter).remote()
    pending = tl.remote(lambda _: gate.note("ran")).remote(held)
    gate.wait_for()
    tl.cancel(pending)
    with pytest.raises(TaskCancelledError):
        tl.get(pending)
    gate.open()
    tl.get(held)

    assert free_again(tl)
    assert gate.count("ran") == 0


def test_the_dependents_of_a_cancelled_task_are_cancelled_CAN_1(tl, gate):
    held = tl.remote(num_cpus=2)(gate.enter).remote()
    gate.wait_for()
    pending = tl.remote(lambda: 1).remote()
    after = tl.remote(lambda x: gate.note("ran")).remote(pending)
    tl.cancel(pending)
    with pytest.raises(TaskCancelledError):
        tl.get(after)
    gate.open()
    tl.get(held)

    assert gate.count("ran") == 0


def test_a_task_that_runs_gets_a_keyboard_interrupt_CAN_1(tl, gate):
    @tl.remote
    def spin():
        try:
            gate.note("in")
            while True:
                pass
        except KeyboardInterrupt:
            gate.note("interrupted")
            raise

    ref = spin.remote()
    (pid,) = gate.wait_for("in")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)
    gate.wait_for("interrupted")

    assert free_again(tl)
    os.kill(pid, 0)  # the worker is still there


def test_a_task_in_a_long_sleep_is_interrupted_CAN_1(tl, gate):
    @tl.remote
    def sleep():
        try:
            gate.note("in")
            time.sleep(1000)
        finally:
            gate.note("out")

    ref = sleep.remote()
    gate.wait_for("in")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)

    gate.wait_for("out")
    assert free_again(tl)


def test_a_task_blocked_in_get_is_interrupted_CAN_1(tl, gate):
    @tl.remote
    def outer():
        import taskloom

        inner = taskloom.remote(time.sleep).remote(1000)
        try:
            gate.note("in")
            taskloom.get(inner)
        except BaseException as error:
            gate.note(type(error).__name__)
            raise

    ref = outer.remote()
    gate.wait_for("in")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)

    assert free_again(tl)


def test_a_cancelled_task_is_not_retried_CAN_1(tl, gate):
    @tl.remote(max_retries=5, retry_exceptions=True)
    def sleep():
        gate.note("attempt")
        time.sleep(1000)

    ref = sleep.remote()
    gate.wait_for("attempt")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)

    assert free_again(tl)
    assert gate.count("attempt") == 1


def test_a_task_that_ignores_the_interrupt_is_cancelled_all_the_same_CAN_1(tl, gate):
    @tl.remote
    def stubborn():
        try:
            gate.note("in")
            time.sleep(1000)
        except KeyboardInterrupt:
            return "survived"

    ref = stubborn.remote()
    gate.wait_for("in")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)
    assert free_again(tl)


def test_force_ends_the_worker_and_the_pool_goes_on_CAN_1(tl, gate):
    @tl.remote
    def spin():
        gate.note("in")
        while True:
            try:
                time.sleep(1000)
            except KeyboardInterrupt:
                pass

    ref = spin.remote()
    (pid,) = gate.wait_for("in")
    tl.cancel(ref, force=True)
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        tl.get(ref)

    def is_gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    assert eventually(is_gone)
    assert free_again(tl)
    assert gate.count("in") == 1


def test_cancel_of_what_is_done_does_nothing_CAN_1(tl):
    done = tl.remote(lambda: 1).remote()
    failed = tl.remote(lambda: 1 / 0).remote()
    put = tl.put(2)
    tl.wait([done, failed], num_returns=2)
    for ref in (done, failed, put):
        tl.cancel(ref)
        tl.cancel(ref, force=True)

    assert tl.get([done, put]) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        tl.get(failed)


def test_cancel_is_for_refs_CAN_1(tl):
    for wrong in (1, None, [tl.put(1)]):
        with pytest.raises(TypeError, match=r"ray\.cancel\(\) only supported for object refs"):
            tl.cancel(wrong)


def test_cancelling_twice_is_cancelling_once_CAN_1(tl, gate):
    ref = tl.remote(gate.enter).remote()
    gate.wait_for()
    for force in (False, False, True, False):
        tl.cancel(ref, force=force)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)

    assert free_again(tl)


def test_cancel_hits_only_the_task_it_names_CAN_1(tl):
    """The next task on the same worker never gets the interrupt of the one before."""

    @tl.remote
    def short(n):
        return sum(range(100 + n))

    refs = []
    for n in range(300):
        ref = short.remote(n)
        tl.cancel(ref)
        refs.append((n, ref, short.remote(n)))
    for n, cancelled, kept in refs:
        assert tl.get(kept) == sum(range(100 + n))
        try:
            assert tl.get(cancelled) == sum(range(100 + n))
        except TaskCancelledError:
            pass
    assert free_again(tl)


def test_a_cancel_is_heard_whenever_it_comes_CAN_1(tl):
    """Before the task has started, while it enters a long call into C, and inside of it."""
    sleep = tl.remote(time.sleep)
    for n in range(200):
        ref = sleep.remote(1000)
        time.sleep(n % 20 / 10_000)
        tl.cancel(ref)
        with pytest.raises(TaskCancelledError):
            tl.get(ref)

    assert free_again(tl)


def test_each_of_many_returns_is_cancelled_CAN_1(tl, gate):
    held = tl.remote(num_returns=2)(gate.enter).remote()
    gate.wait_for()
    tl.cancel(held[1])

    for ref in held:
        with pytest.raises(TaskCancelledError):
            tl.get(ref)
    assert free_again(tl)


# -- coroutines ---------------------------------------------------------------------------------


def test_a_coroutine_gets_a_cancelled_error_CAN_1(tl, gate):
    @tl.remote
    async def sleep(name):
        try:
            gate.note("in")
            await asyncio.sleep(1000 if name == "long" else 0)
        except asyncio.CancelledError:
            gate.note("cancelled")
            raise
        return name

    long, other = sleep.remote("long"), sleep.remote("short")
    gate.wait_for("in", 2)
    tl.cancel(long)
    with pytest.raises(TaskCancelledError):
        tl.get(long)

    gate.wait_for("cancelled")
    assert tl.get(other) == "short"
    assert tl.get(sleep.remote("again")) == "again"


def test_force_on_a_coroutine_leaves_its_neighbours_alone_CAN_1(tl, gate):
    @tl.remote
    async def stay(name):
        gate.note(name)
        while gate.count("leave") == 0:
            await asyncio.sleep(0.01)
        return name

    victim, neighbour = stay.remote("victim"), stay.remote("neighbour")
    gate.wait_for("victim")
    gate.wait_for("neighbour")
    tl.cancel(victim, force=True)
    with pytest.raises(RayError):
        tl.get(victim)
    gate.note("leave")

    assert tl.get(neighbour) == "neighbour"
    assert gate.count("neighbour") == 1


# -- children -----------------------------------------------------------------------------------


def test_the_children_of_a_cancelled_task_are_cancelled_CAN_2(tl, gate):
    @tl.remote(num_cpus=0)
    def child():
        try:
            gate.note("child")
            time.sleep(1000)
        except KeyboardInterrupt:
            gate.note("child out")
            raise

    @tl.remote(num_cpus=0)
    def parent():
        import taskloom

        taskloom.get([child.remote(), child.remote()])

    ref = parent.remote()
    gate.wait_for("child", 2)
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)

    gate.wait_for("child out", 2)


def test_children_of_children_are_cancelled_too_CAN_2(tl, gate):
    @tl.remote(num_cpus=0)
    def nest(depth):
        import taskloom

        if not depth:
            try:
                gate.note("leaf")
                time.sleep(1000)
            except KeyboardInterrupt:
                gate.note("leaf out")
                raise
        return taskloom.get(nest.remote(depth - 1))

    ref = nest.remote(3)
    gate.wait_for("leaf")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)

    gate.wait_for("leaf out")


def test_pending_children_never_run_CAN_2(tl, gate):
    @tl.remote(num_cpus=2)
    def parent():
        import taskloom

        refs = [taskloom.remote(gate.note).options(num_cpus=2).remote("child") for _ in range(3)]
        try:
            gate.note("submitted")
            time.sleep(1000)
        finally:
            del refs

    ref = parent.remote()
    gate.wait_for("submitted")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)

    assert free_again(tl)
    assert gate.count("child") == 0


def test_without_recursive_the_children_go_on_CAN_2(tl, gate):
    @tl.remote(num_cpus=0)
    def child():
        gate.enter("child")
        gate.note("child done")

    @tl.remote(num_cpus=0)
    def parent():
        import taskloom

        taskloom.get(child.remote())

    ref = parent.remote()
    gate.wait_for("child")
    tl.cancel(ref, recursive=False)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)
    gate.open()

    gate.wait_for("child done")


def test_a_task_can_cancel_what_it_submitted_CAN_1(tl, gate):
    @tl.remote
    def parent():
        import taskloom

        ref = taskloom.remote(gate.enter).options(num_cpus=0).remote("child")
        gate.wait_for("child")
        taskloom.cancel(ref)
        try:
            taskloom.get(ref)
        except taskloom.exceptions.TaskCancelledError:
            return "cancelled"

    assert tl.get(parent.remote()) == "cancelled"
    assert free_again(tl)


def test_the_context_says_that_the_task_is_cancelled_CAN_1(tl, gate):
    @tl.remote
    def look():
        import taskloom

        context = taskloom.get_runtime_context()
        before = context.is_canceled()
        try:
            gate.note("in")
            time.sleep(1000)
        except KeyboardInterrupt:
            gate.note(f"{before} {context.is_canceled()}")
            raise

    ref = look.remote()
    gate.wait_for("in")
    tl.cancel(ref)

    gate.wait_for("False True")


def test_a_thousand_pending_tasks_are_cancelled_and_none_starts(tl, gate):
    held = tl.remote(num_cpus=2)(gate.enter).remote()
    gate.wait_for()
    refs = [tl.remote(gate.note).remote("ran") for _ in range(1000)]
    for ref in refs:
        tl.cancel(ref)
    gate.open()
    tl.get(held)
    assert len(tl.wait(refs, num_returns=1000)[0]) == 1000

    assert all(ref.cancelled() for ref in refs)
    assert free_again(tl)
    assert gate.count("ran") == 0


def test_a_cancelled_task_that_goes_on_with_a_ref_that_is_gone_disturbs_nobody(tl, gate, capfd):
    @tl.remote
    def stubborn(refs):
        try:
            gate.enter("inside")
        except KeyboardInterrupt:
            child = tl.remote(lambda x: x).remote(refs[0])
            try:
                tl.get(child)
            except tl.exceptions.ObjectLostError:
                gate.note("lost")

    ref = tl.put(1)
    task = stubborn.remote([ref])
    gate.wait_for("inside")
    del ref
    tl.cancel(task, recursive=False)

    gate.wait_for("lost")
    assert "internal error" not in capfd.readouterr().err
    assert tl.get([tl.remote(lambda n: n).remote(n) for n in range(10)]) == list(range(10))
