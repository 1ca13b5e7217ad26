"""``get``, ``put`` and ``wait`` against real workers (rows GET, PUT, WAIT of the reference)."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from types import ModuleType

import pytest
from tests.gates import Gate

from taskloom.exceptions import BlockingGetWarning, GetTimeoutError


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


# -- get ----------------------------------------------------------------------------------------


def test_values_come_in_the_order_of_the_refs_GET_1(tl: ModuleType, gate):
    @tl.remote
    def first():
        gate.enter()
        return "first"

    @tl.remote
    def second():
        gate.open()
        return "second"

    refs = [first.remote(), second.remote()]

    assert tl.get(refs) == ["first", "second"]
    assert tl.get(refs[0]) == "first"


def test_any_sequence_of_refs_will_do_GET_1(tl):
    refs = [tl.put(n) for n in range(3)]

    assert tl.get(tuple(refs)) == (0, 1, 2)
    assert tl.get([]) == []
    assert tl.get(()) == ()
    assert tl.get([refs[0]] * 3) == [0, 0, 0]


def test_each_get_gives_a_value_of_its_own_GET_1(tl):
    ref = tl.remote(lambda: [1]).remote()
    tl.get(ref).append(2)

    assert tl.get(ref) == [1]


def test_get_raises_as_soon_as_one_has_failed_GET_2(tl, gate):
    slow = tl.remote(gate.enter).remote()
    failing = tl.remote(lambda: 1 / 0).remote()
    with pytest.raises(ZeroDivisionError):
        tl.get([slow, failing], timeout=20)

    assert not slow.done()
    gate.open()
    tl.get(slow)


def test_of_several_errors_the_first_of_the_list_is_raised_GET_2(tl):
    def fail(error):
        raise error

    fail = tl.remote(fail)
    refs = [fail.remote(KeyError("a")), fail.remote(ValueError("b"))]
    tl.wait(refs, num_returns=2)

    with pytest.raises(KeyError):
        tl.get(refs)
    with pytest.raises(ValueError, match="b"):
        tl.get(refs[::-1])


@pytest.mark.parametrize("others", [0, 1], ids=["one", "one of two"])
def test_one_ref_is_fetched_as_one_of_many_is_GET_1(tl, gate, others):
    companions = [tl.put(None)] * others
    slow = tl.remote(gate.enter).remote()

    def get(ref, timeout=None):
        return tl.get([ref, *companions], timeout=timeout)[0]

    assert get(tl.remote(lambda: "value").remote()) == "value"
    with pytest.raises(ZeroDivisionError):
        get(tl.remote(lambda: 1 / 0).remote())
    for timeout in (0, 0.01):
        with pytest.raises(GetTimeoutError, match=f"1 of {1 + others} objects are not there"):
            get(slow, timeout)
    gate.open()
    get(slow)
    for timeout in (None, 0, 1):
        get(slow, timeout)


def test_get_gives_up_in_time_and_the_task_goes_on_GET_3(tl, gate):
    @tl.remote
    def held():
        gate.enter()
        return "value"

    ref = held.remote()
    with pytest.raises(GetTimeoutError, match=r"0\.05") as raised:
        tl.get(ref, timeout=0.05)
    assert isinstance(raised.value, TimeoutError)
    with pytest.raises(TimeoutError):
        tl.get([tl.put(1), ref], timeout=0)
    gate.open()

    assert tl.get(ref, timeout=-1) == "value"
    assert tl.get(ref, timeout=0) == "value"


@pytest.mark.parametrize("timeout", [-2, float("nan")])
def test_a_timeout_that_is_none_is_refused_GET_3(tl, timeout):
    with pytest.raises(ValueError):
        tl.get(tl.put(1), timeout=timeout)


@pytest.mark.parametrize("bad", [[1], [None], ["ref"], [[]]])
def test_an_element_that_is_no_ref_is_a_type_error_GET_4(tl, bad):
    with pytest.raises(TypeError, match=r"Attempting to call `get` on the value"):
        tl.get([tl.put(1), *bad])


@pytest.mark.parametrize("bad", [1, None, "ref", {1: 2}])
def test_what_is_no_sequence_is_a_value_error_GET_1(tl, bad):
    with pytest.raises(ValueError, match="Invalid type of object refs"):
        tl.get(bad)


def test_get_of_a_remote_function_or_coroutine_says_what_is_wrong_GET_1(tl):
    with pytest.raises((TypeError, ValueError)):
        tl.get(tl.remote(lambda: 1))


def test_ctrl_c_interrupts_get_and_the_session_goes_on_GET_6(run_driver):
    done = run_driver(
        """
import os, signal, threading, time
import taskloom as ray

@ray.remote
def forever():
    while True: time.sleep(0.01)

