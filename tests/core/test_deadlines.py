"""Time: pauses between attempts, limits of attempts, patience with who does not stop."""

from __future__ import annotations

import pytest
from loom_driver import LOOP, SHORT_S, Core, Trouble, record_of

from taskloom._core.deadlines import Deadlines
from taskloom._core.node import Node, WorkerRecord
from taskloom._core.retries import (
    AT_ONCE,
    FIRST_PAUSE_S,
    LAST_PAUSE_S,
    LONGEST_PAUSE_S,
    pause_s,
)
from taskloom._core.states import NodeState
from taskloom._spec import Pace

S = NodeState
TEN_S = Pace(timeout_s=10.0)
AGAIN = Pace(timeout_s=10.0, retries_timeouts=True)


def middle() -> float:
    return 0.5


def one_worker(grace_s: float | None = None) -> tuple[Core, WorkerRecord]:
    core = Core(cpus=1, starts_workers=False, grace_s=grace_s)
    return core, core.worker()


def begun(core: Core, node: Node) -> Node:
    core.start(node)
    core.begin(node)
    return node


# -- how long the pauses are -------------------------------------------------------------------


def test_the_first_retries_follow_at_once_where_nothing_else_is_asked_for() -> None:
    assert [pause_s(n, None, middle) for n in range(1, AT_ONCE + 1)] == [0.0] * AT_ONCE
    assert pause_s(2, TEN_S, middle) == 0.0


def test_later_retries_wait_longer_and_longer_so_that_nothing_spins() -> None:
    pauses = [pause_s(AT_ONCE + n, None, middle) for n in range(1, 20)]
    assert pauses[0] == FIRST_PAUSE_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == LAST_PAUSE_S


def test_a_delay_that_is_given_is_what_it_is_from_the_first_retry_on() -> None:
    assert [pause_s(n, Pace(retry_delay_s=0.3), middle) for n in (1, 2, 99)] == [0.3, 0.3, 0.3]
    assert pause_s(99, Pace(retry_delay_s=0.0), middle) == 0.0


def test_each_pause_is_longer_by_the_factor() -> None:
    pace = Pace(retry_delay_s=0.5, retry_backoff=3.0)
    assert [pause_s(n, pace, middle) for n in (1, 2, 3)] == [0.5, 1.5, 4.5]


def test_a_growing_pause_ends_at_a_day_and_a_long_one_stays_as_it_is() -> None:
    growing = Pace(retry_delay_s=1.0, retry_backoff=1e6)
    assert pause_s(10**6, growing, middle) == LONGEST_PAUSE_S
    assert pause_s(50, Pace(retry_delay_s=1e9, retry_backoff=2.0), middle) == 1e9


@pytest.mark.parametrize(("dice", "pause"), [(0.0, 7.0), (0.5, 10.0), (1.0, 13.0)])
def test_jitter_takes_or_adds_up_to_its_part(dice: float, pause: float) -> None:
    pace = Pace(retry_delay_s=10.0, retry_jitter=0.3)
    assert pause_s(1, pace, lambda: dice) == pytest.approx(pause)


def test_those_that_failed_together_do_not_all_come_back_together() -> None:
    assert pause_s(9, None, lambda: 0.1) != pause_s(9, None, lambda: 0.9)


# -- pauses ------------------------------------------------------------------------------------


def paused(*, retries: int = 3, delay_s: float = 5.0) -> tuple[Core, Node]:
    core, _ = one_worker()
    a = core.submit(retries=retries, pace=Pace(retry_delay_s=delay_s))
    core.fail(a, retry=True)
    assert a.state is S.BACKOFF
    return core, a


def test_a_failed_attempt_waits_before_the_next_one() -> None:
    core, a = paused()
    assert core.free() == 1, "its CPU is for others meanwhile"
    core.wait(4.9)
    core.schedule()
    assert a.state is S.BACKOFF
    core.wait(0.2)
    core.finish(a)
    assert (a.state, a.attempt) == (S.FINISHED, 2)


