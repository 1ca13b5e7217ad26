"""Attempts: retries, workers that die, messages that come late, calls that are cancelled."""

from __future__ import annotations

import pytest
from loom_driver import SHORT_S, Core

from taskloom._core.node import Node, WorkerRecord
from taskloom._core.retries import may_retry
from taskloom._core.states import NodeState

S = NodeState


def batch(count: int, *, retries: int = 0) -> tuple[Core, WorkerRecord, list[Node]]:
    """One worker that has ``count`` calls in flight."""
    core = Core(cpus=1, starts_workers=False)
    worker = core.worker()
    core.learn(seconds=SHORT_S)
    nodes = [core.submit(retries=retries) for _ in range(count)]
    core.schedule()
    assert core.with_worker(worker) == nodes
    return core, worker, nodes


# -- retries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_call_that_raises_gets_as_many_more_attempts_as_it_may(core: Core, retries: int) -> None:
    a = core.submit(retries=retries)
    for attempt in range(1, retries + 1):
        core.fail(a, retry=True)
        assert (a.state, a.attempt) == (S.READY, attempt)
    error = core.fail(a, retry=True)
    assert a.state is S.FAILED
    assert core.outcome(a) is error


def test_a_call_that_raises_is_not_repeated_unless_that_was_asked_for(core: Core) -> None:
    a = core.submit(retries=3)
    core.fail(a, retry=False)
    assert a.state is S.FAILED


def test_crashes_and_exceptions_draw_on_one_budget(core: Core) -> None:
    a = core.submit(retries=2)
    core.fail(a, retry=True)
    core.start(a)
    assert a.worker is not None
    core.lose(a.worker, started=a)
    assert a.state is S.READY
    core.fail(a, retry=True)
    assert a.state is S.FAILED


def test_minus_one_never_ends(core: Core) -> None:
    a = core.submit(retries=-1)
    for _ in range(200):
        core.fail(a, retry=True)
        core.wait(10)
    assert may_retry(a)
    core.finish(a)
    assert a.state is S.FINISHED


def test_dependents_wait_while_a_call_is_repeated(core: Core) -> None:
    a = core.submit(retries=1)
    b = core.submit([a])
    told = core.watch(a)
    core.fail(a, retry=True)
    assert b.state is S.WAITING
    assert not told
    core.finish(a)
    assert b.state is S.READY


def test_each_attempt_has_a_number_and_a_seq_of_its_own(core: Core) -> None:
    a = core.submit(retries=1)
    core.start(a)
    first = (a.worker, a.seq)
    core.fail(a, retry=True)
    core.start(a)
    assert a.attempt == 2
    assert (a.worker, a.seq) != first


# -- workers that die --------------------------------------------------------------------------


def test_what_a_dead_worker_had_not_started_is_not_charged() -> None:
    core, worker, (a, b, c) = batch(3)
    core.lose(worker, started=a)
    assert a.state is S.FAILED
    assert (core.outcome(a).kind, core.outcome(a).origin) == ("crash", a.key)
    assert [(node.state, node.attempt) for node in (b, c)] == [(S.READY, 0), (S.READY, 0)]
    assert list(core.loom.ready) == [b, c]
    assert core.free() == 1


def test_what_a_dead_worker_was_running_is_charged() -> None:
    core, worker, (a, b) = batch(2, retries=1)
    core.lose(worker, started=a)
    assert (a.state, a.attempt) == (S.READY, 1)
    assert (b.state, b.attempt) == (S.READY, 0)
    core.worker()
    core.finish(b, a)
    assert core.is_at_rest()


def test_a_worker_that_dies_before_its_first_task_charges_nobody() -> None:
    core, worker, nodes = batch(3)
    core.lose(worker, started=0)
    assert all((node.state, node.attempt) == (S.READY, 0) for node in nodes)


def test_a_result_that_came_before_the_death_counts() -> None:
    core, worker, (a, b) = batch(2)
    core.finish(a, seconds=SHORT_S)
    core.lose(worker, started=a)
    assert a.state is S.FINISHED
    assert (b.state, b.attempt) == (S.READY, 0)


def test_a_task_that_had_finished_is_not_charged_when_the_next_one_kills_the_worker() -> None:
    # The worker had gone on to b, so a is not to blame: only its result did not arrive.
    core, worker, (a, b, c) = batch(3)
    core.lose(worker, started=b)
    assert [node.state for node in (a, b, c)] == [S.READY, S.FAILED, S.READY]
    assert a.attempt == c.attempt == 0
    assert list(core.loom.ready) == [a, c]


def test_an_idle_worker_may_die() -> None:
    core, worker, (a,) = batch(1)
    core.finish(a)
    core.lose(worker)
    b = core.submit()
    core.schedule()
    assert b.state is S.READY
    assert not core.loom.workers


def test_a_worker_may_die_before_it_is_ready() -> None:
    core = Core(starts_workers=False)
    core.lose(core.starting_worker())
    assert not core.loom.workers


