"""Cancelling: what waits, what runs, what was submitted by it, and the await that was cancelled."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.conformance.subjects import AT_ONCE, LONG_S, add
from tests.gates import Gate, eventually

import taskloom as tl
from taskloom.exceptions import RayError, TaskCancelledError, WorkerCrashedError

too_late = pytest.mark.differs("local_mode", f"{AT_ONCE}, so nothing can be cancelled")


@tl.remote
def sleep(gate):
    try:
        gate.note("began")  # in here: once it can be seen, the interrupt may come
        time.sleep(60)
    except KeyboardInterrupt:
        gate.note("told")
        raise


@too_late
def test_a_running_task_is_interrupted_and_may_clean_up(tmp_path):
    gate = Gate(tmp_path)
    ref = sleep.remote(gate)
    gate.wait_for("began")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref, timeout=LONG_S)
    gate.wait_for("told")


@too_late
def test_a_task_that_has_not_begun_never_runs(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote(num_cpus=0.1, resources={"slot": 4})
    def occupy(name):
        gate.note(name)
        gate.stay()

    first = occupy.remote("first")
    gate.wait_for("first")
    second = occupy.remote("second")
    tl.cancel(second)
    with pytest.raises(TaskCancelledError):
        tl.get(second, timeout=LONG_S)
    gate.open()
    tl.get(first, timeout=LONG_S)
    assert gate.count("second") == 0


@too_late
def test_a_coroutine_gets_a_cancelled_error(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    async def doze():
        gate.note("began")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            gate.note("told")
            raise

    ref = doze.remote()
    gate.wait_for("began")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref, timeout=LONG_S)
    gate.wait_for("told")


@too_late
def test_what_a_task_has_submitted_is_cancelled_with_it(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def parent():
        tl.get(sleep.remote(gate))

    ref = parent.remote()
    gate.wait_for("began")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref, timeout=LONG_S)
    gate.wait_for("told")


@too_late
def test_dependents_of_a_cancelled_task_fail(tmp_path):
    gate = Gate(tmp_path)
    ref = sleep.remote(gate)
    dependent = add.remote(ref, 1)
    gate.wait_for("began")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(dependent, timeout=LONG_S)


@too_late
def test_force_ends_a_task_that_does_not_listen(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def stubborn():
        gate.note("began")
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass

    ref = stubborn.remote()
    gate.wait_for("began")
    tl.cancel(ref, force=True)
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        tl.get(ref, timeout=LONG_S)


def test_cancelling_what_is_done_changes_nothing():
    ref = add.remote(1, 2)
    assert tl.get(ref) == 3
    tl.cancel(ref)
    assert tl.get(ref) == 3


@too_late
def test_the_next_task_is_not_hurt_by_a_cancel(tmp_path):
    for n in range(3):
        directory = tmp_path / str(n)
        directory.mkdir()
        gate = Gate(directory)
        ref = sleep.remote(gate)
        gate.wait_for("began")
        tl.cancel(ref)
        assert tl.get([add.remote(k, 0) for k in range(4)], timeout=LONG_S) == [0, 1, 2, 3]
        with pytest.raises(TaskCancelledError):
            tl.get(ref, timeout=LONG_S)


@too_late
def test_a_task_may_ask_whether_it_was_cancelled(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def ask():
        try:
            gate.note("began")
            time.sleep(60)
        except KeyboardInterrupt:
            if tl.get_runtime_context().is_canceled():
                gate.note("knew")
            raise

    ref = ask.remote()
    gate.wait_for("began")
    tl.cancel(ref)
    with pytest.raises(TaskCancelledError):
        tl.get(ref, timeout=LONG_S)
    gate.wait_for("knew")


@too_late
def test_an_await_that_is_cancelled_cancels_the_task_when_nobody_else_wants_it(tmp_path):
    gate = Gate(tmp_path)

    async def main():
        async def wait():
            await sleep.remote(gate)

        task = asyncio.create_task(wait())
        await asyncio.to_thread(gate.wait_for, "began")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(gate.wait_for, "told")

    asyncio.run(main())


@too_late
def test_an_asyncio_timeout_around_an_await_cancels_the_task(tmp_path):
    gate = Gate(tmp_path)

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(LONG_S) as limit:
                ref = sleep.remote(gate)
                await asyncio.to_thread(gate.wait_for, "began")
                limit.reschedule(0)
                waiting, ref = ref, None
                await _give_up(waiting)
        del waiting
        await asyncio.to_thread(gate.wait_for, "told")

    asyncio.run(main())


async def _give_up(ref):
    await ref


@too_late
def test_a_cancelled_ref_says_so():
    @tl.remote(num_cpus=0.1, resources={"slot": 4})
    def occupy():
        time.sleep(60)

    first, second = occupy.remote(), occupy.remote()
    for ref in (second, first):
        tl.cancel(ref)
    tl.wait([first, second], num_returns=2, timeout=LONG_S)
    assert eventually(second.cancelled)
    for ref in (first, second):
        with pytest.raises(RayError):
            tl.get(ref, timeout=LONG_S)


@too_late
def test_what_a_task_has_submitted_goes_on_when_the_cancel_is_not_recursive(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def child():
        gate.enter("began")
        gate.note("ended")

    @tl.remote
    def parent():
        tl.get(child.remote())

    ref = parent.remote()
    gate.wait_for("began")
    tl.cancel(ref, recursive=False)
    with pytest.raises(TaskCancelledError):
        tl.get(ref, timeout=LONG_S)
    gate.open()
    gate.wait_for("ended")


@too_late
def test_a_task_may_cancel_what_it_has_submitted(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def parent():
        ref = sleep.remote(gate)
        gate.wait_for("began")
        tl.cancel(ref)
        try:
            tl.get(ref)
        except TaskCancelledError:
            return "cancelled"

    assert tl.get(parent.remote(), timeout=LONG_S) == "cancelled"


@too_late
def test_a_stream_can_be_cancelled(tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def items():
        try:
            yield "first"
            gate.note("began")
            time.sleep(60)
        except KeyboardInterrupt:
            gate.note("told")
            raise

    stream = items.remote()
    assert tl.get(next(stream), timeout=LONG_S) == "first"
    gate.wait_for("began")
    tl.cancel(stream)
    with pytest.raises((TaskCancelledError, StopIteration)):
        tl.get(next(stream), timeout=LONG_S)
    gate.wait_for("told")
