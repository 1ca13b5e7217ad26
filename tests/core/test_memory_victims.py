"""Which worker goes when memory runs out, and how often its tasks are tried again."""

from __future__ import annotations

import pytest
from loom_driver import Core, Trouble

from taskloom._core.memory_victims import (
    IDLE_WORTH_BYTES,
    MAX_DELAY_S,
    RETRY_DELAY_S,
    Candidate,
    MemoryRetries,
    pick_victim,
)
from taskloom._core.node import Node
from taskloom._core.states import NodeState

GIB = 1 << 30
S = NodeState


def running(core: Core, *, retries: int = 3) -> Node:
    node = core.submit(retries=retries)
    core.start(node)
    return node


def picked(candidates: list[Candidate], excess: int = 1, limit: int = 3) -> int | None:
    victim = pick_victim(candidates, excess, MemoryRetries(limit).may_retry)
    return victim.number if victim is not None else None


# -- which one ----------------------------------------------------------------------------------


def test_the_youngest_goes_first(core: Core) -> None:
    old, young, middle = (running(core) for _ in range(3))
    candidates = [
        Candidate(1, GIB, (old,), since=1),
        Candidate(2, GIB, (young,), since=7),
        Candidate(3, GIB, (middle,), since=4),
    ]
    assert picked(candidates) == 2


def test_of_those_that_began_together_the_one_that_was_submitted_last_goes(core: Core) -> None:
    first, last = running(core), running(core)
    assert picked([Candidate(1, GIB, (last,)), Candidate(2, GIB, (first,))]) == 1


def test_a_task_that_may_be_tried_again_goes_before_a_younger_one_that_may_not(core: Core) -> None:
    dear, cheap = running(core, retries=0), running(core)
    candidates = [Candidate(1, 9 * GIB, (dear,), since=9), Candidate(2, GIB, (cheap,), since=1)]
    assert picked(candidates) == 2


def test_a_task_that_may_not_be_tried_again_goes_when_there_is_no_other(core: Core) -> None:
    assert picked([Candidate(1, GIB, (running(core, retries=0),))]) == 1


def test_a_worker_with_many_coroutines_counts_as_dear_when_one_of_them_is(core: Core) -> None:
    dear, cheap, other = running(core, retries=0), running(core), running(core)
    candidates = [Candidate(1, GIB, (cheap, dear), since=9), Candidate(2, GIB, (other,), since=1)]
    assert picked(candidates) == 2


def test_a_task_that_was_cancelled_has_nothing_to_lose(core: Core) -> None:
    cancelled, cheap = running(core, retries=0), running(core)
    core.cancel(cancelled)
    candidates = [Candidate(1, GIB, (cheap,), since=1), Candidate(2, GIB, (cancelled,), since=2)]
    assert picked(candidates) == 2