def test_a_crash_waits_as_an_exception_does() -> None:
    core, worker = one_worker()
    a = core.submit(retries=1, pace=Pace(retry_delay_s=5.0))
    core.start(a)
    core.lose(worker, started=a)
    assert a.state is S.BACKOFF
    core.wait(5)
    assert a.state is S.READY


def test_others_run_while_one_waits_for_its_next_attempt() -> None:
    core, a = paused()
    b = core.submit()
    core.finish(b)
    assert (a.state, b.state) == (S.BACKOFF, S.FINISHED)


def test_a_call_is_cancelled_in_a_pause_at_once_and_for_good() -> None:
    core, a = paused()
    told = core.watch(a)
    core.cancel(a)
    assert a.state is S.CANCELLED
    assert told
    assert core.alarms() == []
    core.wait(100)
    assert a.state is S.CANCELLED
    assert core.is_at_rest()


def test_dependents_wait_through_a_pause() -> None:
    core, a = paused()
    b = core.submit([a])
    core.wait(5)
    core.finish(a, b)
    assert b.state is S.FINISHED


def test_without_a_pause_no_alarm_is_ever_set(core: Core) -> None:
    a, b = core.submit(retries=2), core.submit()
    core.fail(a, retry=True)
    core.fail(a, retry=True)
    core.finish(a, b)
    assert core.outbox.said("wake_later") == []


def test_what_crashes_for_ever_does_not_spin() -> None:
    core = Core(cpus=1)
    core.loom.deadlines = Deadlines(core.loom, None, dice=middle)
    a = core.submit(retries=-1)
    crashes = 0
    for _ in range(200):
        core.schedule()
        while a.state is S.ASSIGNED:
            assert a.worker is not None
            core.lose(a.worker, started=a)
            core.schedule()
            crashes += 1
        core.wait(0.5)
    assert crashes < 120, "a hundred seconds went by"
    assert a.state is S.BACKOFF


def test_a_follower_whose_dependency_died_with_the_worker_waits_for_both() -> None:
    core, worker = one_worker()
    core.learn(seconds=SHORT_S)
    a = core.submit(retries=1)
    b = core.submit([a], retries=1, pace=Pace(retry_delay_s=5.0))
    core.schedule()
    assert core.with_worker(worker) == [a, b]
    core.lose(worker, started=b)  # a had finished, but its value is gone
    assert (a.state, b.state) == (S.READY, S.BACKOFF)
    core.wait(5)
    assert b.state is S.WAITING
    core.worker()
    core.finish(a)
    core.finish(b)
    assert b.state is S.FINISHED


def test_a_dependency_may_fail_while_its_follower_pauses() -> None:
    core, worker = one_worker()
    core.learn(seconds=SHORT_S)
    a = core.submit()
    b = core.submit([a], retries=1, pace=Pace(retry_delay_s=5.0))
    core.schedule()
    core.lose(worker, started=b)
    core.cancel(a)
    assert b.state is S.CANCELLED
    core.wait(5)
    assert b.state is S.CANCELLED


# -- limits ------------------------------------------------------------------------------------


def test_an_attempt_that_runs_too_long_fails_at_its_limit_and_is_stopped() -> None:
    core, worker = one_worker()
    a = begun(core, core.submit(pace=TEN_S))
    core.wait(9.9)
    assert a.state is S.ASSIGNED
    core.wait(0.2)
    assert a.state is S.FAILED
    assert core.outcome(a).kind == "timed out"
    assert core.outbox.said("interrupt") == [(worker, a.seq, False)]
    assert core.free() == 0, "the worker still runs it"
    core.loom.on_failed(worker, a.seq, None, retry=False, seconds=10.0)
    core.check()
    assert core.is_at_rest()


