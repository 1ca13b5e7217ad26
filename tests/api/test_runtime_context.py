"""``get_runtime_context`` in the driver, in tasks and in coroutines (rows CTX)."""

from __future__ import annotations

import asyncio
import os
import threading
from types import ModuleType

import pytest


def describe() -> dict[str, object]:
    import taskloom

    c = taskloom.get_runtime_context()
    return {
        "job": c.get_job_id(),
        "node": c.get_node_id(),
        "worker": c.get_worker_id(),
        "session": c.get_session_name(),
        "task": c.get_task_id(),
        "name": c.get_task_name(),
        "function": c.get_task_function_name(),
        "actor": c.get_actor_id(),
        "resources": c.get_assigned_resources() if c.get_task_id() else None,
        "pid": os.getpid(),
        "namespace": c.namespace,
    }


def test_there_is_one_context_CTX_1(tl: ModuleType):
    assert tl.get_runtime_context() is tl.get_runtime_context()


def test_the_session_has_names_CTX_2(tl):
    here = describe()
    there = tl.get(tl.remote(describe).remote())

    for name in ("job", "node", "session", "namespace"):
        assert here[name] == there[name] != ""
    assert here["worker"] != there["worker"]
    assert len(str(here["node"])) == 56
    assert len(str(there["worker"])) == 56


def test_processes_have_different_worker_ids_CTX_2(tl):
    seen = tl.get([tl.remote(describe).remote() for _ in range(20)])
    by_pid = {(s["pid"], s["worker"]) for s in seen}

    assert len({pid for pid, _ in by_pid}) == len(by_pid)


def test_sessions_have_different_names_CTX_2(fresh):
    names = []
    for _ in range(2):
        fresh.init(num_cpus=1)
        names.append(fresh.get_runtime_context().get_session_name())
        fresh.shutdown()

    assert names[0] != names[1]


def test_without_a_session_there_is_nothing_to_tell_CTX_2(fresh):
    fresh.init(num_cpus=1)
    context = fresh.get_runtime_context()
    fresh.shutdown()

    for ask in (context.get_job_id, context.get_node_id, context.get_worker_id):
        with pytest.raises(RuntimeError):
            ask()


def test_the_driver_is_no_task_CTX_3(tl):
    here = describe()

    assert here["task"] is None
    assert here["name"] is None
    assert here["function"] is None
    assert here["actor"] is None
    assert not tl.get_runtime_context().get_actor_name()


def test_a_task_knows_itself_CTX_3(tl):
    @tl.remote(name="my name")
    def f():
        return describe()

    ref = f.remote()
    there = tl.get(ref)

    assert there["task"] == ref.task_id()
    assert there["name"] == "my name"
    assert str(there["function"]).rpartition(".")[2] == "f"
    assert there["actor"] is None


def test_nested_tasks_have_ids_of_their_own_CTX_3(tl):
    @tl.remote
    def outer():
        import taskloom

        context = taskloom.get_runtime_context()
        before = context.get_task_id()
        inner = taskloom.get(taskloom.remote(describe).remote())["task"]
        return before, inner, context.get_task_id()

    before, inner, after = tl.get(outer.remote())

    assert before == after
    assert before != inner


def test_a_retry_has_the_id_of_the_first_attempt_CTX_3(tl, tmp_path):
    path = tmp_path / "ids"

    @tl.remote(retry_exceptions=True, max_retries=1)
    def f():
        import taskloom

        with path.open("a") as file:
            file.write(taskloom.get_runtime_context().get_task_id() + "\n")
        raise KeyError

    with pytest.raises(KeyError):
        tl.get(f.remote())
    ids = path.read_text().split()

    assert len(ids) == 2
    assert len(set(ids)) == 1


def test_coroutines_on_one_worker_know_themselves_CTX_3(tl):
    async def f(n):
        await asyncio.sleep(0.01)
        first = describe()
        await asyncio.sleep(0.01)
        assert describe() == first
        return first

    refs = [tl.remote(f).options(name=f"task {n}").remote(n) for n in range(10)]
    seen = tl.get(refs)

    assert [s["task"] for s in seen] == [ref.task_id() for ref in refs]
    assert [s["name"] for s in seen] == [f"task {n}" for n in range(10)]
    assert len({s["pid"] for s in seen}) == 1


def test_what_was_asked_for_is_assigned_CTX_4(tl):
    ask = tl.remote(describe)

    assert tl.get(ask.remote())["resources"] == {"CPU": 1.0}
    assert tl.get(ask.options(num_cpus=0.25).remote())["resources"] == {"CPU": 0.25}
    assert tl.get(ask.options(num_cpus=0).remote())["resources"] == {}
    assert tl.get(ask.options(memory=1024).remote())["resources"] == {"CPU": 1.0, "memory": 1024.0}


def test_nothing_is_assigned_to_the_driver_CTX_4(tl):
    with pytest.raises(AssertionError):
        tl.get_runtime_context().get_assigned_resources()
    with pytest.raises(RuntimeError):
        tl.get_runtime_context().is_canceled()


def test_a_thread_of_a_task_can_ask_and_submit_CTX_3(tl):
    @tl.remote
    def outer():
        import taskloom

        answers: list[object] = []

        def inside():
            answers.append(taskloom.get(taskloom.remote(lambda: 5).remote()))
            answers.append(taskloom.get_runtime_context().get_job_id())

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        return answers

    value, job = tl.get(outer.remote())

    assert value == 5
    assert job == tl.get_runtime_context().get_job_id()
