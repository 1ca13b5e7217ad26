"""``TaskGroup``: what belongs to it, what ends it, and what it raises."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
from tests.gates import Gate, eventually

import taskloom
from taskloom.exceptions import SessionClosedError, TaskCancelledError

SESSION = {"num_cpus": 6}


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


@taskloom.remote
def add(a, b=1):
    return a + b


@taskloom.remote
def fail(text="no"):
    raise ValueError(text)


@taskloom.remote
def stay(gate, name="stay"):
    """Takes a while to stop: it says when it has really stopped."""
    try:
        gate.enter(name)
    finally:
        gate.note(f"{name} stops")
        _spin_for_a_while()
        gate.note(f"{name} stopped")


def _spin_for_a_while():
    for _ in range(2_000_000):
        pass


def all_free() -> bool:
    return taskloom.available_resources().get("CPU") == 6.0


def message_tree(error: BaseException) -> list[object]:
    return [
        message_tree(member) if isinstance(member, BaseExceptionGroup) else str(member.args[0])
        for member in error.exceptions  # type: ignore[attr-defined]
    ]


async def in_asyncio(body: Callable[[taskloom.TaskGroup], object]) -> None:
    async with taskloom.TaskGroup() as tg:
        body(tg)


def blocking(body: Callable[[taskloom.TaskGroup], object]) -> None:
    with taskloom.TaskGroup() as tg:
        body(tg)


def with_asyncio(body: Callable[[taskloom.TaskGroup], object]) -> None:
    asyncio.run(in_asyncio(body))


def with_trio(body: Callable[[taskloom.TaskGroup], object]) -> None:
    trio.run(in_asyncio, body)


@pytest.fixture(params=[blocking, with_asyncio, with_trio])
def run(request):
    """Runs a body in a group: ``with``, ``async with`` in asyncio, ``async with`` in trio."""
    return request.param


# -- an ordinary end ----------------------------------------------------------------------------


def test_the_block_ends_when_all_its_tasks_are_done(tl, run):
    refs = []

    def body(tg):
        first = tg.remote(add)(1)
        refs.extend([first, add.remote(first, b=10), tg.remote(add.options(name="x"))(5)])

    run(body)
    assert all(ref.done() for ref in refs)
    assert tl.get(refs) == [2, 12, 6]


def test_a_group_without_tasks_ends_at_once(tl, run):
    run(lambda tg: None)


def test_a_plain_function_and_several_results(tl):
    with tl.TaskGroup() as tg:
        ref = tg.remote(lambda: 7)()
        a, b = tg.remote(tl.remote(num_returns=2)(lambda: (1, 2)))()
    assert tl.get([ref, a, b]) == [7, 1, 2]


def test_thousands_of_tasks(tl):
    with tl.TaskGroup():
        refs = [add.remote(i) for i in range(3000)]
    assert all(ref.done() for ref in refs)
    assert sum(tl.get(refs)) == sum(range(1, 3001))


def test_the_block_waits_for_what_its_tasks_have_left_running(tl, gate):
    @tl.remote
    def leaves_a_child():
        stay.remote(gate, "child")  # nobody waits for it
        gate.wait_for("child")

    def open_when_the_parent_is_done():
        taskloom.get(parent)
        gate.open()

    with tl.TaskGroup():
        parent = leaves_a_child.remote()
        opener = threading.Thread(target=open_when_the_parent_is_done)
        opener.start()
    assert gate.count("child stopped") == 1
    opener.join()


async def test_coroutines_started_inside_belong_to_it(tl, gate):
    async def helper():
        stay.remote(gate, "late")

    async with tl.TaskGroup() as tg:
        await asyncio.create_task(helper())
        await asyncio.to_thread(gate.wait_for, "late")
        tg.cancel()
    assert gate.count("late stopped") == 1


def test_a_call_of_another_thread_does_not_belong_to_it(tl, gate):
    refs = []
    with tl.TaskGroup() as tg:
        other = threading.Thread(target=lambda: refs.append(stay.remote(gate)))
        other.start()
        other.join()
        mine = threading.Thread(target=lambda: refs.append(tg.remote(add)(1)))
        mine.start()
        mine.join()
    assert not refs[0].done()
    assert refs[1].done()
    gate.open()
    tl.get(refs)


async def test_a_coroutine_that_outlives_the_block_submits_as_if_there_were_none(tl, gate):
    async def outlive():
        await asyncio.to_thread(gate.stay)
        return await add.remote(1)

    async with tl.TaskGroup():
        task = asyncio.create_task(outlive())
        await asyncio.sleep(0)
    gate.open()
    assert await task == 2


def test_maps_and_completions_inside_belong_to_it(tl):
    with tl.TaskGroup():
        assert list(tl.map(add, range(5))) == [1, 2, 3, 4, 5]


# -- errors -------------------------------------------------------------------------------------


def test_the_first_error_cancels_all_others_and_they_have_stopped(tl, gate, run):
    refs = []

    def body(tg):
        refs.append(stay.remote(gate))
        refs.append(add.remote(refs[0]))
        gate.wait_for("stay")
        fail.remote()

    with pytest.raises(ExceptionGroup) as caught:
        run(body)
    assert gate.count("stay stopped") == 1
    assert message_tree(caught.value) == ["no"]
    assert isinstance(caught.value.exceptions[0], ValueError)
    for ref in refs:
        with pytest.raises(TaskCancelledError):
            tl.get(ref)
    assert all_free()


async def test_the_body_is_interrupted_by_a_failed_member(tl):
    with pytest.raises(ExceptionGroup) as caught:
        async with tl.TaskGroup():
            fail.remote()
            await asyncio.Event().wait()
    assert message_tree(caught.value) == ["no"]


def test_the_body_is_interrupted_in_trio_too(tl):
    async def main():
        async with tl.TaskGroup():
            fail.remote()
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup, match="unhandled errors in a TaskGroup"):
        trio.run(main)


def test_what_a_blocked_body_waits_for_is_cancelled(tl, gate):
    with pytest.raises(ExceptionGroup) as caught, tl.TaskGroup():
        ref = stay.remote(gate)
        gate.wait_for("stay")
        fail.remote()
        tl.get(ref)
    assert message_tree(caught.value) == ["no"]


def test_an_error_that_is_passed_on_is_there_once(tl, run):
    def body(tg):
        ref = fail.remote()
        for _ in range(50):
            ref = add.remote(ref)

    with pytest.raises(ExceptionGroup) as caught:
        run(body)
    assert message_tree(caught.value) == ["no"]


def test_an_error_from_outside_is_there_once(tl):
    outside = fail.remote("from outside")
    with pytest.raises(ExceptionGroup) as caught, tl.TaskGroup():
        for _ in range(3):
            add.remote(outside)
    assert message_tree(caught.value) == ["from outside"]


def test_an_error_that_the_body_got_from_a_member_is_there_once(tl):
    with pytest.raises(ExceptionGroup) as caught, tl.TaskGroup():
        tl.get(add.remote(fail.remote()))
    assert message_tree(caught.value) == ["no"]


async def test_an_error_that_the_body_got_in_a_group_of_its_own_is_there_once(tl):
    async def wait_for(ref):
        await ref

    with pytest.raises(ExceptionGroup) as caught:
        async with tl.TaskGroup(), asyncio.TaskGroup() as inner:
            inner.create_task(wait_for(fail.remote()))
    # In the inner group if its task got the error, or without it if the member had failed before
    # that task began to wait: then the body was cancelled, and its group with it.
    assert message_tree(caught.value) in ([["no"]], ["no"])


async def test_an_error_that_the_body_awaited_is_there_once(tl):
    with pytest.raises(ExceptionGroup) as caught:
        async with tl.TaskGroup():
            await fail.remote()
    assert message_tree(caught.value) == ["no"]


def test_an_error_of_the_body_cancels_the_tasks_and_is_in_the_group(tl, gate, run):
    def body(tg):
        stay.remote(gate)
        gate.wait_for("stay")
        raise LookupError("mine")

    with pytest.raises(ExceptionGroup) as caught:
        run(body)
    assert message_tree(caught.value) == ["mine"]
    assert gate.count("stay stopped") == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_passes_as_it_is(tl, gate, kind):
    def body(tg):
        stay.remote(gate)
        gate.wait_for("stay")
        raise kind("end")

    with pytest.raises(kind, match="end"):
        blocking(body)
    assert gate.count("stay stopped") == 1


async def test_sys_exit_in_an_async_body_passes_as_it_is(tl, gate):
    async with tl.TaskGroup():
        with pytest.raises(SystemExit):
            async with tl.TaskGroup():
                stay.remote(gate)
                await asyncio.to_thread(gate.wait_for, "stay")
                raise SystemExit
        assert gate.count("stay stopped") == 1


def test_a_member_that_was_cancelled_is_no_error(tl, gate):
    with tl.TaskGroup():
        ref = stay.remote(gate)
        gate.wait_for("stay")
        other = add.remote(1)
        tl.cancel(ref)
    assert gate.count("stay stopped") == 1
    assert tl.get(other) == 2


def test_an_error_that_the_task_of_a_member_handles_is_none(tl):
    @tl.remote
    def careful():
        try:
            tl.get(fail.remote())
        except ValueError:
            return "handled"

    with tl.TaskGroup():
        ref = careful.remote()
    assert tl.get(ref) == "handled"


def test_groups_nest_and_so_do_their_errors(tl, gate):
    def body(outer):
        stay.remote(gate)
        gate.wait_for("stay")
        with tl.TaskGroup() as inner:
            inner.remote(fail)("inner")

    with pytest.raises(ExceptionGroup) as caught:
        blocking(body)
    assert message_tree(caught.value) == [["inner"]]
    assert gate.count("stay stopped") == 1


async def test_a_failure_in_the_outer_group_ends_the_inner_one(tl, gate):
    with pytest.raises(ExceptionGroup) as caught:
        async with tl.TaskGroup() as outer, tl.TaskGroup() as inner:
            inner.remote(stay)(gate)
            await asyncio.to_thread(gate.wait_for, "stay")
            outer.remote(fail)("outer")
            await asyncio.Event().wait()
    assert message_tree(caught.value) == ["outer"]
    assert gate.count("stay stopped") == 1


def test_except_star_finds_the_users_class(tl):
    found = []
    try:
        with tl.TaskGroup():
            fail.remote("a")
    except* ValueError as group:
        found = [str(error.args[0]) for error in group.exceptions]
    assert found == ["a"]


# -- cancel and time ----------------------------------------------------------------------------


async def test_a_timeout_ends_all_of_it(tl, gate):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3), tl.TaskGroup():
            add.remote(stay.remote(gate))
    assert gate.count("stay") == gate.count("stay stopped")
    assert all_free()


async def test_cancelling_the_coroutine_ends_all_of_it(tl, gate):
    async def work():
        async with tl.TaskGroup():
            stay.remote(gate)
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.to_thread(gate.wait_for, "stay")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.count("stay stopped") == 1


async def test_cancelling_again_while_it_stops_does_not_leave_anything(tl, gate):
    async def work():
        async with tl.TaskGroup():
            stay.remote(gate)

    task = asyncio.create_task(work())
    await asyncio.to_thread(gate.wait_for, "stay")
    task.cancel()
    await asyncio.to_thread(gate.wait_for, "stay stops")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.count("stay stopped") == 1


def test_a_trio_timeout_ends_all_of_it(tl, gate):
    async def main():
        with trio.move_on_after(0.3) as scope:
            async with tl.TaskGroup():
                stay.remote(gate)
        return scope.cancelled_caught

    assert trio.run(main)
    assert gate.count("stay") == gate.count("stay stopped")


def test_cancel_ends_the_tasks_and_is_no_error(tl, gate, run):
    def body(tg):
        ref = stay.remote(gate)
        gate.wait_for("stay")
        tg.cancel()
        late.append(tg.remote(add)(1))
        assert ref is not None

    late = []
    run(body)
    assert gate.count("stay stopped") == 1
    with pytest.raises(TaskCancelledError):
        tl.get(late[0])


def test_children_of_children_are_cancelled_as_well(tl, gate):
    @tl.remote
    def family(depth):
        gate.note("born")
        if depth:
            family.remote(depth - 1)
        gate.stay()

    with pytest.raises(ExceptionGroup), tl.TaskGroup():
        family.remote(3)
        gate.wait_for("born", 4)
        fail.remote()
    assert all_free()


def test_a_child_whose_parent_has_ended_is_cancelled_as_well(tl, gate):
    @tl.remote
    def leaves_a_child():
        stay.remote(gate, "child")
        gate.wait_for("child")

    with pytest.raises(ExceptionGroup), tl.TaskGroup():
        tl.get(leaves_a_child.remote())
        fail.remote()
    assert gate.count("child stopped") == 1


# -- release ------------------------------------------------------------------------------------


def test_a_released_task_survives_the_block_with_its_children(tl, gate):
    @tl.remote
    def parent():
        return tl.get(stay_child.remote())

    @tl.remote
    def stay_child():
        gate.enter("child")
        return "grown"

    with pytest.raises(ExceptionGroup), tl.TaskGroup() as tg:
        ref = parent.remote()
        gate.wait_for("child")
        tg.release(ref)
        fail.remote()
    assert not ref.done()
    gate.open()
    assert tl.get(ref) == "grown"


def test_a_released_task_belongs_to_the_outer_group(tl, gate):
    with tl.TaskGroup():
        with tl.TaskGroup() as inner:
            ref = stay.remote(gate)
            gate.wait_for("stay")
            inner.release(ref)
        assert not ref.done()
        gate.open()
    assert ref.done()


def test_release_of_what_is_no_member_does_nothing(tl):
    stranger = add.remote(1)
    with tl.TaskGroup() as tg:
        tg.release(stranger)
        done = add.remote(2)
        tl.get(done)
        tg.release(done)
        with pytest.raises(TypeError, match="ObjectRef"):
            tg.release("no ref")
    assert tl.get([stranger, done]) == [2, 3]


# -- inside tasks -------------------------------------------------------------------------------


def test_a_def_task_can_open_a_group(tl, gate):
    @tl.remote
    def work():
        with tl.TaskGroup():
            refs = [add.remote(i) for i in range(4)]
        assert tl.wait(refs, num_returns=4, timeout=0)[0] == refs
        try:
            with tl.TaskGroup():
                stay.remote(gate)
                gate.wait_for("stay")
                fail.remote("in the task")
        except ExceptionGroup as group:
            return tl.get(refs), [str(e.args[0]) for e in group.exceptions]

    assert tl.get(work.remote()) == ([1, 2, 3, 4], ["in the task"])
    assert gate.count("stay stopped") == 1


def test_an_async_task_can_open_a_group(tl, gate):
    @tl.remote
    async def work():
        try:
            async with tl.TaskGroup():
                ref = await add.remote(1)
                stay.remote(gate)
                while not gate.count("stay"):
                    await asyncio.sleep(0.01)
                fail.remote("in the task")
                await asyncio.Event().wait()
        except ExceptionGroup as group:
            return ref, [str(e.args[0]) for e in group.exceptions]

    assert tl.get(work.remote()) == (2, ["in the task"])
    assert gate.count("stay stopped") == 1


def test_a_def_task_can_run_a_loop_with_a_group(tl):
    @tl.remote
    def work():
        async def main():
            async with tl.TaskGroup():
                refs = [add.remote(i) for i in range(3)]
            return [await ref for ref in refs]

        return asyncio.run(main())

    assert tl.get(work.remote()) == [1, 2, 3]


def test_a_group_of_a_cancelled_task_has_stopped_before_the_outer_block_ends(tl, gate):
    @tl.remote
    def work():
        with tl.TaskGroup():
            stay.remote(gate)

    with pytest.raises(ExceptionGroup), tl.TaskGroup():
        work.remote()
        gate.wait_for("stay")
        fail.remote()
    assert gate.count("stay stopped") == 1
    assert all_free()


def test_a_group_ends_with_the_worker_in_which_it_was_opened(tl, gate):
    @tl.remote(max_retries=0)
    def work():
        with tl.TaskGroup():
            stay.remote(gate)
            gate.wait_for("stay")
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(taskloom.exceptions.WorkerCrashedError):
        tl.get(work.remote())
    gate.wait_for("stay stopped")
    assert eventually(all_free)


def test_a_thread_of_a_task_that_has_ended_comes_too_late(tl, gate):
    @tl.remote
    def leave(ready):
        group = tl.TaskGroup().__enter__()

        def submit():
            ready.enter("thread")
            with pytest.raises(TaskCancelledError):
                tl.get(group.remote(add)(1))
            ready.note("cancelled")

        threading.Thread(target=submit).start()
        return tl.get_runtime_context().get_task_id()

    tl.get(leave.remote(gate))
    gate.wait_for("thread")
    gate.open()
    gate.wait_for("cancelled")


def test_a_task_whose_group_fails_fails_with_the_group(tl):
    @tl.remote
    def work():
        with tl.TaskGroup():
            fail.remote("deep")

    with pytest.raises(ExceptionGroup) as caught, tl.TaskGroup():
        work.remote()
    assert message_tree(caught.value) == [["deep"]]


# -- misuse and the session's end ---------------------------------------------------------------


def test_outside_of_its_block_a_group_takes_nothing(tl):
    tg = tl.TaskGroup()
    with pytest.raises(RuntimeError, match="has not been entered"):
        tg.remote(add)
    with tg:
        submit = tg.remote(add)
        with pytest.raises(RuntimeError, match="entered already"), tg:
            pass
    for misuse in (lambda: tg.remote(add), lambda: submit(1), tg.cancel):
        with pytest.raises(RuntimeError, match="block has ended"):
            misuse()
    with pytest.raises(RuntimeError, match="entered already"), tg:
        pass


async def test_a_blocking_group_in_a_coroutine_warns(tl, gate, monkeypatch):
    home = taskloom._current.require()
    get = home.get

    def let_it_end_and_get(refs, timeout_s):
        gate.open()
        return get(refs, timeout_s)

    monkeypatch.setattr(home, "get", let_it_end_and_get)  # a group that has ended waits for nothing

    with pytest.warns(taskloom.exceptions.BlockingGetWarning, match="TaskGroup"):
        blocking(lambda tg: tg.remote(stay)(gate))


def test_the_session_may_end_inside_the_block(fresh, gate):
    taskloom.init(num_cpus=1)
    with pytest.raises(ExceptionGroup) as caught, taskloom.TaskGroup():
        stay.remote(gate)
        gate.wait_for("stay")
        taskloom.shutdown()
    assert isinstance(caught.value.exceptions[0], SessionClosedError)


def test_a_group_leaves_nothing_in_the_engine(tl, gate):
    backend: Any = taskloom._current.peek()
    loom = backend._engine.loom

    def objects():
        return backend._portal.call(lambda: set(loom.graph.objects))  # after what was dropped

    before = objects()
    with pytest.raises(ExceptionGroup), tl.TaskGroup():
        stay.remote(gate)
        gate.wait_for("stay")
        fail.remote()
    assert eventually(lambda: objects() <= before)
    assert not loom.graph.nodes
    assert not loom.scopes.open
    assert not loom.scopes._owned
    assert taskloom._current.group.get() is None


def test_an_error_that_the_group_tells_of_is_not_reported_again(run_driver):
    done = run_driver("""