ray.init(num_cpus=2)
f = ray.remote(lambda: 1)
ray.get(f.remote())
ref = forever.remote()
def interrupt():
    while not ref._home._sleepers.waiting(ref._record): time.sleep(0.001)
    global sent
    sent = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    ray.get(ref)
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - sent < 5)
print(ray.get(f.remote()))
ray.cancel(ref, force=True)
"""
    )
    assert done.stdout == "interrupted True\n1\n", done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_interrupts_wait_GET_6(run_driver):
    done = run_driver(
        """
import os, signal, threading, time
import taskloom as ray

ray.init(num_cpus=1)
ref = ray.remote(time.sleep).remote(1000)
def interrupt():
    while not ref._record.waiters: time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    ray.wait([ref])
except KeyboardInterrupt:
    print("interrupted")
"""
    )
    assert done.stdout == "interrupted\n", done.stderr


def test_a_blocking_get_in_a_coroutine_works_and_warns_once_for_each_line_GET_7(tl):
    f = tl.remote(lambda x: x)

    async def main():
        return [
            tl.get(f.remote(0)),
            *(tl.get(f.remote(n)) for n in (1, 2)),
        ]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert asyncio.run(main()) == [0, 1, 2]
    blocking = [w for w in caught if issubclass(w.category, BlockingGetWarning)]
    first = main.__code__.co_firstlineno
    assert [w.lineno - first for w in blocking] == [2, 3]
    assert f"{__file__}:{first + 2}" in str(blocking[0].message)
    assert blocking[0].filename == __file__


def test_a_blocking_get_in_a_coroutine_cannot_deadlock_with_awaits_GET_7(tl):
    @tl.remote
    async def inner(x):
        return x + 1

    async def main():
        first = asyncio.ensure_future(inner.remote(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            second = tl.get(inner.remote(2))
            third = tl.get(inner.remote(3))
        return await first, second, third

    assert asyncio.run(main()) == (2, 3, 4)


def test_get_works_in_many_threads_at_once(tl):
    f = tl.remote(lambda x: x)
    refs = [f.remote(n) for n in range(50)]
    answers: list[object] = []

    def ask() -> None:
        answers.append(tl.get(refs))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert answers == [list(range(50))] * 8


# -- put ----------------------------------------------------------------------------------------


def test_put_keeps_a_snapshot_PUT_1(tl):
    value = [1]
    ref = tl.put(value)
    value.append(2)

    assert tl.get(ref) == [1]
    assert tl.get(tl.remote(lambda v: v).remote(ref)) == [1]


def test_put_takes_no_ref_and_no_owner_PUT_1(tl):
    with pytest.raises(TypeError, match="Calling 'put' on an ray.ObjectRef is not allowed"):
        tl.put(tl.put(1))
    with pytest.raises(ValueError, match="owner"):
        tl.put(1, _owner=object())


def test_what_cannot_be_pickled_cannot_be_put_and_is_named_PUT_1(tl):
    with pytest.raises(TypeError, match="inner"):
        tl.put({"inner": threading.Lock()})


def test_large_and_small_values_can_be_put_PUT_1(tl):
    for size in (0, 1, 100_000, 5_000_000):
        assert tl.get(tl.put(b"x" * size)) == b"x" * size


def test_put_works_inside_a_task_PUT_1(tl):
    def make():
        import taskloom

        return [taskloom.put(n) for n in range(3)]

    assert tl.get(tl.get(tl.remote(make).remote())) == [0, 1, 2]


def test_a_ref_inside_a_value_keeps_its_object_PUT_2(tl):
    inner = tl.put("kept")
    outer = tl.put([inner])
    del inner
    gc.collect()

    assert tl.get(tl.get(outer)[0]) == "kept"


def test_a_ref_inside_a_pending_tasks_argument_keeps_its_object_PUT_2(tl, gate):
    @tl.remote(num_cpus=0)
    def held():
        gate.enter()

    @tl.remote
    def open_box(box, _):
        import taskloom

        return taskloom.get(box["ref"])

    ref = open_box.remote({"ref": tl.put("kept")}, held.remote())
    gc.collect()
    gate.wait_for()
    gate.open()

    assert tl.get(ref) == "kept"


# -- wait ---------------------------------------------------------------------------------------


def test_wait_returns_at_most_what_was_asked_for_in_the_order_of_the_list_WAIT_1(tl):
    refs = [tl.put(n) for n in range(3)]

    ready, rest = tl.wait(refs)
    assert (len(ready), len(rest)) == (1, 2)
    assert [*ready, *rest] == refs
    assert tl.wait(refs, num_returns=2) == (refs[:2], refs[2:])
    assert tl.wait(refs, num_returns=3) == (refs, [])


def test_both_lists_of_wait_keep_the_order_of_the_argument_WAIT_1(tl, gate):
    held = tl.remote(num_cpus=0)(gate.enter)
    quick = tl.remote(num_cpus=0)(lambda: None)
    refs = [held.remote(), quick.remote(), held.remote(), quick.remote()]

    assert tl.wait(refs, num_returns=2) == ([refs[1], refs[3]], [refs[0], refs[2]])
    gate.open()
    tl.get(refs)


def test_wait_gives_up_in_time_WAIT_1(tl, gate):
    refs = [tl.put(1), tl.remote(gate.enter).remote()]

    assert tl.wait(refs, num_returns=2, timeout=0.05) == (refs[:1], refs[1:])
    assert tl.wait(refs, num_returns=2, timeout=0) == (refs[:1], refs[1:])
    gate.open()
    assert tl.wait(refs, num_returns=2, timeout=20) == (refs, [])


def test_failed_and_cancelled_refs_count_as_ready_and_nothing_is_raised_WAIT_1(tl, gate):
    held = tl.remote(num_cpus=2)(gate.enter).remote()
    gate.wait_for()
    cancelled = tl.remote(lambda: 1).remote()
    tl.cancel(cancelled)
    failed = tl.remote(num_cpus=0)(lambda: 1 / 0).remote()

    assert tl.wait([held, failed, cancelled], num_returns=2) == ([failed, cancelled], [held])
    gate.open()
    tl.get(held)


def test_wait_in_a_loop_sees_every_task_once_WAIT_1(tl):
    f = tl.remote(lambda n: n)
    unfinished = [f.remote(n) for n in range(50)]
    seen = []
    while unfinished:
        ready, unfinished = tl.wait(unfinished)
        seen += tl.get(ready)

    assert sorted(seen) == list(range(50))


def test_wait_says_what_is_wrong_with_its_arguments_WAIT_2(tl):
    ref, other = tl.put(1), tl.put(2)

    for wrong in (ref, (ref,), {ref}, [1], [ref, None]):
        with pytest.raises(TypeError):
            tl.wait(wrong)
    with pytest.raises(ValueError, match="Wait requires a list of unique ray_waitables"):
        tl.wait([ref, ref])
    for number in (0, -1, 3):
        with pytest.raises(ValueError):
            tl.wait([ref, other], num_returns=number)
    with pytest.raises(ValueError):
        tl.wait([ref], timeout=-1)
    assert tl.wait([]) == ([], [])


async def test_wait_async_returns_the_same_pair_without_fetching_WAIT_4(tl, gate):
    class Counting:
        def __reduce__(self):
            return gate.note, ("unpickled",)

    held = tl.remote(num_cpus=0)(gate.enter).remote()
    made = tl.remote(num_cpus=0)(lambda: Counting()).remote()
    refs = [held, made]

    assert await tl.wait_async(refs) == ([made], [held])
    assert await tl.wait_async(refs, num_returns=2, timeout=0.05) == ([made], [held])
    assert gate.count("unpickled") == 0
    gate.open()
    assert await tl.wait_async(refs, num_returns=2) == (refs, [])


async def test_wait_async_leaves_the_loop_free_WAIT_4(tl, gate):
    held = tl.remote(gate.enter).remote()
    waiting = asyncio.ensure_future(tl.wait_async([held]))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    gate.open()

    assert await waiting == ([held], [])


def test_waiting_and_getting_inside_a_task(tl):
    @tl.remote
    def inside():
        import taskloom

        f = taskloom.remote(lambda n: n)
        refs = [f.remote(n) for n in range(4)]
        ready, rest = taskloom.wait(refs, num_returns=4)
        try:
            taskloom.get(taskloom.remote(time.sleep).options(num_cpus=0).remote(100), timeout=0.05)
        except TimeoutError:
            return taskloom.get(ready), rest, taskloom.wait(refs, num_returns=2)[1] == refs[2:]
        return None

    assert tl.get(inside.remote()) == ([0, 1, 2, 3], [], True)
    tl.shutdown()  # and with it the long sleep


def test_a_value_is_unpickled_by_each_who_asks_and_only_fails_him(tl, gate):
    class Bomb:
        def __init__(self):
            pass

        def __reduce__(self):
            return gate.stay, (0.0,)  # raises TimeoutError while the gate is shut

    ref = tl.remote(lambda: Bomb()).remote()
    for _ in range(2):
        with pytest.raises(TimeoutError, match="nobody opened"):
            tl.get(ref)
    assert tl.get(tl.put(1)) == 1
    gate.open()
    assert tl.get(ref) is None


def test_ctrl_c_behind_the_last_value_stays_what_it_is(tl, monkeypatch):
    def interrupted(payloads, values):
        values += [None] * len(payloads)
        raise KeyboardInterrupt

    refs = [tl.put(1), tl.put(2)]
    monkeypatch.setattr("taskloom.backends.local.unpack_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tl.get(refs)
    monkeypatch.undo()
    assert tl.get(refs) == [1, 2]