def test_a_blocked_worker_may_die() -> None:
    core, worker, (a,) = batch(1)
    core.block(worker, a)
    core.lose(worker, started=a)
    assert core.is_at_rest()


def test_a_worker_may_die_while_only_a_thread_of_it_waits() -> None:
    core, worker, (a,) = batch(1)
    core.block(worker)
    core.finish(a)
    core.lose(worker)
    assert core.is_at_rest()


def test_coroutines_of_a_dead_worker_are_charged_and_give_back_what_they_had() -> None:
    core = Core(cpus=3)
    again, once = core.submit(coroutine=True, retries=1), core.submit(coroutine=True)
    core.start(again, once)
    assert once.worker is not None
    core.lose(once.worker, started=once)
    assert (again.state, once.state) == (S.READY, S.FAILED)
    core.finish(again)
    assert core.is_at_rest()


def test_dependents_hear_of_the_crash(core: Core) -> None:
    a = core.submit()
    b = core.submit([a])
    core.start(a)
    assert a.worker is not None
    core.lose(a.worker, started=a)
    assert core.outcome(b) is core.outcome(a).inherit()


# -- messages that come late -------------------------------------------------------------------


def test_a_second_result_is_dropped_and_counted() -> None:
    core, worker, (a,) = batch(1)
    core.finish(a)
    value = core.outcome(a)
    core.loom.on_done(worker, a.seq, [b"other"], [()], SHORT_S)
    core.check()
    assert core.outcome(a) is value
    assert core.late_messages == 1


def test_an_answer_for_what_was_given_back_is_dropped_and_counted() -> None:
    core, worker, (a, b) = batch(2)
    seq = b.seq
    core.give_back(worker, low=a, high=b)
    core.loom.on_done(worker, seq, [b"late"], [()], SHORT_S)
    core.loom.on_failed(worker, seq, None, retry=False, seconds=SHORT_S)
    core.check()
    assert b.state is S.READY
    assert core.late_messages == 2


def test_giving_back_the_same_twice_does_nothing() -> None:
    core, worker, (a, b, c) = batch(3)
    low, high = a.seq, c.seq
    core.give_back(worker, low, high)
    core.give_back(worker, low, high)
    assert [node.attempt for node in (a, b, c)] == [1, 0, 0]
    assert list(core.loom.ready) == [b, c]


def test_giving_back_touches_only_what_was_meant() -> None:
    core, worker, (a, b, c, d) = batch(4)
    core.give_back(worker, low=b, high=c)
    assert [node.state for node in (a, b, c, d)] == [S.ASSIGNED, S.ASSIGNED, S.READY, S.ASSIGNED]


# -- cancel ------------------------------------------------------------------------------------


def test_a_call_is_cancelled_while_it_waits(core: Core) -> None:
    a = core.submit()
    b = core.submit([a])
    core.cancel(b)
    assert b.state is S.CANCELLED
    core.finish(a)
    assert b.state is S.CANCELLED
    assert core.outbox.said("interrupt") == []


def test_a_call_is_cancelled_while_it_is_ready(core: Core) -> None:
    a = core.submit()
    core.cancel(a)
    core.schedule()
    assert a.state is S.CANCELLED
    assert core.started_now() == []


@pytest.mark.parametrize("force", [True, False])
def test_a_call_is_cancelled_while_a_worker_has_it(force: bool) -> None:
    core, worker, (a,) = batch(1)
    told = core.watch(a)
    core.cancel(a, force=force)
    assert a.state is S.CANCELLED
    assert told, "who waits is told at once, not when the worker has noticed"
    assert core.outbox.said("interrupt") == [(worker, a.seq, force)]
    assert core.free() == 0, "the worker still runs it"


@pytest.mark.parametrize("answer", ["done", "failed", "not started", "given back", "lost"])
def test_whatever_the_worker_answers_the_call_stays_cancelled(answer: str) -> None:
    core, worker, (a,) = batch(1, retries=5)
    core.cancel(a)
    if answer == "done":
        core.loom.on_done(worker, a.seq, [b"value"], [()], SHORT_S)
    elif answer == "given back":
        core.give_back(worker, 0, a)
    elif answer == "lost":
        core.lose(worker, started=a)
    else:
        error = core.outcome(a) if answer == "failed" else None
        core.loom.on_failed(worker, a.seq, error, retry=True, seconds=SHORT_S)
    core.check()
    assert a.state is S.CANCELLED
    assert core.outcome(a).cancelled
    assert core.is_at_rest()


def test_a_call_is_cancelled_between_two_attempts(core: Core) -> None:
    a = core.submit(retries=5)
    core.fail(a, retry=True)
    core.cancel(a)
    core.schedule()
    assert a.state is S.CANCELLED
    assert core.is_at_rest()


def test_a_call_that_is_done_cannot_be_cancelled(core: Core) -> None:
    a, b = core.submit(), core.submit()
    core.finish(a)
    core.fail(b)
    core.cancel(a)
    core.cancel(b)
    assert (a.state, b.state) == (S.FINISHED, S.FAILED)
    assert core.outbox.said("interrupt") == []


