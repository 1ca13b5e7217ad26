"""Actors in the loom: lines, restarts, room, names; and random lives of them."""

from __future__ import annotations

import functools
import random
from collections import defaultdict

import pytest
from actor_world import ACTOR, ActorCore
from loom_driver import LONG_S, SHORT_S, Trouble

from taskloom._core import actor_invariants
from taskloom._core.actor_record import ActorRecord, ActorState
from taskloom._core.node import Node
from taskloom._core.placement import BUDGET_S, MAX_BATCH
from taskloom._core.self_waits import fail_what_waits_for_itself
from taskloom._core.states import TERMINAL, NodeState
from taskloom.exceptions import InternalError

A, S = ActorState, NodeState


@pytest.fixture
def core() -> ActorCore:
    return ActorCore()


def test_a_default_actor_takes_a_cpu_until_it_is_constructed(core):
    actor = core.create()
    core.schedule()
    assert core.free() == 3
    core.process()
    assert actor.state is A.PENDING
    core.construct(actor)
    assert actor.state is A.ALIVE
    assert core.free() == 4


def test_an_actor_with_cpus_holds_them_until_its_process_is_gone(core):
    actor = core.alive(cpus=3)
    assert core.free() == 1
    worker = actor.worker
    core.kill(actor)
    assert core.free() == 1
    core.lose_process(worker)
    assert core.free() == 4


def test_a_process_is_ordered_once_for_each_actor_that_has_room(core):
    for _ in range(3):
        core.create()
    core.schedule()
    assert core.outbox.said("start_workers") == [(ACTOR, 3)]


def test_processes_for_the_next_actors_start_while_others_are_constructed():
    core = ActorCore(cpus=1)
    first, second, _third = (core.create() for _ in range(3))
    core.schedule()
    assert core.outbox.said("start_workers")[-1] == (ACTOR, 2)
    core.process()
    spare = core.process()
    assert second.worker is None
    core.construct(first)
    assert second.worker is spare
    assert core.outbox.said("start_workers")[-1] == (ACTOR, 1)


def test_calls_wait_for_the_constructor_and_go_out_in_order(core):
    actor = core.create()
    calls = [core.call(actor) for _ in range(3)]
    core.schedule()
    core.process()
    assert [call.state for call in calls] == [S.READY] * 3
    core.construct(actor)
    assert core.running(actor) == calls[:2]
    core.finish(calls[0])
    core.schedule()
    assert core.running(actor) == calls[1:]


@pytest.mark.parametrize(
    ("seconds", "window"),
    [(LONG_S, 2), (BUDGET_S / 5.5, 5), (SHORT_S, MAX_BATCH)],
)
def test_a_worker_has_calls_for_the_budget_at_hand_and_two_at_least(core, seconds, window):
    actor = core.alive()
    calls = [core.call(actor) for _ in range(2 * MAX_BATCH)]
    core.schedule()
    assert core.running(actor) == calls[:2], "nobody knows how long they take"
    core.finish(calls[0], seconds=seconds)
    core.schedule()
    assert core.running(actor) == calls[1 : window + 1]


def test_a_worker_has_no_more_calls_when_they_take_longer_than_before(core):
    actor = core.alive()
    calls = [core.call(actor) for _ in range(2 * MAX_BATCH)]
    core.schedule()
    core.finish(calls[0], seconds=SHORT_S)
    core.schedule()
    core.finish(calls[1], seconds=LONG_S)
    core.schedule()
    assert core.running(actor) == calls[2 : MAX_BATCH + 1], "what it has it keeps"
    for call in calls[2 : MAX_BATCH - 1]:
        core.finish(call, seconds=LONG_S)
    core.schedule()
    assert core.running(actor) == calls[MAX_BATCH - 1 : MAX_BATCH + 1]