def test_who_holds_little_compared_with_the_others_is_left_alone(core: Core) -> None:
    large, small = running(core), running(core)
    candidates = [
        Candidate(1, 10 * GIB, (large,), since=1),
        Candidate(2, GIB // 50, (small,), since=9),
    ]
    assert picked(candidates) == 1


def test_an_idle_worker_that_holds_much_goes_before_everybody(core: Core) -> None:
    candidates = [
        Candidate(1, GIB, (running(core),), since=9),
        Candidate(2, IDLE_WORTH_BYTES, ()),
        Candidate(3, IDLE_WORTH_BYTES + 1, ()),
    ]
    assert picked(candidates) == 3


def test_an_idle_worker_that_holds_little_stays(core: Core) -> None:
    candidates = [
        Candidate(1, GIB, (running(core),)),
        Candidate(2, IDLE_WORTH_BYTES - 1, ()),
    ]
    assert picked(candidates) == 1


def test_nobody_goes_when_somebody_else_has_the_memory(core: Core) -> None:
    candidates = [Candidate(1, GIB, (running(core),)), Candidate(2, GIB, ())]
    assert picked(candidates, excess=2 * GIB) is not None
    assert picked(candidates, excess=2 * GIB + 1) is None


def test_without_workers_nobody_goes() -> None:
    assert picked([]) is None


def test_idle_workers_that_hold_little_are_nobody_to_end() -> None:
    assert picked([Candidate(1, 1000, ()), Candidate(2, 2000, ())], excess=5) is None


# -- how often ----------------------------------------------------------------------------------


def lose_for_memory(core: Core, node: Node, memory: MemoryRetries) -> None:
    if node.state is S.READY:
        core.start(node)
    assert node.worker is not None
    core.loom.on_worker_lost(node.worker, node.seq, lambda _: Trouble("no memory"), memory)
    core.check()


def due(core: Core, node: Node) -> None:
    if node.alarm is not None:
        core.loom.on_alarm(node.alarm)
    core.check()


def test_a_task_is_tried_again_as_often_as_the_session_allows(core: Core) -> None:
    memory = MemoryRetries(3)
    node = core.submit(retries=1)
    for _ in range(3):
        lose_for_memory(core, node, memory)
        assert node.state is S.BACKOFF
        due(core, node)
        assert node.state is S.READY
    lose_for_memory(core, node, memory)
    assert node.state is S.FAILED
    assert core.outcome(node).kind == "no memory"


def test_minus_one_tries_for_ever(core: Core) -> None:
    memory = MemoryRetries(-1)
    node = core.submit(retries=1)
    for _ in range(100):
        lose_for_memory(core, node, memory)
        due(core, node)
    core.finish(node)
    assert node.state is S.FINISHED


def test_zero_tries_never_again(core: Core) -> None:
    node = core.submit(retries=3)
    lose_for_memory(core, node, MemoryRetries(0))
    assert node.state is S.FAILED


def test_a_task_that_must_not_run_twice_does_not(core: Core) -> None:
    node = core.submit(retries=0)
    lose_for_memory(core, node, MemoryRetries(3))
    assert node.state is S.FAILED


def test_memory_and_crashes_have_budgets_of_their_own(core: Core) -> None:
    memory = MemoryRetries(2)
    node = core.submit(retries=1)
    for _ in range(2):
        lose_for_memory(core, node, memory)
        due(core, node)
    core.start(node)
    assert node.worker is not None
    core.lose(node.worker, started=node)
    assert node.state is S.READY, "its only crash so far"
    core.finish(node)
    assert node.state is S.FINISHED


def test_each_retry_waits_twice_as_long_as_the_one_before(core: Core) -> None:
    memory = MemoryRetries(-1)
    node = core.submit(retries=1)
    for _ in range(12):
        lose_for_memory(core, node, memory)
        due(core, node)
    delays = [delay_s for _, delay_s in core.outbox.said("wake_later")]
    assert delays[:3] == [RETRY_DELAY_S, 2 * RETRY_DELAY_S, 4 * RETRY_DELAY_S]
    assert delays[-1] == MAX_DELAY_S


def test_what_only_stood_behind_the_one_that_ran_goes_back_at_once(core: Core) -> None:
    core = Core(cpus=1, starts_workers=False)
    worker = core.worker()
    core.learn()
    first, second = core.submit(retries=3), core.submit(retries=0)
    core.schedule()
    assert core.with_worker(worker) == [first, second]
    lose_for_memory(core, first, MemoryRetries(3))
    assert (first.state, second.state, second.attempt) == (S.BACKOFF, S.READY, 0)


@pytest.mark.parametrize("how", ["cancel", "drop"])
def test_a_task_that_is_cancelled_while_it_waits_for_its_retry_stays_cancelled(
    core: Core, how: str
) -> None:
    node = core.submit(retries=3)
    lose_for_memory(core, node, MemoryRetries(3))
    core.cancel(node)
    if how == "drop":
        core.drop(node)
    due(core, node)
    core.schedule()
    assert node.state is S.CANCELLED
    assert core.is_at_rest()


def test_counts_of_tasks_that_have_ended_are_not_kept(core: Core) -> None:
    memory = MemoryRetries(3)
    for _ in range(50):
        node = core.submit(retries=3)
        lose_for_memory(core, node, memory)
        due(core, node)
        core.finish(node)
    assert len(memory._ended) == 1


def test_an_actor_goes_only_when_no_task_can_and_never_when_it_runs_nothing(core: Core) -> None:
    cheap, call = running(core), running(core)
    resting = Candidate(1, 9 * GIB, (), has_state=True)
    acting = Candidate(2, 9 * GIB, (call,), since=9, has_state=True)
    assert picked([resting, acting, Candidate(3, GIB, (cheap,))]) == 3
    assert picked([resting, acting]) == 2
    assert picked([resting]) is None
