"""Refs inside of anyio's scopes, in asyncio and in trio."""

from __future__ import annotations

import anyio
import pytest
from tests.gates import Gate, eventually

import taskloom

SESSION = {"num_cpus": 2}


@pytest.fixture(params=["asyncio", "trio"])
def run(request):
    return lambda main: anyio.run(main, backend=request.param)


@taskloom.remote
def stay(gate):
    gate.enter()
    return "value"


def test_a_scope_that_expires_leaves_a_task_whose_ref_lives(tl, tmp_path, run):
    gate = Gate(tmp_path)
    ref = stay.remote(gate)

    async def main():
        with anyio.move_on_after(0.2) as scope:
            await ref
        assert scope.cancelled_caught
        gate.open()
        assert await ref == "value"

    run(main)


def test_a_scope_that_expires_cancels_a_task_that_nobody_else_wants(tl, tmp_path, run):
    gate = Gate(tmp_path)

    async def main():
        with anyio.move_on_after(0.2):
            await stay.remote(gate)
        with anyio.fail_after(20):
            while tl.available_resources().get("CPU") != 2.0:
                await anyio.sleep(0.01)

    run(main)


def test_fail_after_and_many_refs_in_a_task_group(tl, tmp_path, run):
    gate = Gate(tmp_path)
    refs = [stay.remote(gate) for _ in range(4)]
    got = []

    async def fetch(ref):
        got.append(await ref)

    async def main():
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.2):
                async with anyio.create_task_group() as group:
                    for ref in refs:
                        group.start_soon(fetch, ref)
        assert got == []
        gate.open()
        async with anyio.create_task_group() as group:
            for ref in refs:
                group.start_soon(fetch, ref)

    run(main)
    assert got == ["value"] * 4


def test_a_cancelled_wait_async_cancels_nothing(tl, tmp_path, run):
    gate = Gate(tmp_path)
    ref = stay.remote(gate)

    async def main():
        with anyio.move_on_after(0.2) as scope:
            await tl.wait_async([ref])
        assert scope.cancelled_caught

    run(main)
    gate.open()
    assert tl.get(ref) == "value"


def test_a_group_inside_of_an_anyio_scope(tl, tmp_path, run):
    gate = Gate(tmp_path)

    async def main():
        with anyio.move_on_after(0.3) as scope:
            async with tl.TaskGroup():
                stay.remote(gate)
        assert scope.cancelled_caught
        assert tl.available_resources().get("CPU") == 2.0

    run(main)


def test_anyio_tasks_inside_of_a_group_belong_to_it(tl, run):
    refs = []

    async def main():
        async def submit():
            refs.append(tl.remote(lambda: 1).remote())

        async with tl.TaskGroup(), anyio.create_task_group() as group:
            group.start_soon(submit)
            group.start_soon(submit)

    run(main)
    assert len(refs) == 2
    assert all(ref.done() for ref in refs)


def test_a_failing_member_ends_anyio_tasks_in_the_body(tl, run):
    async def main():
        async with tl.TaskGroup(), anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            tl.remote(lambda: 1 / 0).remote()

    with pytest.raises(ExceptionGroup) as caught:
        run(main)
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


def test_a_shielded_wait_is_not_given_up(tl, tmp_path, run):
    gate = Gate(tmp_path)

    async def main():
        ref = stay.remote(gate)
        with anyio.move_on_after(0.2):
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(gate.wait_for, "task")
                gate.open()
                assert await ref == "value"

    run(main)
    assert eventually(lambda: tl.available_resources().get("CPU") == 2.0)
