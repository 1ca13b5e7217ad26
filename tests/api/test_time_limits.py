"""``timeout=``, pauses between attempts, and what happens to who does not stop."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import pickle
import time
from pathlib import Path

import pytest
from tests.gates import Gate, eventually

from taskloom.exceptions import RayError, SessionClosedError, TaskCancelledError, TaskTimeoutError

SESSION = {"num_cpus": 2, "cancel_grace": 0.5}
LIMIT_S = 0.5
"""Enough to begin even on a busy machine, for tasks that are to be seen beginning."""


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def all_free(tl) -> bool:
    return eventually(lambda: tl.available_resources().get("CPU") == 2.0)


# -- timeout= -----------------------------------------------------------------------------------


def test_a_task_that_runs_too_long_fails_and_its_worker_lives(tl, gate):
    @tl.remote(timeout=LIMIT_S, max_retries=0)
    def slow():
        try:
            gate.note("in")
            time.sleep(1000)
        finally:
            gate.note("out")

    ref = slow.remote()
    with pytest.raises(TaskTimeoutError, match=r"The task slow .*timeout of 0.5 s \(attempt 1\)"):
        tl.get(ref)
    gate.wait_for("out")
    assert all_free(tl)
    assert not is_gone(gate.pids("in")[0])


def test_the_error_is_a_timeout_error_of_taskloom_and_knows_its_facts(tl):
    ref = tl.remote(time.sleep).options(timeout=0.1, name="nap").remote(1000)
    with pytest.raises(TimeoutError) as caught:
        tl.get(ref)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert isinstance(error, TaskTimeoutError)
        assert isinstance(error, RayError)
        assert (error.task_name, error.timeout_s, error.attempt) == ("nap", 0.1, 1)


def test_a_busy_loop_is_stopped_too(tl):
    @tl.remote(timeout=0.2)
    def spin():
        while True:
            pass

    with pytest.raises(TaskTimeoutError):
        tl.get(spin.remote())
    assert all_free(tl)


def test_a_coroutine_gets_a_cancelled_error_and_its_neighbours_nothing(tl, gate):
    @tl.remote
    async def stay(name):
        try:
            gate.note(name)
            while gate.count("leave") == 0:
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            gate.note(f"{name} cancelled")
            raise
        return name

    neighbour = stay.remote("neighbour")
    gate.wait_for("neighbour")
    with pytest.raises(TaskTimeoutError):
        tl.get(stay.options(timeout=LIMIT_S).remote("slow"))
    gate.wait_for("slow cancelled")
    gate.note("leave")
    assert tl.get(neighbour) == "neighbour"


def test_the_time_in_the_queue_does_not_count(tl, gate):
    held = tl.remote(num_cpus=2)(gate.enter).remote()
    gate.wait_for()
    waiting = [tl.remote(timeout=0.3)(lambda: 1).remote() for _ in range(5)]
    time.sleep(0.6)  # twice the limit
    gate.open()
    assert tl.get([held, *waiting]) == [None, 1, 1, 1, 1, 1]


def test_the_time_in_get_counts(tl, gate):
    @tl.remote(timeout=4 * LIMIT_S)
    def outer():
        import taskloom

        inner = taskloom.remote(gate.enter).remote("inner")
        try:
            taskloom.get(inner)
        except BaseException as error:
            gate.note(type(error).__name__)
            raise

    with pytest.raises(TaskTimeoutError):
        tl.get(outer.remote())
    gate.wait_for("KeyboardInterrupt")
    assert all_free(tl)  # the child was cancelled: nobody opened the gate


def test_dependents_fail_with_the_error(tl):
    slow = tl.remote(time.sleep).options(timeout=0.1).remote(1000)
    after = tl.remote(lambda x: x).remote(slow)
    with pytest.raises(TaskTimeoutError):
        tl.get(after)


def test_short_tasks_with_limits_are_as_good_as_any(tl):
    f = tl.remote(timeout=30)(lambda x: x)
    assert tl.get([f.remote(n) for n in range(3000)]) == list(range(3000))


def test_a_limit_given_in_a_task_counts_too(tl):
    @tl.remote
    def outer():
        import taskloom

        inner = taskloom.remote(time.sleep).options(timeout=LIMIT_S, max_retries=0)
        try:
            taskloom.get(inner.remote(1000))
        except taskloom.exceptions.TaskTimeoutError as error:
            return error.timeout_s

    assert tl.get(outer.remote()) == LIMIT_S


def test_a_limit_may_be_taken_away_again(tl):
    f = tl.remote(timeout=0.05)(lambda: time.sleep(0.2))
    with pytest.raises(TaskTimeoutError):
        tl.get(f.remote())
    assert tl.get(f.options(timeout=None).remote()) is None


# -- timeout= and retries -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry_exceptions", "attempts"),
    [
        (False, 1),
        (True, 3),
        ([TimeoutError], 3),
        ([TaskTimeoutError], 3),
        ([ValueError], 1),
        ([], 1),
    ],
)
def test_a_limit_is_retried_when_retry_exceptions_says_so(tl, gate, retry_exceptions, attempts):
    @tl.remote(timeout=LIMIT_S, max_retries=2, retry_exceptions=retry_exceptions)
    def slow():
        gate.note("attempt")
        time.sleep(1000)

    with pytest.raises(TaskTimeoutError) as caught:
        tl.get(slow.remote())
    assert gate.count("attempt") == caught.value.attempt == attempts


def test_the_limit_holds_for_each_attempt_and_the_next_may_be_in_time(tl, gate):
    @tl.remote(timeout=LIMIT_S, max_retries=2, retry_exceptions=True)
    def slow_at_first():
        gate.note("attempt")
        if gate.count("attempt") < 3:
            time.sleep(1000)
        return "in time"

    assert tl.get(slow_at_first.remote()) == "in time"


def test_a_task_in_a_task_is_retried_by_the_classes_it_names(tl, gate):
    @tl.remote
    def outer():
        import taskloom

        def slow():
            gate.note("attempt")
            time.sleep(1000)

        inner = taskloom.remote(slow).options(
            timeout=LIMIT_S, max_retries=1, retry_exceptions=[TimeoutError]
        )
        try:
            taskloom.get(inner.remote())
        except taskloom.exceptions.TaskTimeoutError as error:
            return error.attempt

    assert tl.get(outer.remote()) == 2
    assert gate.count("attempt") == 2


def test_two_attempts_never_overlap(tl, gate):
    @tl.remote(timeout=LIMIT_S, max_retries=2, retry_exceptions=True)
    def slow():
        if gate.count("in") != gate.count("out"):
            gate.note("overlap")
        try:
            gate.note("in")
            time.sleep(1000)
        except KeyboardInterrupt:
            time.sleep(0.2)  # takes its time to clean up
            raise
        finally:
            gate.note("out")

    with pytest.raises(TaskTimeoutError):
        tl.get(slow.remote())
    gate.wait_for("out", 3)
    assert gate.count("overlap") == 0


# -- retry_delay= and its companions ------------------------------------------------------------


def test_pauses_are_as_long_as_they_were_asked_for(tl, gate, tmp_path):
    path = tmp_path / "times"

    @tl.remote(max_retries=3, retry_exceptions=True, retry_delay=0.1, retry_backoff=2)
    def failing():
        with path.open("a") as file:
            file.write(f"{time.monotonic()}\n")
        raise ValueError

    with pytest.raises(ValueError):
        tl.get(failing.remote())
    times = [float(line) for line in path.read_text().split()]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(pauses) == 3
    assert all(pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True))


def test_a_worker_that_dies_is_paused_for_too(tl, tmp_path):
    path = tmp_path / "times"

    @tl.remote(max_retries=1, retry_delay=0.3)
    def dying():
        with path.open("a") as file:
            file.write(f"{time.monotonic()}\n")
        os._exit(3)

    with pytest.raises(RayError, match="exited with code 3"):
        tl.get(dying.remote())
    first, second = map(float, path.read_text().split())
    assert second - first >= 0.3


def test_a_task_is_cancelled_in_a_pause_at_once(tl, gate):
    @tl.remote(max_retries=5, retry_exceptions=True, retry_delay=1000)
    def failing():
        gate.note("attempt")
        raise ValueError

    ref = failing.remote()
    gate.wait_for("attempt")
    assert all_free(tl)  # it is in its pause now
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref, timeout=20)
    assert gate.count("attempt") == 1


def test_a_session_ends_while_tasks_pause(fresh, gate):
    @fresh.remote(max_retries=-1, retry_exceptions=True, retry_delay=1000)
    def failing():
        gate.note("attempt")
        raise ValueError

    fresh.init(num_cpus=1)
    future = failing.remote().future()
    gate.wait_for("attempt")
    fresh.shutdown()
    assert isinstance(future.exception(20), SessionClosedError)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": math.nan},
        {"retry_delay": -1},
        {"retry_delay": 1, "retry_backoff": 0.5},
        {"retry_delay": 1, "retry_jitter": 2},
        {"retry_backoff": 2},
        {"retry_jitter": 0.1},
    ],
)
def test_what_makes_no_sense_is_refused_where_it_is_said(tl, options):
    with pytest.raises(ValueError):
        tl.remote(**options)
    with pytest.raises(ValueError):
        tl.remote(lambda: 1).options(**options)


def test_a_delay_may_be_shaped_later(tl):
    f = tl.remote(retry_delay=0.1)(lambda: 1)
    assert tl.get(f.options(retry_backoff=2, retry_jitter=1).remote()) == 1
    with pytest.raises(ValueError, match="needs 'retry_delay'"):
        f.options(retry_delay=None, retry_backoff=2)


def test_a_limit_of_thirty_thousand_years_is_none(tl):
    f = tl.remote(timeout=1e12)(lambda: 1)
    assert tl.get([f.remote() for _ in range(10)]) == [1] * 10


# -- who does not stop --------------------------------------------------------------------------


def make_stubborn():
    """By value: what is imported for it does not count as its time."""

    def stubborn(gate):
        came = "in"
        while True:
            try:
                gate.note(came)  # in here: once it can be seen, the interrupt may come
                came = "on"
                time.sleep(1000)
            except BaseException:
                gate.note("swallowed")

    return stubborn


def test_a_task_that_swallows_the_interrupt_is_killed_and_the_slot_comes_back_FAULTS_62(tl, gate):
    ref = tl.remote(make_stubborn()).remote(gate)
    (pid,) = gate.wait_for("in")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref)
    assert eventually(lambda: is_gone(pid))
    assert all_free(tl)
    assert gate.count("swallowed") == 1
    assert gate.count("in") == 1


def test_a_task_that_swallows_the_limit_is_killed_and_its_ref_failed_long_before(tl, gate):
    ref = tl.remote(make_stubborn()).options(timeout=LIMIT_S).remote(gate)
    with pytest.raises(TaskTimeoutError):
        tl.get(ref)
    assert eventually(lambda: is_gone(gate.pids("in")[0]))
    assert all_free(tl)


def test_a_task_that_swallows_the_limit_is_retried_after_its_worker_is_gone(tl, gate):
    f = tl.remote(timeout=LIMIT_S, max_retries=1, retry_exceptions=True)(make_stubborn())
    with pytest.raises(TaskTimeoutError) as caught:
        tl.get(f.remote(gate))
    assert caught.value.attempt == 2
    first, second = gate.pids("in")
    assert first != second
    assert eventually(lambda: is_gone(first) and is_gone(second))


def test_what_is_queued_behind_who_does_not_stop_runs_elsewhere_at_no_cost(tl, gate):
    ref = tl.remote(make_stubborn()).options(num_cpus=2).remote(gate)
    gate.wait_for("in")
    after = [tl.remote(max_retries=0)(gate.note).remote("after") for _ in range(10)]
    tl.cancel(ref)
    assert tl.get(after) == [None] * 10
    assert gate.count("after") == 10


def test_a_coroutine_that_swallows_its_cancellation_takes_no_neighbour_with_it(tl, gate):
    @tl.remote
    async def stay(name):
        gate.note(name)
        while gate.count(f"{name} leave") == 0:
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                gate.note("swallowed")
        return os.getpid()

    deaf, neighbour = stay.remote("deaf"), stay.remote("neighbour")
    (pid,) = gate.wait_for("deaf")
    assert gate.wait_for("neighbour") == [pid]
    tl.cancel(deaf)
    gate.wait_for("swallowed")
    later = [stay.options(max_retries=0).remote("later")]

    def is_elsewhere() -> bool:
        # Until the grace period is over it is still offered work.
        later.append(stay.options(max_retries=0).remote("later"))
        return any(other != pid for other in gate.pids("later"))

    assert eventually(is_elsewhere)
    assert not is_gone(pid)
    gate.note("neighbour leave")
    gate.note("later leave")
    assert tl.get(neighbour) == pid
    assert eventually(lambda: is_gone(pid))
    tl.get(later)


def test_a_grace_period_must_make_sense(fresh):
    for wrong, error in ((-1, ValueError), (math.nan, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="cancel_grace"):
            fresh.init(cancel_grace=wrong)


def test_an_infinite_grace_period_waits_for_ever(fresh, gate):
    fresh.init(num_cpus=1, cancel_grace=math.inf)
    ref = fresh.remote(make_stubborn()).remote(gate)
    (pid,) = gate.wait_for("in")
    fresh.cancel(ref)
    gate.wait_for("swallowed")
    assert not is_gone(pid)
    fresh.cancel(ref, force=True)
    assert eventually(lambda: is_gone(pid))


# -- odd times ----------------------------------------------------------------------------------

NEVER_OVER = [1e12, 1e300, math.inf]
NO_TIME = [-0.5, math.nan]


def wait_and_get(taskloom, timeout):
    ref = taskloom.remote(time.sleep).options(num_cpus=0).remote(0.05)
    ready, _ = taskloom.wait([ref], timeout=timeout)
    return len(ready), taskloom.get(ref, timeout=timeout)


@pytest.mark.parametrize("timeout", NEVER_OVER)
def test_a_time_that_is_never_over_is_no_limit_in_the_driver_or_in_a_task(tl, timeout):
    @tl.remote
    def in_task():
        import taskloom

        return wait_and_get(taskloom, timeout)

    assert wait_and_get(tl, timeout) == (1, None)
    assert tl.get(in_task.remote()) == (1, None)


@pytest.mark.parametrize("timeout", NO_TIME)
def test_what_is_no_time_is_refused_in_the_driver_and_in_a_task(tl, timeout):
    def refusals(taskloom):
        ref = taskloom.put(1)
        texts = []
        for wait in (
            lambda: taskloom.get(ref, timeout=timeout),
            lambda: taskloom.wait([ref], timeout=timeout),
        ):
            try:
                wait()
            except ValueError as error:
                texts.append(str(error))
        return texts

    @tl.remote
    def in_task():
        import taskloom

        return refusals(taskloom)

    assert len(refusals(tl)) == 2
    assert tl.get(in_task.remote()) == refusals(tl)


@pytest.mark.parametrize("timeout", NEVER_OVER)
async def test_a_time_that_is_never_over_is_no_limit_for_a_coroutine(tl, timeout):
    ref = tl.remote(time.sleep).remote(0.05)
    ready, _ = await tl.wait_async([ref], timeout=timeout)
    assert ready == [ref]
    async with asyncio.timeout(timeout):
        assert await tl.remote(lambda: 1).remote() == 1


@pytest.mark.parametrize("timeout", [0, -1])
async def test_asyncio_decides_about_its_own_timeouts(tl, gate, timeout):
    ref = tl.remote(gate.enter).remote()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(timeout):
            await ref
    gate.open()
    assert await ref is None  # a live ref is interest enough to let it go on