def test_the_time_in_the_queue_does_not_count() -> None:
    core, _ = one_worker()
    first, second = core.submit(), core.submit(pace=TEN_S)
    core.start(first)
    core.wait(1000)
    core.finish(first)
    begun(core, second)
    core.wait(9.9)
    assert second.state is S.ASSIGNED
    core.wait(0.2)
    assert second.state is S.FAILED


def test_the_time_behind_others_on_the_same_worker_does_not_count() -> None:
    core, worker = one_worker()
    core.learn(seconds=SHORT_S)
    first, second = core.submit(), core.submit(pace=TEN_S)
    core.schedule()
    assert core.with_worker(worker) == [first, second]
    core.wait(27)  # the first turns out to be long
    core.finish(first)
    core.begin(second)
    core.wait(9.9)
    assert second.state is S.ASSIGNED
    core.wait(0.2)
    assert second.state is S.FAILED


def test_a_result_in_time_is_a_result_and_leaves_no_alarm() -> None:
    core, _ = one_worker()
    a = begun(core, core.submit(pace=TEN_S))
    core.wait(9)
    core.finish(a)
    assert core.alarms() == []
    core.wait(100)
    assert a.state is S.FINISHED


def test_what_is_taken_back_has_all_its_time_again() -> None:
    core, worker = one_worker()
    core.learn(seconds=SHORT_S)
    first, second = core.submit(), core.submit(pace=TEN_S)
    core.schedule()
    core.wait(8)
    core.give_back(worker, first, second)
    assert core.alarms() == []
    core.finish(first)
    begun(core, second)
    core.wait(8)
    assert second.state is S.ASSIGNED


def test_dependents_share_the_error_of_what_was_too_slow() -> None:
    core, _ = one_worker()
    a = begun(core, core.submit(pace=TEN_S))
    b = core.submit([a])
    core.wait(10)
    assert b.state is S.FAILED
    assert core.outcome(b) is core.outcome(a).inherit()


def test_a_follower_of_what_was_too_slow_does_not_run() -> None:
    core, worker = one_worker()
    core.learn(seconds=SHORT_S)
    a = core.submit(pace=TEN_S)
    b = core.submit([a])
    core.schedule()
    assert core.with_worker(worker) == [a, b]
    core.begin(a)
    core.wait(10)
    assert b.state is S.FAILED
    assert [seq for _, seq, _ in core.outbox.said("interrupt")] == [a.seq, b.seq]


def test_the_children_of_what_was_too_slow_are_cancelled_also_those_it_still_submits() -> None:
    core = Core(starts_workers=True)
    a = begun(core, core.submit(pace=TEN_S))
    child = core.submit(parent=a)
    grandchild = core.submit(parent=child)
    core.wait(10)
    late = core.submit(parent=a)
    assert [node.state for node in (child, grandchild, late)] == [S.CANCELLED] * 3


@pytest.mark.parametrize("pace", [TEN_S, AGAIN])
def test_what_is_too_slow_is_told_before_its_children_end(pace: Pace) -> None:
    """A task that waits for its child hears its own end, not the child's."""
    core = Core(starts_workers=True)
    a = begun(core, core.submit(retries=1, pace=pace))
    child = core.submit(parent=a)
    core.wait(10)
    verbs = core.outbox.verbs
    told = next(i for i, verb in enumerate(verbs) if verb[0] == "interrupt" and verb[2] == a.seq)
    assert told < verbs.index(("resolve", child.outputs[0]))


def test_a_limit_that_is_not_to_be_retried_is_not() -> None:
    core, _ = one_worker()
    a = begun(core, core.submit(retries=3, pace=TEN_S))
    core.wait(10)
    assert (a.state, a.attempt) == (S.FAILED, 1)


def test_a_cancelled_attempt_is_not_out_of_time_later() -> None:
    core, worker = one_worker()
    a = begun(core, core.submit(pace=TEN_S))
    core.cancel(a)
    core.wait(20)
    assert a.state is S.CANCELLED
    assert core.outbox.said("interrupt") == [(worker, a.seq, False)]


