"""Which ready call goes to which worker, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loom_driver import LONG_S, LOOP, PROCESS, SHORT_S, Core

from taskloom._core.node import Node, WorkerRecord
from taskloom._core.placement import BUDGET_S, LOOP_CAPACITY, MAX_BATCH, OVERHEAD_S
from taskloom._core.scheduler import MAX_LOOPS, PATIENCE
from taskloom._core.states import NodeState

S = NodeState


def office(cpus: float = 2, workers: int = 2, **options: object) -> tuple[Core, list[WorkerRecord]]:
    """A loom that gets only the workers it is given here."""
    core = Core(cpus=cpus, starts_workers=False, **options)  # type: ignore[arg-type]
    return core, [core.worker() for _ in range(workers)]


def orders(core: Core) -> list[tuple[object, ...]]:
    return core.outbox.said("start_workers")


# -- a single call to a loom at rest, and its plain twin ------------------------------------------


def at_rest(*, plain: bool, cpus: float = 2) -> tuple[Core, list[WorkerRecord]]:
    """``plain``: a single call stands in line like many do."""
    core, workers = office(cpus=cpus)
    if plain:
        ready = core.loom.ready

        def take_lone() -> None:
            ready._line_up()

        ready.take_lone = take_lone  # type: ignore[method-assign]
    return core, workers


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["submit", "finish", "cancel", "chain"]),
            st.sampled_from([0.0, 0.5, 1.0, 2.0]),
            st.integers(0, 2),
            st.sampled_from([SHORT_S, LONG_S]),
        ),
        max_size=25,
    )
)
def test_a_single_call_is_placed_as_one_that_stands_in_line(
    steps: list[tuple[str, float, int, float]],
) -> None:
    stories = []
    for plain in (False, True):
        core, workers = at_rest(plain=plain)
        nodes: list[Node] = []
        story: list[object] = []
        for what, cpus, priority, seconds in steps:
            running = [node for node in nodes if node.state is S.ASSIGNED]
            if what == "finish" and running:
                core.finish(running[0], seconds=seconds)
            elif what == "cancel" and nodes:
                core.cancel(nodes[-1])
            else:
                deps = [nodes[-1]] if what == "chain" and nodes else []
                nodes.append(core.submit(deps, cpus=cpus, priority=priority))
            core.schedule()
            story.append([len(core.with_worker(worker)) for worker in workers])
            story.append([(node.state, node.seq) for node in nodes])
            story.append(dict(core.ledger.free))
        stories.append((story, len(orders(core))))
    assert stories[0] == stories[1]


def test_a_single_call_that_was_cancelled_before_the_pass_goes_to_nobody() -> None:
    core, _ = office()
    core.cancel(core.submit())
    core.schedule()
    assert not core.outbox.said("run")
    node = core.submit()
    core.schedule()
    assert node.state is S.ASSIGNED


def test_a_single_call_waits_in_line_while_all_are_busy() -> None:
    core, _ = office(cpus=4, workers=1)
    first, second = core.submit(), None
    core.schedule()
    second = core.submit()
    core.schedule()
    assert second.state is S.READY
    core.finish(first)
    core.schedule()
    assert second.state is S.ASSIGNED


# -- how much a worker gets --------------------------------------------------------------------


def test_calls_of_an_unknown_function_go_one_to_each_worker() -> None:
    core, workers = office(cpus=4, workers=3)
    for _ in range(10):
        core.submit()
    core.schedule()
    assert [len(core.with_worker(worker)) for worker in workers] == [1, 1, 1]


def test_calls_of_a_long_function_go_one_to_each_worker() -> None:
    core, workers = office()
    core.learn(seconds=LONG_S)
    for _ in range(10):
        core.submit()
    core.schedule()
    assert [len(core.with_worker(worker)) for worker in workers] == [1, 1]


def test_calls_that_are_known_to_be_short_go_in_batches() -> None:
    core, workers = office(checks=False)
    core.learn(seconds=SHORT_S)
    for _ in range(1000):
        core.submit()
    core.schedule()
    assert [len(core.with_worker(worker)) for worker in workers] == [MAX_BATCH, MAX_BATCH]


def test_a_batch_is_as_much_work_as_the_budget_says() -> None:
    core, (worker,) = office(workers=1)
    core.learn(seconds=BUDGET_S / 10 - OVERHEAD_S)
    for _ in range(100):
        core.submit()
    core.schedule()
    assert len(core.with_worker(worker)) in {9, 10}  # it is a quotient of floats


def test_calls_of_several_functions_are_at_hand_as_the_work_that_they_are() -> None:
    core, (worker,) = office(workers=1)
    core.learn("short", SHORT_S)
    core.learn("longer", BUDGET_S / 3 - 2 * OVERHEAD_S)
    short = [core.submit(function="short") for _ in range(5)]
    longer = [core.submit(function="longer") for _ in range(4)]
    core.schedule()
    assert core.with_worker(worker) == [*short, *longer[:2]], "a third one would be too much"
    more = [core.submit(function="short") for _ in range(5)]
    core.finish(*short, seconds=SHORT_S)
    core.schedule()
    assert core.with_worker(worker) == [*longer[:3]], "others come first"
    core.finish(longer[0], seconds=SHORT_S)  # a mean falls slowly
    core.schedule()
    assert core.with_worker(worker) == [*longer[1:], *more]


def test_nothing_goes_behind_a_call_of_which_more_than_one_is_too_much() -> None:
    core, (worker,) = office(workers=1)
    core.learn("short", SHORT_S)
    core.learn("long", LONG_S)
    (long,) = [core.submit(function="long")]
    short = [core.submit(function="short") for _ in range(3)]
    core.schedule()
    assert core.with_worker(worker) == [long]
    core.finish(long)
    core.schedule()
    assert core.with_worker(worker) == short


def test_what_turns_out_to_be_long_counts_as_that_at_once() -> None:
    core, (worker,) = office(workers=1)
    core.learn(seconds=SHORT_S)
    first = [core.submit() for _ in range(4)]
    core.schedule()
    core.finish(first[0], seconds=BUDGET_S)
    more = [core.submit() for _ in range(4)]
    core.schedule()
    assert core.with_worker(worker) == first[1:]
    core.finish(*first[1:], seconds=SHORT_S)
    core.schedule()
    assert core.with_worker(worker)[0] is more[0]


def test_few_short_calls_are_shared_out_evenly() -> None:
    core, workers = office(cpus=3, workers=3)
    core.learn(seconds=SHORT_S)
    for _ in range(10):
        core.submit()
    core.schedule()
    assert sorted(len(core.with_worker(worker)) for worker in workers) == [3, 3, 4]


def test_idle_workers_come_before_busy_ones() -> None:
    core, (first, second) = office()
    core.learn(seconds=SHORT_S)
    a = core.submit()
    core.schedule()
    b = core.submit()
    core.schedule()
    assert a.worker is not b.worker
    assert {a.worker, b.worker} == {first, second}


def test_an_unknown_call_does_not_queue_behind_short_ones() -> None:
    core, (worker,) = office(workers=1)
    core.learn("short", SHORT_S)
    for _ in range(3):
        core.submit(function="short")
    unknown = core.submit(function="unknown")
    later = core.submit(function="short")
    core.schedule()
    assert len(core.with_worker(worker)) == 3
    assert unknown.state is later.state is S.READY


def test_a_short_call_does_not_queue_behind_an_unknown_one() -> None:
    core, (worker,) = office(workers=1)
    core.learn("short", SHORT_S)
    unknown, short = core.submit(function="unknown"), core.submit(function="short")
    core.schedule()
    assert core.with_worker(worker) == [unknown]
    assert short.state is S.READY


def test_one_long_run_ends_the_batches_of_a_function() -> None:
    core, (worker,) = office(workers=1)
    core.learn(seconds=SHORT_S)
    core.finish(core.submit(), seconds=LONG_S)
    for _ in range(5):
        core.submit()
    core.schedule()
    assert len(core.with_worker(worker)) == 1


def test_a_worker_that_runs_dry_is_used_again_first() -> None:
    core, _ = office()
    a = core.submit()
    core.schedule()
    used = a.worker
    core.finish(a)
    b = core.submit()
    core.schedule()
    assert b.worker is used


def test_a_worker_gets_nothing_before_it_is_ready() -> None:
    core = Core(cpus=1, starts_workers=False)
    worker = core.starting_worker()
    a = core.submit()
    core.schedule()
    assert a.state is S.READY
    core.loom.on_worker_ready(worker)
    core.schedule()
    assert core.with_worker(worker) == [a]


def test_a_worker_that_is_being_retired_gets_nothing() -> None:
    core, (worker,) = office(workers=1)
    core.loom.on_worker_retired(worker)
    a = core.submit()
    core.schedule()
    assert a.state is S.READY
    assert orders(core) == [(PROCESS, 1)]


# -- resources ---------------------------------------------------------------------------------


def test_no_more_run_at_once_than_there_are_cpus() -> None:
    core, workers = office(cpus=2, workers=4)
    for _ in range(4):
        core.submit()
    core.schedule()
    assert sum(len(core.with_worker(worker)) for worker in workers) == 2
    assert core.free() == 0


def test_a_task_takes_the_cpus_it_asks_for() -> None:
    core, _ = office(cpus=4, workers=4)
    big, small = core.submit(cpus=3), core.submit(cpus=2)
    core.schedule()
    assert (big.state, small.state) == (S.ASSIGNED, S.READY)
    core.finish(big)
    core.schedule()
    assert small.state is S.ASSIGNED


def test_a_call_that_asks_for_too_much_fails_at_once() -> None:
    core, _ = office(cpus=2)
    never, neither = core.submit(cpus=3), core.submit(needs={"tpu": 1})
    assert never.state is neither.state is S.FAILED
    assert core.outcome(never).kind == "unschedulable"


def test_a_call_that_can_never_run_fails_before_its_dependencies_are_done() -> None:
    core, _ = office(cpus=2)
    a = core.submit()
    assert core.submit([a], cpus=3).state is S.FAILED
    core.finish(a)


def test_tasks_of_one_shape_follow_on_one_lease() -> None:
    core, (worker,) = office(cpus=1, workers=1)
    core.learn(seconds=SHORT_S)
    nodes = [core.submit() for _ in range(MAX_BATCH * 2)]
    core.schedule()
    lease = worker.lease
    core.finish(nodes[0], seconds=SHORT_S)
    core.schedule()
    assert worker.lease is lease
    assert len(core.with_worker(worker)) == MAX_BATCH
    assert core.free() == 0


def test_a_lease_ends_when_the_worker_runs_dry() -> None:
    core, (worker,) = office(workers=1)
    core.finish(core.submit())
    assert worker.lease is None
    assert core.is_at_rest()


def test_tasks_of_different_shapes_do_not_share_a_lease() -> None:
    core, workers = office(cpus=3, workers=2)
    core.learn(seconds=SHORT_S)
    twos, ones = [core.submit(cpus=2) for _ in range(3)], [core.submit() for _ in range(3)]
    core.schedule()
    in_flight = [core.with_worker(worker) for worker in workers]
    assert sorted(in_flight, key=lambda nodes: nodes[0].order) == [twos, ones]


def test_gpus_are_given_to_the_lease() -> None:
    core, workers = office(cpus=2, gpus=2)
    nodes = [core.submit(needs={"GPU": 1}) for _ in range(3)]
    core.schedule()
    assert [node.state for node in nodes] == [S.ASSIGNED, S.ASSIGNED, S.READY]
    ids = [core.ledger.device_ids(worker.lease) for worker in workers if worker.lease]
    assert sorted(entry["GPU"] for entry in ids) == [("g0",), ("g1",)]


# -- who has to wait ---------------------------------------------------------------------------


def pass_by(core: Core, count: int) -> list[Node]:
    """Let ``count`` small tasks come and go, one after the other; those that were started."""
    started = []
    for _ in range(count):
        if started:
            core.finish(started[-1])
        node = core.submit(function="small")
        core.schedule()
        if node.state is not S.ASSIGNED:
            break
        started.append(node)
    return started


def test_a_task_that_does_not_fit_yet_is_passed_by_smaller_ones() -> None:
    core, _ = office(cpus=2, workers=3)
    running = core.submit()
    core.schedule()
    big = core.submit(cpus=2)
    small = core.submit()
    core.schedule()
    assert (running.state, big.state, small.state) == (S.ASSIGNED, S.READY, S.ASSIGNED)


def test_a_task_that_does_not_fit_is_not_passed_by_for_ever() -> None:
    core, _ = office(cpus=2, workers=4)
    first = core.submit()
    core.schedule()
    big = core.submit(cpus=2)
    passing = pass_by(core, 3 * PATIENCE)
    assert PATIENCE <= len(passing) <= PATIENCE + 2
    core.finish(first)
    core.schedule()
    assert big.state is S.ASSIGNED


def test_short_tasks_on_a_standing_lease_do_not_pass_by_for_ever() -> None:
    core, (worker,) = office(cpus=1, workers=1, checks=False)
    core.learn("small", SHORT_S)
    for _ in range(20 * MAX_BATCH):
        core.submit(function="small")
    core.schedule()
    special = core.submit(cpus=0.5, priority=1)
    passed = 0
    while special.state is S.READY:
        core.finish(core.with_worker(worker)[0], seconds=SHORT_S)
        core.schedule()
        passed += 1
    core.check_all()
    assert passed < PATIENCE + 4 * MAX_BATCH


def test_a_task_that_waits_for_its_turn_holds_up_only_those_that_want_what_it_lacks() -> None:
    # The one that has the GPU waits for a call that needs none: holding that one up, too,
    # would be a wait for ever.
    core, _ = office(cpus=4, workers=8, gpus=1)
    holder = core.submit(needs={"GPU": 1}, function="holder")
    core.schedule()
    needs_gpu = core.submit(needs={"GPU": 1})
    pass_by(core, PATIENCE + 10)
    needed = core.submit(function="needed")
    assert holder.worker is not None
    core.block(holder.worker, holder)
    core.schedule()
    assert needs_gpu.state is S.READY
    assert needed.state is S.ASSIGNED


# -- new workers -------------------------------------------------------------------------------


def test_workers_are_started_when_there_is_work_for_them() -> None:
    core, _ = office(cpus=4, workers=0)
    for _ in range(3):
        core.submit()
    core.schedule()
    assert orders(core) == [(PROCESS, 3)]


def test_no_more_workers_are_started_than_there_are_resources_for() -> None:
    core, _ = office(cpus=2, workers=0)
    for _ in range(10):
        core.submit()
    core.schedule()
    assert orders(core) == [(PROCESS, 2)]


def test_workers_on_their_way_count() -> None:
    core, _ = office(cpus=4, workers=0)
    core.starting_worker()
    core.starting_worker()
    for _ in range(3):
        core.submit()
    core.schedule()
    assert orders(core) == [(PROCESS, 1)]


def test_nobody_is_started_for_work_that_a_running_lease_can_take() -> None:
    core, _ = office(cpus=1, workers=1)
    core.submit()
    core.submit()
    core.schedule()
    assert orders(core) == []


def test_tasks_without_cpus_start_workers_in_waves() -> None:
    core, _ = office(cpus=2, workers=0)
    for _ in range(100):
        core.submit(cpus=0)
    core.schedule()
    assert orders(core) == [(PROCESS, 2)]
    for _ in range(2):
        core.worker()
    core.schedule()
    assert orders(core) == [(PROCESS, 2), (PROCESS, 2)]


def test_tasks_without_cpus_run_in_a_session_without_cpus() -> None:
    core = Core(cpus=0)
    nodes = [core.submit(cpus=0) for _ in range(10)]
    core.finish(*nodes)
    assert core.is_at_rest()


def test_all_tasks_without_cpus_run_at_once_in_the_end() -> None:
    core = Core(cpus=1, max_processes=50)
    nodes = [core.submit(cpus=0) for _ in range(40)]
    core.schedule()
    assert all(node.state is S.ASSIGNED for node in nodes)


def test_the_limit_of_processes_is_kept() -> None:
    core = Core(cpus=100, max_processes=5)
    for _ in range(20):
        core.submit()
    core.schedule()
    assert len(core.loom.workers) == 5


# -- tasks that wait ---------------------------------------------------------------------------


def test_a_blocked_task_gives_its_cpu_back() -> None:
    core, _ = office(cpus=1, workers=2)
    parent = core.submit()
    core.start(parent)
    child = core.submit(parent=parent)
    core.schedule()
    assert child.state is S.READY
    assert parent.worker is not None
    core.block(parent.worker, parent)
    assert core.free() == 1
    core.schedule()
    assert child.state is S.ASSIGNED
    core.finish(child)
    core.unblock(parent.worker)
    assert core.free() == 0
    core.finish(parent)
    assert core.is_at_rest()


def test_what_stands_behind_a_blocked_task_comes_back_uncharged() -> None:
    core, (worker,) = office(cpus=1, workers=1)
    core.learn(seconds=SHORT_S)
    nodes = [core.submit() for _ in range(4)]
    core.schedule()
    core.finish(nodes[0], seconds=SHORT_S)
    high = core.block(worker, nodes[1])
    assert high == worker.seq
    assert [node.state for node in nodes[1:]] == [S.ASSIGNED, S.READY, S.READY]
    assert [node.attempt for node in nodes[1:]] == [1, 0, 0]
    assert list(core.loom.ready) == nodes[2:]


def test_what_comes_back_starts_before_what_came_later() -> None:
    core, (worker, _) = office(cpus=1, workers=2)
    core.learn(seconds=SHORT_S)
    nodes = [core.submit() for _ in range(4)]
    core.schedule()
    core.submit()
    core.block(nodes[0].worker or worker, nodes[0])
    core.started_now()
    core.schedule()
    assert core.started_now()[:3] == nodes[1:]


def test_a_blocked_worker_gets_no_work() -> None:
    core, (worker,) = office(cpus=4, workers=1)
    core.learn(seconds=SHORT_S)
    a = core.submit()
    core.schedule()
    core.block(worker, a)
    b = core.submit()
    core.schedule()
    assert b.state is S.READY


def test_a_worker_that_waits_twice_is_blocked_until_both_are_answered() -> None:
    core, (worker,) = office(cpus=1, workers=1)
    a = core.submit()
    core.schedule()
    core.block(worker, a)
    core.block(worker)
    assert core.free() == 1
    core.unblock(worker)
    assert core.free() == 1
    core.unblock(worker)
    assert core.free() == 0


def test_a_cpu_may_be_used_twice_for_a_moment_and_then_nobody_else_starts() -> None:
    core, _ = office(cpus=1, workers=3)
    a = core.submit()
    core.start(a)
    assert a.worker is not None
    core.block(a.worker, a)
    b = core.submit()
    core.start(b)
    core.unblock(a.worker)
    assert core.free() == -1
    core.finish(a)
    c = core.submit()
    core.schedule()
    assert c.state is S.READY
    core.finish(b)
    core.start(c)


def test_a_thread_that_waits_while_its_worker_is_idle_keeps_work_away() -> None:
    core, (worker,) = office(workers=1)
    core.block(worker)
    a = core.submit()
    core.schedule()
    assert a.state is S.READY
    core.unblock(worker)
    core.schedule()
    assert core.with_worker(worker) == [a]


def test_a_thread_that_waits_has_the_queue_behind_its_task_taken_back() -> None:
    core, (worker,) = office(workers=1)
    core.learn(seconds=SHORT_S)
    a, b, c = (core.submit() for _ in range(3))
    core.schedule()
    assert core.block(worker) == 0
    assert core.outbox.said("take_back") == [(worker,)]
    core.give_back(worker, low=a, high=c)
    assert [node.state for node in (a, b, c)] == [S.ASSIGNED, S.READY, S.READY]


def test_a_worker_whose_thread_waits_stays_away_when_it_gives_back_all_it_had() -> None:
    core, (worker,) = office(workers=1)
    core.learn(seconds=SHORT_S)
    a, b = core.submit(), core.submit()
    core.schedule()
    core.block(worker)  # a thread that an earlier task has left behind
    core.finish(a, seconds=SHORT_S)
    core.give_back(worker, low=a, high=b)
    core.schedule()
    assert b.state is S.READY
    core.unblock(worker)
    core.schedule()
    assert core.with_worker(worker) == [b]


def test_the_tasks_end_while_a_thread_still_waits() -> None:
    core, (worker,) = office(workers=1)
    a = core.submit()
    core.schedule()
    core.block(worker)
    core.finish(a)
    assert core.is_at_rest()
    b = core.submit()
    core.schedule()
    assert b.state is S.READY
    core.unblock(worker)
    core.finish(b)


def test_recursion_goes_deep_with_one_cpu() -> None:
    core = Core(cpus=1, max_processes=60)
    line = [core.submit()]
    for _ in range(50):
        core.start(line[-1])
        child = core.submit(parent=line[-1])
        assert line[-1].worker is not None
        core.block(line[-1].worker, line[-1])
        line.append(child)
    for node in reversed(line):
        if node is not line[-1]:
            assert node.worker is not None
            core.unblock(node.worker)
        core.finish(node)
    assert core.is_at_rest()


# -- too deep ----------------------------------------------------------------------------------


def nested(core: Core, depth: int) -> list[Node]:
    """A line of tasks of which each waits for the next; the last one is not started."""
    line = [core.submit()]
    for _ in range(depth):
        core.start(line[-1])
        child = core.submit(parent=line[-1])
        worker = line[-1].worker
        assert worker is not None
        core.block(worker, line[-1])
        line.append(child)
    return line


def test_a_task_fails_when_every_process_waits_and_no_more_may_be_started() -> None:
    core = Core(cpus=1, max_processes=3)
    *waiting, last = nested(core, 3)
    core.schedule()
    assert last.state is S.FAILED
    assert core.outcome(last).kind == "too deep"
    assert all(node.state is S.ASSIGNED for node in waiting)


def test_a_task_fails_when_every_process_waits_and_the_system_gives_no_more() -> None:
    core = Core(cpus=1, max_processes=60)
    *waiting, last = nested(core, 3)
    core.loom.on_shortage()
    core.schedule()
    assert core.outcome(last).kind == "too deep"

    core.loom.on_shortage(over=True)
    other = core.submit()
    core.block(waiting[0].worker, waiting[0])
    core.start(other)
    assert other.state is S.ASSIGNED


def test_a_shortage_of_processes_fails_nobody_while_somebody_moves() -> None:
    core = Core(cpus=2, max_processes=60)
    first, other = core.submit(), core.submit()
    core.start(first, other)
    assert first.worker is not None
    child = core.submit(parent=first)
    core.block(first.worker, first)
    core.loom.on_shortage()
    core.schedule()
    assert child.state is S.READY
    core.finish(other)
    core.schedule()
    assert child.state is S.ASSIGNED


def test_when_a_task_has_failed_as_too_deep_others_use_the_room_it_leaves() -> None:
    core = Core(cpus=1, max_processes=1)
    first = core.submit()
    core.start(first)
    worker = first.worker
    assert worker is not None
    child = core.submit(parent=first)
    other = core.submit()
    # A thread that outlives its task waits for the child; nobody else would tell the loom.
    core.loom.on_blocked(worker, 0)
    core.watch(child, lambda: core.loom.on_unblocked(worker))
    core.finish(first)
    core.schedule()
    assert core.outcome(child).kind == "too deep"
    assert other.state is S.ASSIGNED


def test_nothing_is_kept_for_a_process_that_may_not_be_started() -> None:
    core = Core(cpus=1, max_processes=1)
    first = core.submit()
    core.start(first)
    worker = first.worker
    assert worker is not None
    core.block(worker, first)
    core.worker(LOOP)
    task, coroutine = core.submit(priority=1), core.submit(coroutine=True)
    core.schedule()
    assert coroutine.state is S.ASSIGNED
    assert task.state is S.READY


def test_a_coroutine_that_stops_its_loop_lends_the_cpus_of_all_that_stand_still() -> None:
    core = Core(cpus=3)
    two = [core.submit(coroutine=True) for _ in range(2)]
    core.start(*two)
    worker = two[0].worker
    assert worker is not None
    core.loom.on_blocked(worker, 0, two[1].seq)  # one awaits
    core.loom.on_blocked(worker, -1)  # the other one calls get()
    core.check()
    assert core.free() == 3
    core.loom.on_unblocked(worker, 0, two[1].seq)
    core.check()
    assert core.free() == 3, "it cannot go on before the loop turns"
    core.loom.on_unblocked(worker, -1)
    core.check()
    assert core.free() == 1


def test_a_task_does_not_fail_while_some_process_runs() -> None:
    core = Core(cpus=2, max_processes=3)
    busy = core.submit()
    core.start(busy)
    *_, last = nested(core, 2)
    core.schedule()
    assert last.state is S.READY
    core.finish(busy)
    core.schedule()
    assert last.state is S.ASSIGNED


def test_a_task_does_not_fail_while_a_process_is_on_its_way() -> None:
    core = Core(cpus=1, max_processes=3, starts_workers=False)
    core.worker()
    core.worker()
    *_, last = nested(core, 2)
    coming = core.starting_worker()
    core.schedule()
    assert last.state is S.READY
    core.loom.on_worker_ready(coming)
    core.schedule()
    assert last.state is S.ASSIGNED


def test_a_task_does_not_fail_while_a_coroutine_runs_for_which_all_others_wait() -> None:
    core = Core(cpus=1, max_processes=1)
    parent = core.submit()
    core.start(parent)
    coroutine = core.submit(coroutine=True, cpus=0, parent=parent)
    core.start(coroutine)
    assert parent.worker is not None
    core.block(parent.worker, parent)
    unrelated = core.submit()
    core.schedule()
    assert unrelated.state is S.READY
    core.finish(coroutine)
    core.unblock(parent.worker)
    core.finish(parent)
    core.schedule()
    assert unrelated.state is S.ASSIGNED


def test_a_child_that_nobody_waits_for_does_not_hide_the_one_that_is_waited_for() -> None:
    # No event follows the failure of the first, so one pass must do.
    core = Core(cpus=1, max_processes=1)
    parent = core.submit()
    core.start(parent)
    forgotten = core.submit(parent=parent)
    waited_for = core.submit(parent=parent)
    worker = parent.worker
    assert worker is not None
    core.watch(waited_for, then=lambda: core.loom.on_unblocked(worker))
    core.block(worker, parent)
    core.schedule()
    assert forgotten.state is S.FAILED
    assert waited_for.state is S.FAILED
    assert not worker.blocked


def test_no_more_tasks_fail_than_it_takes_to_go_on() -> None:
    core = Core(cpus=1, max_processes=1)
    parent = core.submit()
    core.start(parent)
    waited_for = core.submit(parent=parent)
    others = [core.submit() for _ in range(3)]
    worker = parent.worker
    assert worker is not None
    core.watch(waited_for, then=lambda: core.loom.on_unblocked(worker))
    core.block(worker, parent)
    core.schedule()
    assert waited_for.state is S.FAILED
    assert all(node.state is S.READY for node in others)
    core.finish(parent, *others)
    assert core.is_at_rest()


# -- coroutines --------------------------------------------------------------------------------


def test_coroutines_share_one_worker_of_their_own() -> None:
    core = Core()
    nodes = [core.submit(coroutine=True, cpus=0) for _ in range(50)]
    core.schedule()
    (worker,) = core.loom.workers.values()
    assert worker.kind is LOOP
    assert core.with_worker(worker) == nodes


def test_a_loop_worker_has_a_limit_and_beyond_it_there_is_another_one() -> None:
    core = Core(checks=False)
    for _ in range(LOOP_CAPACITY + 1):
        core.submit(coroutine=True, cpus=0)
    core.schedule()
    core.check_all()
    assert [len(w.inflight) for w in core.loom.workers.values()] == [LOOP_CAPACITY, 1]


def test_there_is_a_limit_of_loop_workers() -> None:
    core, _ = office(workers=0, checks=False)
    loops = [core.worker(LOOP) for _ in range(MAX_LOOPS)]
    for worker in loops:
        worker.stalled = 1
    core.submit(coroutine=True, cpus=0)
    core.schedule()
    assert orders(core) == []


def test_a_coroutine_that_waits_gives_its_cpu_back() -> None:
    core = Core(cpus=1)
    a = core.submit(coroutine=True)
    core.start(a)
    assert a.worker is not None
    core.loom.on_blocked(a.worker, 0, a.seq)
    core.check()
    b = core.submit()
    core.start(b)
    core.finish(b)
    core.loom.on_unblocked(a.worker, 0, a.seq)
    core.check()
    assert core.free() == 0
    core.finish(a)
    assert core.is_at_rest()


def test_a_coroutine_that_ends_while_it_waits_gives_its_cpu_back_once() -> None:
    core = Core(cpus=1)
    a = core.submit(coroutine=True)
    core.start(a)
    worker, seq = a.worker, a.seq
    assert worker is not None
    core.loom.on_blocked(worker, 0, seq)
    core.finish(a)
    core.loom.on_unblocked(worker, 0, seq)
    core.check()
    assert core.is_at_rest()


def test_a_loop_that_stands_still_gets_no_work_and_another_one_does() -> None:
    core = Core()
    a = core.submit(coroutine=True, cpus=0)
    core.start(a)
    worker = a.worker
    assert worker is not None
    core.loom.on_blocked(worker, -1, a.seq)
    core.check()
    assert core.outbox.said("take_back") == [(worker,)]
    b = core.submit(coroutine=True, cpus=0)
    core.start(b)
    assert b.worker is not worker
    core.loom.on_unblocked(worker, -1, a.seq)
    core.check()
    core.finish(a, b)
    assert core.is_at_rest()


def test_each_coroutine_has_resources_of_its_own() -> None:
    core = Core(cpus=2)
    a, b, c = (core.submit(coroutine=True, cpus=1) for _ in range(3))
    core.schedule()
    assert [node.state for node in (a, b, c)] == [S.ASSIGNED, S.ASSIGNED, S.READY]
    core.finish(b)
    core.start(c)
    core.finish(c, a)
    assert core.is_at_rest()


def test_a_loop_worker_that_waits_still_gets_work() -> None:
    core = Core()
    a = core.submit(coroutine=True, cpus=0)
    core.start(a)
    assert a.worker is not None
    core.block(a.worker)
    b = core.submit(coroutine=True, cpus=0)
    core.start(b)
    assert b.worker is a.worker


@pytest.mark.parametrize("coroutine", [True, False])
def test_coroutines_and_tasks_go_to_their_own_kind(coroutine: bool) -> None:
    core, (worker,) = office(workers=1)
    loop = core.worker(LOOP)
    node = core.submit(coroutine=coroutine)
    core.schedule()
    assert node.worker is (loop if coroutine else worker)


# -- progress ----------------------------------------------------------------------------------


def test_what_stands_behind_a_long_task_is_taken_back() -> None:
    core, (worker,) = office(workers=1)
    core.learn(seconds=SHORT_S)
    a, b, c = (core.submit() for _ in range(3))
    core.schedule()
    assert core.loom.check_progress()
    assert core.outbox.said("take_back") == []
    assert core.loom.check_progress()
    assert core.outbox.said("take_back") == [(worker,)]
    core.give_back(worker, low=a, high=c)
    assert [node.state for node in (a, b, c)] == [S.ASSIGNED, S.READY, S.READY]
    assert [node.attempt for node in (a, b, c)] == [1, 0, 0]


def test_nothing_queues_again_behind_what_turned_out_to_be_long() -> None:
    core, (worker,) = office(workers=1)
    core.learn(seconds=SHORT_S)
    a, b = core.submit(), core.submit()
    core.schedule()
    core.give_back(worker, low=a, high=b)
    core.schedule()
    assert core.with_worker(worker) == [a]
    core.finish(a, seconds=SHORT_S)
    core.schedule()
    assert core.with_worker(worker) == [b]


def test_a_worker_that_gets_on_is_left_alone() -> None:
    core, (_,) = office(workers=1)
    core.learn(seconds=SHORT_S)
    nodes = [core.submit() for _ in range(5)]
    core.schedule()
    for node in nodes[:-1]:
        core.loom.check_progress()
        core.finish(node, seconds=SHORT_S)
    assert core.outbox.said("take_back") == []


def test_nobody_needs_watching_when_nothing_is_queued() -> None:
    core, _ = office(workers=2)
    core.submit()
    core.submit()
    core.schedule()
    assert not core.loom.check_progress()


def test_neighbours_in_a_loop_worker_are_not_behind_one_another() -> None:
    core = Core()
    core.start(core.submit(coroutine=True), core.submit(coroutine=True))
    assert not core.loom.check_progress()


def test_nothing_goes_to_a_worker_before_what_its_caller_is_sending() -> None:
    core, (worker,) = office(cpus=1, workers=1)
    core.learn(seconds=SHORT_S)
    core.finish(core.submit(), seconds=SHORT_S)
    core.schedule()
    assert core.loom.scheduler.idle_worker() is worker
    first = core.hand_over(worker)
    others = [core.submit() for _ in range(5)]
    core.schedule()
    assert core.with_worker(worker) == [first]
    core.finish(first, seconds=SHORT_S)
    core.schedule()
    assert core.with_worker(worker) == others