def test_a_waiting_call_holds_up_its_own_caller_only(core):
    actor, dep = core.alive(), core.submit()
    waiting = core.call(actor, deps=[dep])
    behind, other = core.call(actor), core.call(actor, caller=7)
    core.schedule()
    assert core.running(actor) == [other]
    core.worker()
    core.finish(dep)
    core.schedule()
    assert core.running(actor) == [other, waiting, behind]


def test_a_cancelled_head_lets_the_next_one_go(core):
    actor, dep = core.alive(), core.submit()
    waiting = core.call(actor, deps=[dep])
    behind = core.call(actor)
    core.cancel(waiting)
    core.schedule()
    assert core.running(actor) == [behind]


def test_a_concurrent_actor_keeps_to_its_limits(core):
    actor = core.alive(threads=2, groups={"io": 1})
    calls = [core.call(actor) for _ in range(3)]
    io = [core.call(actor, group="io") for _ in range(2)]
    core.schedule()
    assert set(core.running(actor)) == {*calls[:2], io[0]}
    core.finish(io[0])
    core.schedule()
    assert io[1].state is S.ASSIGNED


def test_a_call_that_may_be_tried_again_goes_alone(core):
    actor = core.alive()
    first = core.call(actor, retries=1, retry_exceptions=True)
    second = core.call(actor)
    core.schedule()
    assert core.running(actor) == [first]
    core.raises(first, retry=True)
    assert core.running(actor) == [first]
    core.finish(first)
    core.schedule()
    assert core.running(actor) == [second]


def test_what_was_not_begun_runs_after_a_restart_and_in_order(core):
    actor = core.alive(restarts=1)
    calls = [core.call(actor) for _ in range(4)]
    core.schedule()
    core.lose_process(actor.worker, started=calls[1])
    assert [call.state for call in calls] == [S.FAILED, S.FAILED, S.READY, S.READY]
    assert core.outcome(calls[1]).kind == "unavailable: it crashed"
    assert actor.state is A.RESTARTING
    core.process()
    core.construct(actor)
    assert core.running(actor) == calls[2:]
    core.lose_process(actor.worker, started=calls[2])
    assert actor.state is A.DEAD
    assert core.outcome(calls[3]).kind.startswith("died: it crashed, and it had been restarted 1")


def test_calls_with_retries_run_again_before_those_behind_them(core):
    actor = core.alive(restarts=-1)
    calls = [core.call(actor, retries=1) for _ in range(3)]
    core.schedule()
    core.lose_process(actor.worker, started=calls[1])
    core.process()
    core.construct(actor)
    assert core.running(actor) == calls[:2]
    core.finish(calls[0])
    core.schedule()
    assert core.running(actor) == calls[1:]
    assert [call.attempt for call in calls] == [2, 2, 1]


def test_restarts_follow_at_once_unless_they_are_good_for_nothing(core):
    actor = core.alive(restarts=-1)
    for _ in range(10):  # each time a call has ended since the last one
        call = core.call(actor)
        core.schedule()
        core.finish(call)
        core.lose_process(actor.worker)
        assert not core.alarms()
        core.process()
        core.construct(actor)
    core.call(actor, retries=-1)
    core.schedule()
    for _ in range(2):
        core.lose_process(actor.worker, started=actor.worker.seq)
        core.process()
        core.construct(actor)
    core.lose_process(actor.worker, started=actor.worker.seq)
    assert actor.state is A.RESTARTING
    assert len(core.alarms()) == 1, "four restarts, and no call has ended in between"
    core.wait(1.0)
    core.process()
    core.construct(actor)
    core.schedule()
    assert len(core.running(actor)) == 1


def test_a_call_that_ran_too_long_keeps_its_place_and_never_overlaps_itself(core):
    actor = core.alive()
    first = core.call(actor, retries=1, retry_exceptions=True, timeout_s=1.0)
    second = core.call(actor)
    core.schedule()
    core.begin(first)
    core.wait(1.0)
    assert first.overdue
    assert core.running(actor) == [first]
    core.finish(first)  # a value that comes too late is none
    core.schedule()
    assert core.running(actor) == [first]
    assert first.attempt == 2
    core.begin(first)
    core.wait(1.0)
    assert core.outcome(first).kind == "timed out"
    assert core.running(actor) == [first], "the actor is busy until the method ends"
    core.finish(first)
    core.schedule()
    assert core.running(actor) == [second]