# -- limits and retries ------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["interrupted", "raised", "returned", "lost"])
def test_the_next_attempt_begins_when_the_late_one_is_over_however_it_ends(end: str) -> None:
    core, worker = one_worker()
    a = begun(core, core.submit(retries=1, pace=AGAIN))
    seq = a.seq
    core.wait(10)
    core.schedule()
    assert (a.state, a.overdue) == (S.ASSIGNED, True)
    assert core.outbox.said("interrupt") == [(worker, seq, False)]
    if end == "lost":
        core.lose(worker, started=a)
    elif end == "returned":
        core.loom.on_done(worker, seq, [b"too late"], [()], 11.0)
    else:
        error = core.outbox.cancelled(a) if end == "raised" else None
        core.loom.on_failed(worker, seq, error, retry=False, seconds=11.0)  # type: ignore[arg-type]
    core.check()
    assert (a.state, a.overdue, a.attempt) == (S.READY, False, 1)
    assert record_of(a).outcome is None
    if end == "lost":
        core.worker()
    core.finish(begun(core, a))
    assert (a.state, a.attempt) == (S.FINISHED, 2)
    assert core.is_at_rest()


def test_the_last_attempt_that_is_too_slow_fails_at_once() -> None:
    core, worker = one_worker()
    a = begun(core, core.submit(retries=1, pace=AGAIN))
    core.wait(10)
    core.loom.on_failed(worker, a.seq, None, retry=False, seconds=10.0)
    begun(core, a)
    core.wait(10)
    assert (a.state, a.attempt) == (S.FAILED, 2)


def test_a_pause_follows_a_limit_too() -> None:
    core, worker = one_worker()
    a = begun(core, core.submit(retries=1, pace=AGAIN._replace(retry_delay_s=5.0)))
    core.wait(10)
    core.loom.on_failed(worker, a.seq, None, retry=False, seconds=10.0)
    core.check()
    assert a.state is S.BACKOFF
    core.wait(5)
    assert a.state is S.READY


def test_the_next_attempt_has_its_own_children() -> None:
    core = Core()
    a = begun(core, core.submit(retries=1, pace=AGAIN))
    old = core.submit(parent=a)
    core.wait(10)
    late = core.submit(parent=a)
    assert a.worker is not None
    core.loom.on_failed(a.worker, a.seq, None, retry=False, seconds=10.0)
    begun(core, a)
    new = core.submit(parent=a)
    assert [node.state for node in (old, late, new)] == [S.CANCELLED, S.CANCELLED, S.READY]


def test_an_overdue_attempt_may_be_cancelled_and_hears_of_one_interrupt() -> None:
    core, worker = one_worker()
    a = begun(core, core.submit(retries=1, pace=AGAIN))
    core.wait(10)
    core.cancel(a)
    assert a.state is S.CANCELLED
    assert core.outbox.said("interrupt") == [(worker, a.seq, False)]
    core.loom.on_failed(worker, a.seq, None, retry=False, seconds=10.0)
    core.check()
    assert a.state is S.CANCELLED
    assert core.is_at_rest()


# -- who does not stop -------------------------------------------------------------------------


def test_who_does_not_stop_in_the_grace_period_is_killed() -> None:
    core, worker = one_worker(grace_s=3.0)
    a = begun(core, core.submit())
    core.cancel(a)
    core.wait(2.9)
    assert core.outbox.said("kill") == []
    core.wait(0.2)
    ((killed, why),) = core.outbox.said("kill")
    assert killed is worker
    assert "f was told to stop" in why
    core.lose(worker, started=a)
    assert core.is_at_rest()


def test_who_stops_in_the_grace_period_is_not_killed() -> None:
    core, worker = one_worker(grace_s=3.0)
    a = begun(core, core.submit())
    core.cancel(a)
    core.wait(2.9)
    core.loom.on_failed(worker, a.seq, None, retry=False, seconds=1.0)
    b = begun(core, core.submit())
    core.wait(10)
    assert core.outbox.said("kill") == []
    assert b.state is S.ASSIGNED
    assert core.alarms() == []