def test_cancelling_twice_interrupts_once() -> None:
    core, _, (a,) = batch(1)
    core.cancel(a)
    core.cancel(a)
    assert len(core.outbox.said("interrupt")) == 1


def test_force_reaches_a_task_that_was_asked_kindly_before() -> None:
    core, worker, (a,) = batch(1)
    core.cancel(a)
    core.cancel(a, force=True)
    assert core.outbox.said("interrupt") == [(worker, a.seq, False), (worker, a.seq, True)]
    core.lose(worker, started=a)
    core.cancel(a, force=True)
    assert len(core.outbox.said("interrupt")) == 2


def test_a_put_object_and_one_that_is_gone_cannot_be_cancelled(core: Core) -> None:
    value = core.put()
    core.cancel(value)
    core.drop(value)
    core.cancel(value)
    assert core.outbox.said("interrupt") == []


def test_any_of_its_refs_cancels_a_call(core: Core) -> None:
    a = core.submit(num_returns=3)
    core.cancel(a.outputs[2])
    assert a.state is S.CANCELLED
    assert all(output.outcome.cancelled for output in a.outputs)


def test_children_are_cancelled_with_their_parent(core: Core) -> None:
    parent = core.submit()
    core.start(parent)
    child = core.submit(parent=parent)
    grandchild = core.submit(parent=child)
    stranger = core.submit()
    core.cancel(parent)
    assert [node.state for node in (child, grandchild)] == [S.CANCELLED, S.CANCELLED]
    assert stranger.state is not S.CANCELLED


def test_children_go_on_when_only_their_parent_is_cancelled(core: Core) -> None:
    parent = core.submit()
    core.start(parent)
    child = core.submit(parent=parent)
    core.cancel(parent, recursive=False)
    core.finish(child)
    assert child.state is S.FINISHED


@pytest.mark.parametrize("retries", [0, 1])
def test_what_only_an_attempt_that_died_wanted_is_cancelled(core: Core, retries: int) -> None:
    """The next attempt submits its own: deaths must not make more work than they end."""
    worker = core.worker()
    parent = core.submit(retries=retries)
    core.start(parent)
    child = core.submit(parent=parent, by=worker)
    grandchild = core.submit(parent=child)
    shared = core.submit(parent=parent, by=worker)
    user = core.submit(nested=[shared])
    forgotten = core.submit(parent=parent, by=worker)
    core.release(worker, forgotten)
    core.lose(worker, started=parent)
    assert [node.state for node in (child, grandchild)] == [S.CANCELLED, S.CANCELLED]
    assert parent.state is (S.READY if retries else S.FAILED)
    for node in (shared, user, forgotten):
        core.finish(node)
        assert node.state is S.FINISHED


def test_children_go_on_when_only_their_parent_is_cancelled_by_force(core: Core) -> None:
    worker = core.worker()
    parent = core.submit()
    core.start(parent)
    child = core.submit(parent=parent, by=worker)
    core.cancel(parent, recursive=False, force=True)
    core.lose(worker, started=parent)
    core.finish(child)
    assert child.state is S.FINISHED


def test_what_a_cancelled_parent_submits_later_is_cancelled_at_once(core: Core) -> None:
    parent = core.submit()
    core.start(parent)
    core.cancel(parent)
    child = core.submit(parent=parent)
    assert child.state is S.CANCELLED


def test_what_a_parent_submits_after_it_alone_was_cancelled_runs(core: Core) -> None:
    parent = core.submit()
    core.start(parent)
    core.cancel(parent, recursive=False)
    cleaning_up = core.submit(parent=parent)
    assert cleaning_up.state is S.READY


def test_a_task_that_was_not_started_says_so_and_is_cancelled() -> None:
    core, worker, (a, b) = batch(2)
    core.cancel(b)
    core.finish(a, seconds=SHORT_S)
    core.loom.on_failed(worker, b.seq, None, retry=False, seconds=SHORT_S)
    core.check()
    assert core.is_at_rest()


def test_the_time_of_a_task_that_was_not_started_is_not_taken_for_that_of_its_function() -> None:
    # A worker does not know how long a function takes that it has never run: it says 1 s.
    core, worker, (a, b) = batch(2)
    core.finish(a, seconds=SHORT_S)
    core.cancel(b)
    core.loom.on_failed(worker, b.seq, None, retry=False, seconds=1.0)
    nodes = [core.submit() for _ in range(10)]
    core.schedule()
    assert core.with_worker(worker) == nodes


def test_the_rest_of_a_batch_runs_when_one_of_it_is_cancelled() -> None:
    core, worker, nodes = batch(10)
    core.cancel(nodes[4])
    for node in nodes:
        if node is nodes[4]:
            core.loom.on_failed(worker, node.seq, None, retry=False, seconds=SHORT_S)
            core.check()
        else:
            core.finish(node, seconds=SHORT_S)
    assert core.is_at_rest()