import taskloom

@taskloom.remote(num_returns=0)
def nothing():
    raise ValueError("told by the group")

@taskloom.remote
def something():
    raise ValueError("told by the group")

for function in (nothing, something):
    try:
        with taskloom.TaskGroup():
            function.remote()
    except* ValueError as group:
        print(len(group.exceptions))
taskloom.shutdown()
""")
    assert done.stdout.split() == ["1", "1"]
    assert "Unhandled" not in done.stderr


def test_ctrl_c_in_the_block_ends_the_tasks_and_the_session_goes_on(run_driver, tmp_path):
    done = run_driver(
        """
import os, signal, sys, threading
import taskloom
sys.path.insert(0, sys.argv[2])
from tests.gates import Gate

gate = Gate(sys.argv[1])

@taskloom.remote
def stay():
    try:
        gate.enter("stay")
    finally:
        gate.note("stopped")

def press():
    gate.wait_for("stay")
    os.killpg(0, signal.SIGINT)

taskloom.init(num_cpus=2)
threading.Thread(target=press).start()
try:
    with taskloom.TaskGroup():
        stay.remote()
except KeyboardInterrupt:
    print(gate.count("stopped"), taskloom.get(taskloom.remote(lambda: "usable").remote()))
taskloom.shutdown()
""",
        args=[str(tmp_path), os.getcwd()],
    )
    assert done.stdout.split() == ["1", "usable"], done.stderr


# -- in the calling process ---------------------------------------------------------------------


@pytest.fixture
def local(fresh):
    fresh.init(local_mode=True)
    return fresh


def test_in_the_calling_process_the_rules_are_the_same(local, run):
    ran = []

    def body(tg):
        refs.append(tg.remote(add)(1))
        refs.append(add.remote(fail.remote()))
        refs.append(tg.remote(add)(1))

    refs: list[taskloom.ObjectRef[int]] = []
    with pytest.raises(ExceptionGroup) as caught:
        run(body)
    assert message_tree(caught.value) == ["no"]
    assert local.get(refs[0]) == 2
    with pytest.raises(TaskCancelledError):
        local.get(refs[2])
    assert ran == []


def test_in_the_calling_process_the_body_is_interrupted(local):
    async def main():
        async with local.TaskGroup():
            fail.remote()
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup):
        asyncio.run(main())


def test_in_the_calling_process_nested_calls_are_their_callers_affair(local):
    @local.remote
    def careful():
        try:
            local.get(fail.remote())
        except ValueError:
            return "handled"

    with local.TaskGroup() as tg:
        ref = careful.remote()
        tg.release(ref)
        with local.TaskGroup() as inner:
            inner.cancel()
        tg.cancel()
    assert local.get(ref) == "handled"


def test_a_group_whose_workers_cannot_be_started_hears_why(run_driver):
    done = run_driver("""
import taskloom
taskloom.init(num_cpus=1, preload=["no_such_module_at_all"])
try:
    with taskloom.TaskGroup():
        taskloom.remote(lambda: 1).remote()
except ExceptionGroup as group:
    print(type(group.exceptions[0]).__name__)
try:
    with taskloom.TaskGroup():
        taskloom.remote(lambda: 1).remote()
except ExceptionGroup as group:
    print(type(group.exceptions[0]).__name__)
taskloom.shutdown()
""")
    assert done.stdout.split() == ["WorkerStartupError"] * 2, done.stderr