def test_without_a_grace_period_nobody_is_killed() -> None:
    core, _ = one_worker()
    core.cancel(begun(core, core.submit()))
    core.wait(1e6)
    assert core.outbox.said("kill") == []


def test_what_is_too_slow_has_the_grace_period_too() -> None:
    core, worker = one_worker(grace_s=3.0)
    a = begun(core, core.submit(retries=1, pace=AGAIN))
    core.wait(10)
    core.wait(3)
    assert core.outbox.said("kill")
    core.lose(worker, started=a)
    assert (a.state, a.attempt) == (S.READY, 1)


def test_who_stands_behind_another_when_it_is_cancelled_is_no_reason_to_kill() -> None:
    core, worker = one_worker(grace_s=3.0)
    core.learn(seconds=SHORT_S)
    a, b = core.submit(), core.submit()
    core.schedule()
    core.begin(a)
    core.cancel(b)
    core.wait(100)
    assert core.outbox.said("kill") == []
    assert core.with_worker(worker) == [a, b]


def test_what_was_queued_behind_the_deaf_goes_back_uncharged() -> None:
    core, worker = one_worker(grace_s=3.0)
    core.learn(seconds=SHORT_S)
    deaf, innocent = core.submit(), core.submit()
    core.schedule()
    core.begin(deaf)
    core.cancel(deaf)
    core.wait(3)
    core.lose(worker, started=deaf)
    assert (innocent.state, innocent.attempt) == (S.READY, 0)


# -- event loops -------------------------------------------------------------------------------


def two_coroutines() -> tuple[Core, WorkerRecord, Node, Node]:
    core = Core(cpus=1, starts_workers=False, grace_s=3.0)
    worker = core.worker(LOOP)
    deaf, neighbour = (core.submit(coroutine=True, cpus=0) for _ in range(2))
    core.start(deaf, neighbour)
    core.cancel(deaf)
    core.wait(3)
    assert core.outbox.said("take_back") == [(worker,)]
    core.give_back(worker, neighbour, neighbour)  # all that it has was begun
    assert core.outbox.said("kill") == [], "its neighbour has done nothing"
    return core, worker, deaf, neighbour


def test_an_event_loop_with_a_deaf_coroutine_gets_no_more_work() -> None:
    core, *_ = two_coroutines()
    later = core.submit(coroutine=True, cpus=0)
    core.schedule()
    assert later.state is S.READY
    assert core.outbox.said("start_workers")


def test_it_is_killed_when_only_the_deaf_are_left() -> None:
    core, worker, _, neighbour = two_coroutines()
    core.finish(neighbour)
    assert [entry[0] for entry in core.outbox.said("kill")] == [worker]


def test_what_it_has_not_begun_goes_to_another_one_at_no_cost() -> None:
    core = Core(cpus=1, starts_workers=False, grace_s=3.0)
    worker = core.worker(LOOP)
    deaf, later = (core.submit(coroutine=True, cpus=0) for _ in range(2))
    core.start(deaf, later)
    core.cancel(deaf)
    core.wait(3)
    core.give_back(worker, deaf, later)
    assert (later.state, later.attempt) == (S.READY, 0)
    assert [entry[0] for entry in core.outbox.said("kill")] == [worker]


def test_it_is_killed_when_it_does_not_even_answer() -> None:
    core = Core(cpus=1, starts_workers=False, grace_s=3.0)
    worker = core.worker(LOOP)
    deaf, stuck = core.submit(coroutine=True, cpus=0), core.submit(coroutine=True, cpus=0)
    core.start(deaf, stuck)
    core.cancel(deaf)
    core.wait(5.9)
    assert core.outbox.said("kill") == []
    core.wait(0.2)
    assert [entry[0] for entry in core.outbox.said("kill")] == [worker]


