"""The user's event loop and the engine do not hold each other up (P8, FAULTS.md row 83)."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tests.gates import Gate, eventually

from taskloom import _current


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


async def test_an_engine_that_stands_still_does_not_hold_up_the_users_loop_P8(tl):
    """Submitting, awaiting, giving up and dropping are no more than notes for the engine."""
    backend = _current.require()
    inside, go_on = threading.Event(), threading.Event()

    def stand_still(_: object) -> None:
        inside.set()
        go_on.wait()

    backend._post(stand_still, None)
    inside.wait()
    try:
        add = tl.remote(lambda a, b: a + b)
        refs = [add.remote(n, 1) for n in range(500)]
        total = [add.remote(ref, 1) for ref in refs]
        waiting = [asyncio.ensure_future(_value_of(ref)) for ref in total]
        given_up = asyncio.ensure_future(_value_of(refs[0]))
        for _ in range(100):  # the loop turns
            await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        del refs
        assert given_up.cancelled()
        assert not any(task.done() for task in waiting)
    finally:
        go_on.set()
    assert await asyncio.gather(*waiting) == [n + 2 for n in range(500)]


async def _value_of(ref):
    return await ref


async def test_a_users_loop_that_stands_still_does_not_hold_up_the_graph_FAULTS_83(tl, gate):
    step = tl.remote(lambda before, name: gate.note(name))
    last = None
    for n in range(20):
        last = step.remote(last, f"step {n}")
    awaited = asyncio.ensure_future(_value_of(last))
    await asyncio.sleep(0)  # it waits now

    assert eventually(lambda: gate.count("step 19"))  # this blocks the loop

    assert not awaited.done()
    await awaited