def test_every_call_that_a_concurrent_actor_had_may_have_run(core):
    actor = core.alive(restarts=1, threads=3)
    calls = [core.call(actor) for _ in range(4)]
    core.schedule()
    core.lose_process(actor.worker, started=calls[0])
    assert [call.state for call in calls] == [S.FAILED] * 3 + [S.READY]


def test_a_process_that_dies_in_the_constructor_costs_a_restart(core):
    actor = core.create(restarts=1)
    core.schedule()
    worker = core.process()
    core.lose_process(worker, started=actor.creation)
    assert actor.state is A.RESTARTING
    core.lose_process(core.process(), started=actor.creation)
    assert actor.state is A.DEAD
    assert core.free() == 4


def test_the_arguments_of_a_constructor_are_kept_while_it_may_run_again(core):
    value = core.put()
    actor = core.alive(deps=[value], restarts=1)
    core.drop(value)
    assert core.is_kept(value)
    core.kill(actor)
    assert not core.is_kept(value)


def test_a_constructor_that_raises_ends_the_actor_and_its_process(core):
    actor = core.create(restarts=3)
    call = core.call(actor)
    core.schedule()
    worker = core.process()
    core.raises(actor.creation)
    assert actor.state is A.DEAD
    assert core.outcome(call) is actor.death
    assert core.outbox.said("stop_actor") == [(worker,)]


def test_a_failed_argument_is_the_death_of_an_actor(core):
    dep = core.submit()
    actor = core.create(deps=[dep])
    call = core.call(actor)
    core.worker()
    core.start(dep)
    core.fail(dep)
    core.schedule()
    assert actor.state is A.DEAD
    assert isinstance(core.outcome(call), Trouble)


def test_an_actor_ends_when_the_last_reason_to_keep_it_goes(core):
    actor = core.alive()
    call = core.call(actor)
    core.schedule()
    core.drop(actor)
    core.schedule()
    assert actor.state is A.ALIVE
    worker = actor.worker
    core.finish(call)
    core.schedule()
    assert actor.state is A.DEAD
    assert core.outbox.said("stop_actor") == [(worker,)]
    core.lose_process(worker)
    assert actor.key not in core.loom.actors.by_key


def test_a_detached_actor_stays_until_it_is_killed(core):
    actor = core.alive(detached=True, name="d")
    core.drop(actor)
    core.schedule()
    assert actor.state is A.ALIVE
    assert core.loom.actors.find("n", "d") is actor
    core.kill(actor)
    assert core.loom.actors.find("n", "d") is None


def test_an_actor_that_dies_before_it_has_a_process_leaves_it_to_the_next(core):
    first, second = core.create(), core.create()
    core.schedule()
    core.kill(first)
    core.process()
    assert second.worker is not None
    spare = core.process()
    assert core.loom.actors.spare == [spare]
    third = core.create()
    core.schedule()
    assert third.worker is spare


def test_a_blocked_call_lends_the_cpus_of_its_actor(core):
    actor = core.alive(cpus=2)
    core.call(actor)
    core.schedule()
    core.block(actor.worker)
    assert core.free() == 4
    core.unblock(actor.worker)
    assert core.free() == 2


def test_a_constructor_that_waits_lends_the_cpu_it_was_placed_with(core):
    actor = core.create()
    core.schedule()
    worker = core.process()
    core.block(worker)
    assert core.free() == 4
    core.unblock(worker)
    assert core.free() == 3
    core.construct(actor)
    assert core.free() == 4


