"""``ref.why()``: one sentence about what a ref waits for."""

from __future__ import annotations

import pytest
from tests.gates import Gate, eventually

import taskloom

SESSION = {"num_cpus": 2, "resources": {"tpu": 2}}


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path)
    yield gate
    gate.open()


@taskloom.remote(num_cpus=0)
def held(gate, name="held"):
    gate.enter(name)


@taskloom.remote(num_cpus=0)
def after(*values):
    return values


def test_a_task_that_runs(tl, gate):
    ref = held.remote(gate)
    (pid,) = gate.wait_for("held")
    why = ref.why()
    assert f"has been running on worker {pid} for at least" in why
    assert why.startswith("held#")
    assert ref.task_id().endswith(why.partition("#")[2].split()[0])


def test_a_task_that_was_submitted_this_moment(tl):
    tl.get([after.remote() for _ in range(20)])  # the workers are there
    for _ in range(20):
        ref = after.remote()
        why = ref.why()
        tl.get(ref)  # the next one stands behind nobody
        assert not why.startswith("after#") or "is on its way to" in why or "has been" in why


def test_a_chain_of_dependencies(tl, gate):
    first = held.remote(gate)
    (pid,) = gate.wait_for("held")
    third = after.remote(after.remote(first))
    why = third.why()
    assert why.count("waits for its argument") == 2
    assert f"running on worker {pid}" in why


def test_some_of_many_arguments(tl, gate):
    done = tl.put(1)
    ref = after.remote(done, held.remote(gate), held.remote(gate))
    gate.wait_for("held", 2)
    assert "waits for 2 of its 3 arguments" in ref.why()


def test_a_long_chain_is_cut(tl, gate):
    ref = held.remote(gate)
    for _ in range(50):
        ref = after.remote(ref)
    assert ref.why().endswith("and so on")


def test_a_task_that_waits_for_resources(tl, gate):
    holder = held.options(resources={"tpu": 1.5}, name="greedy").remote(gate)
    gate.wait_for("held")
    ref = held.options(resources={"tpu": 1}, num_cpus=2).remote(gate, "second")
    why = ref.why()
    assert "needs 1 tpu, and 0.5 of 2 are free" in why
    assert "held by greedy#" in why
    assert "CPU" not in why
    assert not holder.done()


def test_a_task_that_waits_for_a_task_it_has_submitted(tl, gate):
    @tl.remote
    def outer():
        ref = held.remote(gate)
        gate.wait_for("held")
        return tl.get(ref)

    ref = outer.remote()
    gate.wait_for("held")
    assert eventually(lambda: "and waits there for held#" in ref.why())


def test_a_block_that_waits_for_its_group(tl, gate):
    @tl.remote
    def outer():
        with tl.TaskGroup():
            held.remote(gate)
            held.remote(gate)

    ref = outer.remote()
    gate.wait_for("held", 2)
    assert eventually(lambda: "the 2 tasks of a group, such as held#" in ref.why())


def test_what_is_done_failed_or_cancelled(tl, gate):
    ref = after.remote(1)
    tl.get(ref)
    assert ref.why() == "it is done"
    assert tl.put(1).why() == "it is done"
    failed = tl.remote(lambda: 1 / 0).remote()
    tl.wait([failed])
    assert failed.why() == "it is done: the task has failed"
    assert failed.exception() is not None


def test_a_cancelled_task_that_has_not_stopped(tl, gate):
    @tl.remote
    def stubborn():
        try:
            gate.enter("stubborn")
        except KeyboardInterrupt:
            gate.stay()

    ref = stubborn.remote()
    (pid,) = gate.wait_for("stubborn")
    tl.cancel(ref)
    assert eventually(ref.done)
    assert f"was cancelled, but worker {pid} has not stopped it yet" in ref.why()
    gate.open()
    assert eventually(lambda: ref.why() == "it is done: the task was cancelled")


def test_it_can_be_asked_in_a_task_and_in_a_coroutine(tl, gate):
    @tl.remote
    def ask(refs):
        return refs[0].why()

    @tl.remote
    async def ask_in_a_loop(refs):
        return refs[0].why()

    ref = held.remote(gate)
    gate.wait_for("held")
    for text in tl.get([ask.remote([ref]), ask_in_a_loop.remote([ref])]):
        assert "has been running on worker" in text


def test_in_the_calling_process_everything_is_done(fresh):
    fresh.init(local_mode=True)
    assert after.remote(1).why() == "it is done"
    failed = fresh.remote(lambda: 1 / 0).remote()
    assert failed.why() == "it is done: the task has failed"
    assert failed.exception() is not None


def test_a_ref_of_no_session_is_an_error(tl):
    with pytest.raises(ValueError, match="session"):
        taskloom.ObjectRef.nil().why()
