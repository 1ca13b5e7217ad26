"""Cancelling an ``await`` cancels the task when, and only when, nobody else wants its result."""

from __future__ import annotations

import asyncio

import pytest

import taskloom
from gates import Gate, eventually
from taskloom import _current

SESSION = {"num_cpus": 1}


def free_cpus() -> float:
    return taskloom.available_resources().get("CPU", 0.0)


def pending() -> int:
    backend = _current.peek()
    assert backend is not None
    count: int = backend._portal.call(lambda: len(backend._engine.loom.graph.nodes))  # type: ignore[attr-defined]
    return count


async def test_a_task_is_cancelled_when_its_last_awaiter_was(tl, tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def held():
        gate.stay()

    # Not pytest.raises: it keeps the traceback, whose frames hold the ref.
    try:
        await asyncio.wait_for(held.remote(), 0.2)
    except TimeoutError:
        pass
    else:
        pytest.fail("it did not time out")
    async with asyncio.timeout(20):  # the loop has to turn: it holds the last traces of the wait
        while pending():
            await asyncio.sleep(0.01)
    assert eventually(lambda: free_cpus() == 1.0, 20)


async def test_a_live_ref_keeps_the_task_going(tl, tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def held():
        gate.stay()
        return "value"

    ref = held.remote()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ref, 0.2)
    gate.open()
    assert await ref == "value"


async def test_a_dependent_task_keeps_it_going(tl, tmp_path):
    gate = Gate(tmp_path)

    @tl.remote
    def held():
        gate.stay()
        return 1

    @tl.remote
    def then(value):
        return value + 1

    ref = held.remote()
    last = then.remote(ref)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ref, 0.2)
    del ref
    gate.open()
    assert await last == 2


async def test_dropping_a_ref_that_was_never_awaited_cancels_nothing(tl, tmp_path):
    done = tmp_path / "done"

    @tl.remote
    def leave_a_trace():
        done.write_text("here")

    leave_a_trace.remote()
    assert eventually(done.exists, 20)


def test_it_can_be_switched_off(fresh, tmp_path):
    gate, done = Gate(tmp_path), tmp_path / "done"

    @taskloom.remote
    def held():
        gate.stay()
        done.write_text("here")

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(held.remote(), 0.2)

    with taskloom.init(num_cpus=1, await_cancels=False):
        asyncio.run(main())
        gate.open()
        assert eventually(done.exists, 20)


def test_an_error_that_comes_instead_of_the_cancel_is_not_printed_as_unseen(run_driver, tmp_path):
    done = run_driver(
        f"""
import asyncio, os, time
import taskloom

@taskloom.remote
def fail_late(path, text):
    while not os.path.exists(path):
        time.sleep(0.01)
    raise ValueError(text)

async def main():
    given_up = fail_late.remote({str(tmp_path / "go")!r}, "given up")
    try:
        await asyncio.wait_for(given_up, 0.2)
    except TimeoutError:
        pass
    forgotten = fail_late.remote({str(tmp_path / "go")!r}, "forgotten")
    open({str(tmp_path / "go")!r}, "w").close()
    taskloom.wait([given_up, forgotten], num_returns=2)

with taskloom.init(num_cpus=2):
    asyncio.run(main())
"""
    )
    assert done.returncode == 0, done.stderr
    assert "ValueError: forgotten" in done.stderr
    assert "given up" not in done.stderr