def test_a_call_that_its_own_actor_waits_for_fails_at_once(core):
    actor, other = core.alive(), core.alive()
    outer = core.call(actor)
    core.schedule()
    inner = core.call(actor, caller=3)
    through = core.submit([inner])
    fine = core.call(other)
    core.schedule()
    watch = functools.partial(fail_what_waits_for_itself, core.loom)
    watch(outer.worker, [through.outputs[0], fine.outputs[0]], 1)
    assert inner.state is S.ASSIGNED  # one of the two is enough, and it can come
    watch(outer.worker, [through.outputs[0], fine.outputs[0]], 2)
    assert core.outcome(inner).kind.startswith("waits for itself")
    assert through.state is S.FAILED
    assert fine.state is S.ASSIGNED


def test_an_illegal_move_is_an_internal_error(core):
    actor = core.alive()
    core.kill(actor)
    with pytest.raises(InternalError, match="DEAD -> ALIVE"):
        actor.move(A.ALIVE)


class Life:
    """Random events around actors; after each all tables are compared."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.core = ActorCore(cpus=3)
        self.actors: list[ActorRecord] = []
        self.handles: dict[ActorRecord, int] = {}
        self.calls: list[Node] = []
        self.tasks: list[Node] = []
        self.order: dict[ActorRecord, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.ran: dict[int, int] = defaultdict(int)
        self.core.worker()

    def step(self) -> None:
        self.random.choice(
            (
                self.create, self.call, self.call, self.call, self.task, self.process,
                self.finish, self.finish, self.finish, self.finish, self.fail, self.lose,
                self.kill, self.drop, self.cancel, self.core.schedule, self.block,
                self.late,
            )
        )()  # fmt: skip

    def create(self) -> None:
        pick = self.random.choice
        deps = [pick(self.tasks)] if self.tasks and pick((0, 0, 1)) else []
        threads = pick((1, 1, 2))
        actor = self.core.create(
            deps=deps, restarts=pick((0, 1, -1)), threads=threads, ordered=pick((True, False)),
            cpus=pick((None, None, 1)),
        )  # fmt: skip
        self.actors.append(actor)
        self.handles[actor] = 1

    def call(self) -> None:
        actor = self._some(self.actors)
        if actor is None or not self.handles[actor]:
            return
        pick = self.random.choice
        deps = [pick(self.tasks)] if self.tasks and pick((0, 0, 1)) else []
        self.calls.append(
            self.core.call(
                actor, deps=deps, retries=pick((0, 1, -1)), caller=pick((0, 5)),
                retry_exceptions=pick((False, False, True)), timeout_s=pick((None, 1.0)),
            )
        )  # fmt: skip

    def task(self) -> None:
        self.tasks.append(self.core.submit())

    def process(self) -> None:
        starting = sum(count for _, count in self.core.outbox.said("start_workers"))
        if starting:
            self.core.process()

    def _busy(self) -> list[Node]:
        workers = self.core.loom.workers.values()
        return [
            node for worker in workers if not worker.pending_requests
            for node in list(worker.inflight.values())[:1]
        ]  # fmt: skip

    def finish(self) -> None:
        node = self._some(self._busy())
        if node is None:
            return
        self._note(node)
        self.core.finish(node)

    def fail(self) -> None:
        node = self._some(self._busy())
        if node is not None:
            self._note(node)
            self.core.raises(node, retry=bool(node.spec.retry_exceptions))

    def _note(self, node: Node) -> None:
        actor = node.actor
        if actor is not None and node is not actor.creation and node.state is S.ASSIGNED:
            self.ran[node.key] += 1
            if actor.facts.is_ordered:
                self.order[actor][node.key >> 56].append(node.key)

    def lose(self) -> None:
        if self.random.random() < 0.7:
            return
        actor = self._some([actor for actor in self.actors if actor.worker is not None])
        if actor is not None:
            worker = actor.worker
            begun = list(worker.inflight.values())[:1]
            for node in begun:
                self._note(node)
            self.core.lose_process(worker, started=begun[0] if begun else worker.seq)

    def kill(self) -> None:
        if self.random.random() < 0.8:
            return
        actor = self._some(self.actors)
        if actor is not None and actor.key in self.core.loom.actors.by_key:
            self.core.kill(actor, no_restart=self.random.choice((True, False)))

    def late(self) -> None:
        """A call runs longer than it may, or time just goes by."""
        node = self._some(self._busy())
        if node is not None:
            self.core.begin(node)
        self.core.wait(1.1)

    def drop(self) -> None:
        actor = self._some([actor for actor, count in self.handles.items() if count])
        if actor is not None and self.random.random() < 0.4:
            self.handles[actor] -= 1
            self.core.drop(actor)

    def cancel(self) -> None:
        node = self._some(self.calls)
        if node is not None and node.outputs[0].key in self.core.loom.graph.objects:
            self.core.cancel(node)

    def block(self) -> None:
        worker = self._some([a.worker for a in self.actors if a.worker and a.worker.inflight])
        if worker is not None:
            if worker.pending_requests:
                self.core.unblock(worker)
            else:
                self.core.block(worker)

    def _some(self, those):  # type: ignore[no-untyped-def]
        return self.random.choice(those) if those else None

    def end(self) -> None:
        """Everybody gets a process, every call ends, every handle goes."""
        core = self.core
        for actor, count in self.handles.items():
            if count:
                core.drop(actor)
        for _ in range(10_000):
            core.wait(2.0)  # whoever rests before the next attempt goes on
            core.schedule()
            actor_invariants.check_idle_hands(core.loom)
            for worker in list(core.loom.workers.values()):
                while worker.pending_requests:
                    core.unblock(worker)
            busy = self._busy()
            for node in busy:
                self._note(node)
                core.finish(node)
            leaving = [a for a in self.actors if a.worker is not None and a.state is A.DEAD]
            for actor in leaving:
                core.lose_process(actor.worker, started=actor.worker.seq)
            if core.loom.actors.awaiting and not core.loom.actors.spare:
                core.process()
            elif not busy and not leaving:
                # Actors that keep their CPUs may be all that stands in the way of the rest.
                holders = [a for a in self.actors if a.state is A.ALIVE and a.spec.request]
                if not core.loom.graph.nodes or not holders:
                    break
                core.kill(holders[0])
        core.schedule()


@pytest.mark.parametrize("seed", range(60))
def test_a_random_life_of_actors_ends_at_rest_and_in_order(seed):
    life = Life(seed)
    for _ in range(150):
        life.step()
    life.end()

    core = life.core
    assert all(call.state in TERMINAL for call in life.calls)
    assert not core.loom.graph.nodes
    assert core.ledger.free == core.ledger.total
    assert not core.loom.actors.by_key
    for call in life.calls:
        if call.spec.max_retries == 0:
            assert life.ran[call.key] <= 1, "at most once"
    for lines in life.order.values():
        for keys in lines.values():
            # A call that runs again does so in its place.
            firsts = list(dict.fromkeys(keys))
            assert firsts == sorted(firsts)


def test_nothing_goes_to_an_actor_before_what_its_caller_is_sending(core):
    actor = core.alive()
    assert core.loom.actors.is_at_rest(actor)
    first = core.call(actor, handed_over=True)
    assert not core.loom.actors.is_at_rest(actor)
    mine, others = core.call(actor), core.call(actor, caller=7)
    core.schedule()
    assert core.running(actor) == [first]
    core.finish(first)
    core.schedule()
    assert set(core.running(actor)) == {mine, others}


def test_an_actor_that_dies_of_what_was_handed_over_gets_the_next_calls_when_it_is_back(core):
    actor = core.alive(restarts=1)
    first = core.call(actor, handed_over=True)
    behind = core.call(actor)
    core.schedule()
    core.lose_process(actor.worker, started=first)
    assert first.state is S.FAILED
    core.process()
    core.construct(actor)
    assert core.running(actor) == [behind]