def test_each_has_its_own_grace_period_before_that() -> None:
    core, worker, _, neighbour = two_coroutines()
    core.cancel(neighbour)
    core.wait(2)
    core.give_back(worker, neighbour, neighbour)
    assert core.outbox.said("kill") == []
    core.wait(1)
    core.give_back(worker, neighbour, neighbour)
    assert core.outbox.said("kill")


def test_it_is_used_again_when_the_deaf_one_ends_after_all() -> None:
    core, worker, deaf, neighbour = two_coroutines()
    core.loom.on_failed(worker, deaf.seq, None, retry=False, seconds=9.0)
    core.finish(neighbour)
    later = core.submit(coroutine=True, cpus=0)
    core.schedule()
    assert core.with_worker(worker) == [later]
    assert core.outbox.said("kill") == []


def test_a_coroutine_has_its_time_from_when_its_worker_began_it() -> None:
    core = Core(cpus=1, starts_workers=False)
    worker = core.worker(LOOP)
    a = core.submit(coroutine=True, cpus=0, pace=TEN_S)
    core.start(a)
    core.wait(7)  # the loop was held up by another one
    core.loom.on_began(worker, a.seq, 7.0)
    assert a.alarm is not None
    assert a.alarm.began == 7.0
    core.begin(a)
    core.wait(9.9)
    assert a.state is S.ASSIGNED
    core.wait(0.2)
    assert a.state is S.FAILED


# -- nobody spins ------------------------------------------------------------------------------


def rings(core: Core) -> int:
    return len(core.outbox.said("wake_later"))


def test_a_tiny_limit_of_what_has_not_begun_is_no_reason_to_spin() -> None:
    core, _ = one_worker()
    core.start(core.submit(pace=Pace(timeout_s=1e-9)))
    core.wait(1)
    assert rings(core) <= 52


def test_a_grace_period_of_zero_does_not_spin_for_what_has_not_begun() -> None:
    core, _ = one_worker(grace_s=0.0)
    core.learn(seconds=SHORT_S)
    a, b = core.submit(), core.submit()
    core.schedule()
    core.begin(a)
    core.cancel(b)
    core.wait(10)
    assert rings(core) <= 12


def test_a_rest_that_is_too_small_for_the_clock_does_not_spin() -> None:
    core, _ = one_worker()
    core.wait(1e6 / 3)
    a = core.submit(pace=Pace(timeout_s=0.1))
    core.start(a)
    core.wait(0.1 / 3)
    core.begin(a)
    core.wait(0.2)
    assert a.state is S.FAILED
    assert rings(core) <= 4


def test_the_failure_of_a_dependency_ends_the_pause_of_its_follower() -> None:
    core, worker = one_worker()
    core.learn(seconds=SHORT_S)
    a = core.submit()
    b = core.submit([a], retries=1, pace=Pace(retry_delay_s=5.0))
    core.schedule()
    core.lose(worker, started=b)
    core.worker()
    core.schedule()
    core.fail(a)
    assert b.state is S.FAILED
    assert not core.alarms()
    core.wait(5)
    assert b.state is S.FAILED


def test_no_pause_is_left_when_nothing_can_run_any_more() -> None:
    core, _worker = one_worker()
    a = core.submit(retries=1, pace=Pace(retry_delay_s=5.0))
    core.start(a)
    core.fail(a, retry=True)
    assert a.state is S.BACKOFF
    core.loom.fail_everything(Trouble("no workers"), "workers cannot be started")
    assert a.state is S.FAILED
    assert not core.alarms()


def test_when_everything_is_failed_nothing_rings_any_more() -> None:
    core = Core()
    pausing = core.submit(retries=3, pace=Pace(retry_delay_s=1.0))
    core.fail(pausing, retry=True)
    waiting = core.submit([pausing])
    assert pausing.state is S.BACKOFF

    core.loom.fail_everything(Trouble("broken", 0), "workers cannot be started")
    core.check()
    assert pausing.state is waiting.state is S.FAILED
    assert not core.alarms()
    core.wait(10)
    assert core.is_at_rest()
