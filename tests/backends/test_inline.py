"""``init(local_mode=True)``: tasks in the calling process, observably the same as elsewhere."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import os
import pdb
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import trio

from taskloom import _current
from taskloom.exceptions import TaskTimeoutError

REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("REQUEST", default="none")


@pytest.fixture
def inline(fresh: ModuleType) -> ModuleType:
    fresh.init(local_mode=True, num_cpus=2)
    return fresh


def count_attempts(path: str) -> int:
    with open(path, "a") as file:
        file.write("x")
    return os.path.getsize(path)


# -- the calling process ------------------------------------------------------------------------


def test_a_task_runs_in_the_calling_process_and_thread(inline):
    ref = inline.remote(lambda: (os.getpid(), threading.get_ident())).remote()

    assert inline.get(ref) == (os.getpid(), threading.get_ident())


def test_a_task_is_over_when_remote_returns(inline):
    ref = inline.remote(lambda: 1).remote()

    assert inline.wait([ref], timeout=0) == ([ref], [])
    assert ref.done()


def test_tasks_run_one_after_another_in_the_order_of_submission(inline, tmp_path):
    log = tmp_path / "log"

    @inline.remote
    def write(i: int) -> None:
        with log.open("a") as file:
            file.write(f"{i} ")

    for i in range(5):
        write.remote(i)

    assert log.read_text() == "0 1 2 3 4 "


def test_what_a_task_prints_goes_straight_to_stdout(inline, capsys):
    inline.remote(lambda: print("hello")).remote()

    assert capsys.readouterr().out == "hello\n"


def test_breakpoint_in_a_task_opens_the_debugger_at_its_line(inline, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("p secret\ncontinue\n"))
    monkeypatch.setattr(
        sys, "breakpointhook", lambda: pdb.Pdb(nosigint=True).set_trace(sys._getframe(1))
    )

    @inline.remote
    def debugged() -> int:
        secret = 41
        breakpoint()
        return secret + 1

    assert inline.get(debugged.remote()) == 42
    out = capsys.readouterr().out
    assert "test_inline.py" in out
    assert "41" in out


# -- snapshots ----------------------------------------------------------------------------------


def test_a_task_does_not_change_its_callers_arguments(inline):
    @inline.remote
    def spoil(items: list[int]) -> list[int]:
        items.append(9)
        return items

    mine = [1]
    assert inline.get(spoil.remote(mine)) == [1, 9]
    assert mine == [1]


def test_each_get_gives_a_value_of_its_own(inline):
    ref = inline.remote(lambda: [1]).remote()
    inline.get(ref).append(2)

    assert inline.get(ref) == [1]


def test_put_keeps_a_snapshot(inline):
    value = [1]
    ref = inline.put(value)
    value.append(2)

    assert inline.get(ref) == [1]


def test_an_argument_that_cannot_be_pickled_is_a_type_error_at_the_call(inline):
    f = inline.remote(lambda x: x)

    with pytest.raises(TypeError, match=r"lock"):
        f.remote({"key": [threading.Lock()]})


def test_a_value_that_cannot_be_put_is_a_type_error_that_names_the_member(inline):
    with pytest.raises(TypeError, match=r"value\['key'\]"):
        inline.put({"key": threading.Lock()})


def test_a_result_that_cannot_be_pickled_is_the_error_of_the_task(inline):
    with pytest.raises(TypeError, match="returned"):
        inline.get(inline.remote(lambda: threading.Lock()).remote())


# -- dependencies -------------------------------------------------------------------------------


def test_a_ref_as_an_argument_arrives_as_its_value(inline):
    f = inline.remote(lambda a, b=0: a + b)

    assert inline.get(f.remote(f.remote(1), b=f.remote(2))) == 3


def test_a_ref_inside_an_argument_stays_a_ref(inline):
    @inline.remote
    def look(items: list[Any]) -> tuple[str, int]:
        return type(items[0]).__name__, inline_get(items[0])

    assert inline.get(look.remote([inline.put(5)])) == ("ObjectRef", 5)


def inline_get(ref: Any) -> Any:
    import taskloom

    return taskloom.get(ref)


def test_a_failed_dependency_fails_its_dependents_with_the_type_of_the_error(inline, tmp_path):
    trace = str(tmp_path / "ran")

    @inline.remote
    def fail() -> None:
        raise ZeroDivisionError("zero")

    @inline.remote
    def never(x: object) -> object:
        count_attempts(trace)
        return x

    with pytest.raises(ZeroDivisionError) as caught:
        inline.get(never.remote(never.remote(fail.remote())))
    assert isinstance(caught.value, inline.exceptions.RayTaskError)
    assert "At least one of the input arguments" in str(caught.value)
    assert not os.path.exists(trace)


def test_nested_tasks_run_to_any_reasonable_depth(inline):
    @inline.remote
    def factorial(n: int) -> int:
        return 1 if n == 0 else n * inline_get(factorial.remote(n - 1))

    assert inline.get(factorial.remote(20)) == 2432902008176640000


def test_a_ref_that_a_task_returns_is_not_unwrapped(inline):
    outer = inline.remote(lambda: [inline_put("inner")]).remote()

    assert inline.get(inline.get(outer)[0]) == "inner"


def inline_put(value: object) -> Any:
    import taskloom

    return taskloom.put(value)


def test_a_ref_of_another_session_is_refused(inline):
    old = inline.put(1)
    inline.shutdown()
    inline.init(local_mode=True)

    with pytest.raises(ValueError, match="current session"):
        inline.get(old)
    with pytest.raises(ValueError, match="current session"):
        inline.remote(lambda x: x).remote(old)


# -- errors and retries -------------------------------------------------------------------------


def test_the_error_of_a_task_is_its_own_class_and_a_task_error(inline):
    @inline.remote
    def fail() -> None:
        raise KeyError("missing")

    with pytest.raises(KeyError) as caught:
        inline.get(fail.remote())
    assert isinstance(caught.value, inline.exceptions.RayTaskError)
    assert "in fail" in str(caught.value)
    assert "backends/inline" not in str(caught.value)  # no frame of the engine


def test_get_raises_the_first_error_of_the_list(inline):
    @inline.remote
    def fail(error: Exception) -> None:
        raise error

    refs = [inline.put(1), fail.remote(KeyError(1)), fail.remote(ValueError(2))]
    with pytest.raises(KeyError):
        inline.get(refs)


def test_sys_exit_in_a_task_is_its_error_and_ends_nothing(inline):
    ref = inline.remote(sys.exit).remote(3)

    with pytest.raises(inline.exceptions.RayTaskError, match="SystemExit"):
        inline.get(ref)


def test_an_interrupt_ends_the_program_not_the_task(inline):
    @inline.remote
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.remote()


@pytest.mark.parametrize(
    ("retry_exceptions", "max_retries", "attempts"),
    [(True, 3, 4), (True, 0, 1), (False, 3, 1), ([OSError], 3, 4), ([KeyError], 3, 1)],
)
def test_retries_use_up_max_retries(inline, tmp_path, retry_exceptions, max_retries, attempts):
    path = str(tmp_path / "attempts")

    @inline.remote(retry_exceptions=retry_exceptions, max_retries=max_retries)
    def fail() -> None:
        raise FileNotFoundError(f"attempt {count_attempts(path)}")

    with pytest.raises(FileNotFoundError, match=f"attempt {attempts}$"):
        inline.get(fail.remote())


def test_a_retry_that_succeeds_is_the_result_and_gets_fresh_arguments(inline, tmp_path):
    path = str(tmp_path / "attempts")

    @inline.remote(retry_exceptions=True, max_retries=-1)
    def third_time(items: list[int]) -> list[int]:
        items.append(1)
        if count_attempts(path) < 3:
            raise ValueError
        return items

    assert inline.get(third_time.remote([])) == [1]


def test_an_error_nobody_asked_for_is_printed_once(inline, capsys):
    @inline.remote
    def fail() -> None:
        raise ValueError("unheard")

    fail.remote()
    gc.collect()
    inline.put(1)
    inline.shutdown()

    assert capsys.readouterr().err.count("ValueError: unheard") == 1


def test_an_error_that_was_raised_is_not_printed_again(inline, capsys):
    @inline.remote
    def fail() -> None:
        raise ValueError("heard")

    with pytest.raises(ValueError, match="heard"):
        inline.get(fail.remote())
    gc.collect()
    inline.shutdown()

    assert "heard" not in capsys.readouterr().err


# -- several returns ----------------------------------------------------------------------------


def test_several_returns_have_refs_of_their_own(inline):
    @inline.remote(num_returns=2)
    def pair() -> Iterator[int]:
        yield 1
        yield 2

    first, second = pair.remote()
    assert inline.get(second) == 2
    assert inline.get(first) == 1


def test_too_few_returns_are_the_error_of_each_ref(inline):
    refs = inline.remote(lambda: [1]).options(num_returns=2).remote()

    for ref in refs:
        with pytest.raises(ValueError, match="Task returned 1 objects, but num_returns=2"):
            inline.get(ref)


def test_no_returns_give_no_ref(inline):
    assert inline.remote(lambda: None).options(num_returns=0).remote() is None


# -- resources ----------------------------------------------------------------------------------


def test_what_can_never_fit_fails_at_once_and_says_what_there_is(inline):
    ref = inline.remote(num_cpus=64)(lambda: 1).remote()

    with pytest.raises(inline.exceptions.TaskUnschedulableError, match=r"64\.0.*2\.0"):
        inline.get(ref)


def test_a_task_holds_its_resources_while_it_runs(inline):
    free = inline.remote(num_cpus=2)(lambda: backend().available_resources())

    assert "CPU" not in inline.get(free.remote())
    assert inline.available_resources()["CPU"] == 2.0
    assert inline.cluster_resources()["CPU"] == 2.0


def test_a_task_lends_its_cpus_to_those_it_calls(inline):
    @inline.remote(num_cpus=2)
    def outer() -> float:
        inner = inner_free.remote()
        return inline_get(inner), backend().available_resources().get("CPU")

    @inline.remote(num_cpus=1)
    def inner_free() -> float:
        return backend().available_resources()["CPU"]

    assert inline.get(outer.remote()) == (1.0, None)
    assert inline.available_resources()["CPU"] == 2.0


def backend() -> Any:
    return _current.require()


def test_a_task_knows_where_it_runs(inline):
    @inline.remote(name="pretty", num_cpus=0.5)
    def where() -> Any:
        here = backend().context()
        return here.task_name, here.function_name.split(".")[-1], here.resources, here.task_key

    name, function, resources, key = inline.get(where.remote())
    assert (name, function, resources) == ("pretty", "where", (("CPU", 5000),))
    assert key is not None
    assert backend().context().task_key is None


# -- context variables --------------------------------------------------------------------------


def test_a_task_reads_context_variables_and_its_own_changes_stay_inside(inline):
    @inline.remote
    def swap() -> str:
        before = REQUEST.get()
        REQUEST.set("changed")
        return before

    token = REQUEST.set("r-1")
    try:
        assert inline.get(swap.remote()) == "r-1"
        assert REQUEST.get() == "r-1"
    finally:
        REQUEST.reset(token)


# -- coroutine functions ------------------------------------------------------------------------


def test_an_async_task_runs_where_no_loop_is_running(inline):
    @inline.remote
    async def thread() -> int:
        await asyncio.sleep(0)
        return threading.get_ident()

    assert inline.get(thread.remote()) == threading.get_ident()


def test_an_async_task_runs_where_a_loop_is_running(inline):
    @inline.remote
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    @inline.remote
    async def quadruple(x: int) -> int:
        return await double.remote(await double.remote(x))

    async def main() -> int:
        return await quadruple.remote(3)

    assert asyncio.run(main()) == 12
    assert trio.run(main) == 12


def test_an_async_task_leaves_the_current_event_loop_alone(inline):
    @inline.remote
    async def nothing() -> None:
        pass

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        nothing.remote()
        assert asyncio.get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_the_error_of_an_async_task_arrives(inline):
    @inline.remote
    async def fail() -> None:
        raise LookupError("async")

    async def main() -> None:
        with pytest.raises(LookupError, match="async"):
            await fail.remote()

    asyncio.run(main())


# -- waiting ------------------------------------------------------------------------------------


def test_done_callbacks_run_in_the_loop_and_not_before_it_turns(inline):
    async def main() -> list[str]:
        ref = inline.put(1)
        seen: list[str] = []
        ref.add_done_callback(lambda _ref: seen.append("called"))
        seen.append("added")
        done, pending = await asyncio.wait([ref])
        assert done == {ref}
        assert not pending
        return seen

    assert asyncio.run(main()) == ["added", "called"]


def test_cancel_of_what_is_done_does_nothing(inline):
    ref = inline.put(1)
    inline.cancel(ref)

    assert inline.get(ref) == 1


# -- lifetimes ----------------------------------------------------------------------------------


def test_an_object_goes_with_its_last_ref(inline):
    ref = inline.put(list(range(100)))
    record = weakref.ref(ref._record)
    other = inline.ObjectRef(ref.binary())
    del ref
    assert record() is not None
    del other
    assert record() is None


def test_an_object_inside_another_lives_as_long_as_that(inline):
    inner = inline.put("inner")
    record = weakref.ref(inner._record)
    outer = inline.put([inner])
    del inner
    assert inline.get(inline.get(outer)[0]) == "inner"
    del outer
    gc.collect()
    assert record() is None


def test_a_ref_pickled_by_a_stranger_keeps_its_object(inline):
    import pickle

    data = pickle.dumps(inline.put("pinned"))

    assert inline.get(pickle.loads(data)) == "pinned"


def test_the_name_of_an_object_that_is_gone_gives_an_error(inline):
    name = inline.put(1).binary()

    with pytest.raises(inline.exceptions.ObjectLostError):
        inline.get(inline.ObjectRef(name))


def test_nested_refs_a_hundred_thousand_deep_are_freed_without_recursion(inline):
    from taskloom.backends.inline_object import Object

    innermost = outermost = Object(b"")
    gone = weakref.ref(innermost)
    for _ in range(100_000):
        outermost = Object(b"", (outermost,))
    del innermost, outermost
    assert gone() is None


def test_a_session_that_has_ended_says_so(inline):
    ref = inline.put(1)
    inline.shutdown()

    with pytest.raises(inline.exceptions.SessionClosedError):
        ref.result()


def test_a_program_without_processes_starts_none(inline):
    inline.get(inline.remote(lambda: 1).remote())

    children = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True
    ).stdout
    assert "taskloom" not in children


# -- time ---------------------------------------------------------------------------------------


def test_a_coroutine_is_cancelled_when_its_time_is_over(inline):
    @inline.remote(timeout=0.05)
    async def slow():
        await asyncio.sleep(1000)

    with pytest.raises(TaskTimeoutError, match=r"The task slow .* 0.05 s \(attempt 1\)") as caught:
        inline.get(slow.remote())
    assert isinstance(caught.value, TimeoutError)


def test_a_function_that_took_too_long_fails_when_it_is_over(inline, tmp_path):
    @inline.remote(timeout=0.02)
    def slow():
        time.sleep(0.05)
        (tmp_path / "ended").touch()

    with pytest.raises(TaskTimeoutError):
        inline.get(slow.remote())
    assert (tmp_path / "ended").exists()


def test_what_is_in_time_is_not_touched(inline):
    @inline.remote(timeout=60)
    async def quick(x):
        return x

    assert inline.get(quick.remote(1)) == 1
    assert inline.get(inline.remote(timeout=60)(lambda: 2).remote()) == 2


def test_a_timeout_error_of_the_task_itself_is_its_own(inline):
    @inline.remote(timeout=60)
    def raises():
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine") as caught:
        inline.get(raises.remote())
    assert not isinstance(caught.value, TaskTimeoutError)


@pytest.mark.parametrize(("retry_exceptions", "attempts"), [(True, 3), ([ValueError], 1)])
def test_a_limit_is_retried_when_retry_exceptions_says_so(inline, retry_exceptions, attempts):
    f = inline.remote(timeout=0.01, max_retries=2, retry_exceptions=retry_exceptions)(time.sleep)
    with pytest.raises(TaskTimeoutError) as caught:
        inline.get(f.remote(0.02))
    assert caught.value.attempt == attempts


def test_pauses_between_attempts_are_slept(inline):
    @inline.remote(max_retries=2, retry_exceptions=True, retry_delay=0.05, retry_backoff=2)
    def fails():
        raise ValueError

    began = time.monotonic()
    with pytest.raises(ValueError):
        inline.get(fails.remote())
    assert time.monotonic() - began >= 0.15
