"""A short task's only dependent travels with it, on the same worker, directly behind it."""

from __future__ import annotations

from loom_driver import LONG_S, SHORT_S, Core

from taskloom._core.node import Node, WorkerRecord
from taskloom._core.states import NodeState

S = NodeState


def short_chain(length: int, *, retries: int = 0) -> tuple[Core, WorkerRecord, list[Node]]:
    """A chain of calls of a short function, handed to the only worker."""
    core = Core(cpus=1, starts_workers=False)
    worker = core.worker()
    core.learn(seconds=SHORT_S)
    chain = [core.submit(retries=retries)]
    for _ in range(length - 1):
        chain.append(core.submit([chain[-1]], retries=retries))
    core.schedule()
    return core, worker, chain


def not_run(core: Core, node: Node) -> None:
    """The worker says that a task was not started: what it follows is not there."""
    assert node.worker is not None
    core.loom.on_failed(node.worker, node.seq, None, retry=False, seconds=SHORT_S)
    core.check()


def test_a_chain_travels_together() -> None:
    core, worker, chain = short_chain(5)
    assert core.with_worker(worker) == chain
    core.finish(*chain, seconds=SHORT_S)
    assert [node.attempt for node in chain] == [1] * 5
    assert core.is_at_rest()


def test_what_two_wait_for_is_not_followed() -> None:
    core, worker, (first,) = short_chain(1)
    core.finish(first, seconds=SHORT_S)
    top = core.submit()
    left, right = core.submit([top]), core.submit([top])
    core.schedule()
    assert core.with_worker(worker) == [top]
    assert left.state is right.state is S.WAITING


def test_what_waits_for_two_does_not_follow() -> None:
    core, _, _ = short_chain(1)
    first, second = core.submit(), core.submit()
    both = core.submit([first, second])
    core.schedule()
    assert both.state is S.WAITING


def test_what_is_done_already_is_no_hindrance() -> None:
    core, worker, (done,) = short_chain(1)
    core.finish(done, seconds=SHORT_S)
    first = core.submit()
    then = core.submit([done, first, core.put()])
    core.schedule()
    assert core.with_worker(worker) == [first, then]


def test_a_long_or_unknown_function_does_not_follow() -> None:
    core, _, (done,) = short_chain(1)
    core.finish(done, seconds=SHORT_S)
    core.learn("long", LONG_S)
    for function in ("long", "unknown"):
        first = core.submit()
        then = core.submit([first], function=function)
        core.schedule()
        assert then.state is S.WAITING
        core.finish(first, then, seconds=SHORT_S)


def test_other_resources_another_priority_or_a_coroutine_do_not_follow() -> None:
    core, _, _ = short_chain(1)
    for options in ({"cpus": 0.5}, {"priority": 1}, {"coroutine": True}):
        first = core.submit()
        then = core.submit([first], **options)  # type: ignore[arg-type]
        core.schedule()
        assert then.state is S.WAITING


def test_a_follower_waits_again_when_it_is_taken_back() -> None:
    core, worker, (first, second, third) = short_chain(3)
    core.give_back(worker, low=first, high=third)
    assert [node.state for node in (first, second, third)] == [S.ASSIGNED, S.WAITING, S.WAITING]
    assert second.attempt == third.attempt == 0
    core.finish(first, seconds=SHORT_S)
    assert second.state is S.READY
    core.finish(second, third, seconds=SHORT_S)
    assert core.is_at_rest()


def test_a_chain_that_is_taken_back_as_a_whole_starts_anew() -> None:
    core, worker, chain = short_chain(3)
    core.give_back(worker, low=0, high=chain[-1])
    assert [node.state for node in chain] == [S.READY, S.WAITING, S.WAITING]
    core.schedule()
    assert core.with_worker(worker) == chain
    core.finish(*chain, seconds=SHORT_S)
    assert core.is_at_rest()


def test_followers_wait_again_when_the_first_one_blocks() -> None:
    core, worker, (first, second) = short_chain(2)
    core.block(worker, first)
    assert second.state is S.WAITING
    core.unblock(worker)
    core.finish(first, second, seconds=SHORT_S)
    assert core.is_at_rest()


def test_followers_fail_with_what_they_follow_and_never_run() -> None:
    core, _, (first, second, third) = short_chain(3)
    error = core.fail(first)
    assert [node.state for node in (first, second, third)] == [S.FAILED] * 3
    assert core.outcome(third) is error.inherit()
    core.loom.on_failed(second.worker, second.seq, None, retry=False, seconds=SHORT_S)  # type: ignore[arg-type]
    core.loom.on_failed(third.worker, third.seq, None, retry=False, seconds=SHORT_S)  # type: ignore[arg-type]
    core.check()
    assert core.is_at_rest()


def test_a_follower_waits_for_the_next_attempt() -> None:
    core, _, (first, second) = short_chain(2, retries=1)
    core.fail(first, retry=True)
    not_run(core, second)
    assert (first.state, second.state) == (S.READY, S.WAITING)
    assert (first.attempt, second.attempt) == (1, 0)
    core.finish(first, second, seconds=SHORT_S)
    assert core.is_at_rest()


def test_a_crash_of_the_first_does_not_charge_its_followers() -> None:
    core, worker, (first, second, third) = short_chain(3, retries=1)
    core.lose(worker, started=first)
    assert [node.state for node in (first, second, third)] == [S.READY, S.WAITING, S.WAITING]
    assert [node.attempt for node in (first, second, third)] == [1, 0, 0]


def test_a_crash_of_the_last_attempt_fails_the_followers() -> None:
    core, worker, chain = short_chain(3)
    core.lose(worker, started=chain[0])
    assert all(node.state is S.FAILED for node in chain)
    assert core.outcome(chain[2]) is core.outcome(chain[0]).inherit()
    assert core.is_at_rest()


def test_a_follower_that_crashes_is_charged_and_what_it_followed_runs_again() -> None:
    # The result of the first one had not arrived: it is lost with the worker.
    core, worker, (first, second) = short_chain(2, retries=1)
    core.lose(worker, started=second)
    assert (first.state, second.state) == (S.READY, S.WAITING)
    assert (first.attempt, second.attempt) == (0, 1)
    core.worker()
    core.finish(first, second, seconds=SHORT_S)
    assert core.is_at_rest()


def test_a_follower_is_cancelled_alone() -> None:
    core, worker, (first, second, third) = short_chain(3)
    core.cancel(second)
    assert [node.state for node in (first, second, third)] == [
        S.ASSIGNED, S.CANCELLED, S.CANCELLED
    ]  # fmt: skip
    assert (worker, second.seq, False) in core.outbox.said("interrupt")


def test_followers_that_are_cancelled_with_the_first_are_interrupted_too() -> None:
    # The first one may have ended there already, its result on the way: then the second runs.
    core, worker, (first, second) = short_chain(2)
    core.cancel(first)
    assert second.state is S.CANCELLED
    assert core.outbox.said("interrupt") == [
        (worker, first.seq, False), (worker, second.seq, False)
    ]  # fmt: skip


def test_an_object_that_only_a_follower_waits_for_is_kept_until_it_has_run() -> None:
    core, _, (first, second) = short_chain(2)
    core.drop(first)
    core.finish(first, seconds=SHORT_S)
    assert core.is_kept(first)
    core.finish(second, seconds=SHORT_S)
    assert not core.is_kept(first)
