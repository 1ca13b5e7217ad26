"""Two thousand random sessions with a virtual clock; and proof that they would notice.

More of them: ``make fuzz SEEDS=2000:100000``.  A seed that fails is cut down there; the plan that
is printed then becomes an entry of ``ONCE_FAILED``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
from loom_bodies import STEPS
from loom_fuzz import explain, failure
from loom_plan import ACTIONS, FAULTS, Call, Plan, make_plan, shrink
from loom_simulation import Simulation
from loom_world import is_over
from tests.scale import scaled

from taskloom._core.graph import Graph
from taskloom._core.reactor import Reactor
from taskloom._core.ready_queue import ReadyQueue
from taskloom._core.resources import Ledger
from taskloom._core.scheduler import Scheduler
from taskloom._engine.requests import Requests

SEEDS = scaled(2000)
AT_A_TIME = 100

# Plans that found something, cut down to what it took.
ONCE_FAILED = {
    "a coroutine that calls get() kept its CPU, and nobody could bring what it waited for": Plan(
        seed=39,
        actions=(
            (
                0.1,
                "submit",
                Call(body=(("submit", Call()), ("stall", None)), coroutine=True),
            ),
        ),
    ),
    "when a call had failed as too deep, nobody looked again whether there was room now": Plan(
        seed=69,
        actions=(
            (0.0, "submit", Call(body=(("work", 0.05),))),
            (0.05, "submit", Call((-1,))),
            (0.05, "submit", Call(body=(("submit", Call()), ("thread", (59, 64232), 0.01)))),
        ),
    ),
    "CPUs were kept for a process that may not be started, and coroutines went without": Plan(
        seed=107,
        actions=(
            (
                0.001,
                "submit",
                Call(
                    body=(
                        (
                            "submit",
                            Call(
                                body=(
                                    (
                                        "submit",
                                        Call(
                                            body=(
                                                ("submit", Call()),
                                                ("submit", Call(coroutine=True, cpus=0)),
                                                ("die", 2),
                                            ),
                                            coroutine=True,
                                        ),
                                    ),
                                    ("await", (94, 36200), True),
                                ),
                                coroutine=True,
                                retries=3,
                            ),
                        ),
                        ("await", (42, 36460, 49088), True),
                    ),
                ),
            ),
        ),
    ),
}


@pytest.mark.parametrize("first", range(0, SEEDS, AT_A_TIME))
def test_whatever_happens_every_ref_is_settled_and_nothing_is_left(first: int) -> None:
    for seed in range(first, first + AT_A_TIME):
        plan = make_plan(seed)
        if failure(plan) is not None:
            pytest.fail(explain(plan), pytrace=False)


@pytest.mark.parametrize("plan", ONCE_FAILED.values(), ids=ONCE_FAILED)
def test_what_was_found_once_stays_mended(plan: Plan) -> None:
    if failure(plan) is not None:
        pytest.fail(explain(plan), pytrace=False)


def test_the_same_seed_is_the_same_story() -> None:
    stories = []
    for _ in range(2):
        simulation = Simulation(make_plan(7), trace=True)
        simulation.run()
        stories.append([line.partition(" at 0x")[0] for line in simulation.trace or ()])
    assert stories[0] == stories[1]
    assert len(stories[0]) > 20


def test_the_plans_have_everything_in_them() -> None:
    """What the generator can draw is drawn, and calls end in every way that there is."""
    faults, steps, actions, kinds, ends = set(), set(), set(), set(), set()
    for seed in range(300):
        plan = make_plan(seed)
        faults |= plan.faults
        actions |= {action[1] for action in plan.actions}
        simulation = Simulation(plan)
        simulation.run()
        for call in simulation.calls.values():
            steps |= {step[0] for step in call.body}
        for record in simulation.judge.settled.values():
            kinds.add(getattr(record, "kind", "value"))
        ends |= {node.state.name for node in simulation.nodes if is_over(node)}
    assert faults == set(FAULTS)
    assert steps == set(STEPS)
    assert actions == set(ACTIONS) - {"chain", "fan"}, "these are many calls each"
    causes = {"raised", "crash", "cancelled", "timed out", "unschedulable", "too deep", "broken"}
    assert kinds == {"value", *causes}
    assert ends == {"FINISHED", "FAILED", "CANCELLED"}


# -- would it notice?  The loom is broken in many ways, and each must be found --------------------


def forgets_to_release_a_lease(patch: pytest.MonkeyPatch) -> None:
    def end_lease(self: Reactor, worker: Any) -> None:
        if worker.lease is not None:
            self.scheduler.lease_ended(worker)
            worker.lease = None

    patch.setattr(Reactor, "end_lease", end_lease)


def drops_a_dependent(patch: pytest.MonkeyPatch) -> None:
    finish = Graph.finish

    def finish_and_lose(self: Graph, node: Any, *rest: Any) -> Any:
        for record in node.outputs:
            if record.dependents and len(record.dependents) > 1:
                record.dependents.pop()
        return finish(self, node, *rest)

    patch.setattr(Graph, "finish", finish_and_lose)


def pushes_twice(patch: pytest.MonkeyPatch) -> None:
    push_front = ReadyQueue.push_front

    def push_twice(self: ReadyQueue, nodes: list[Any]) -> None:
        push_front(self, nodes + nodes[:1])

    patch.setattr(ReadyQueue, "push_front", push_twice)


def charges_the_innocent(patch: pytest.MonkeyPatch) -> None:
    put_back = Reactor.put_back

    def charge(self: Reactor, worker: Any, seqs: list[int], why: str) -> None:
        nodes = [worker.inflight[seq] for seq in seqs]
        put_back(self, worker, seqs, why)
        for node in nodes:
            if node.state.name == "READY":
                node.attempt += "died" in why

    patch.setattr(Reactor, "put_back", charge)


def gives_the_guilty_another_attempt(patch: pytest.MonkeyPatch) -> None:
    lost = Reactor.on_worker_lost

    def on_lost(self: Reactor, worker: Any, started: int, crash: Any) -> None:
        lost(self, worker, started - 1, crash)

    patch.setattr(Reactor, "on_worker_lost", on_lost)


def forgets_what_the_dead_had_borrowed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reactor, "release_borrowed", lambda self, worker: None)


def never_takes_lent_cpus_back(patch: pytest.MonkeyPatch) -> None:
    def reclaim(self: Ledger, allocation: Any) -> None:
        allocation.cpus_lent = False

    patch.setattr(Ledger, "reclaim_cpus", reclaim)


def keeps_a_share_of_a_gpu(patch: pytest.MonkeyPatch) -> None:
    release = Ledger.release

    def release_units(self: Ledger, allocation: Any) -> None:
        allocation.devices = None
        release(self, allocation)

    patch.setattr(Ledger, "release", release_units)


def leaves_the_children_of_the_cancelled_alone(patch: pytest.MonkeyPatch) -> None:
    cancel = Reactor.on_cancel

    def on_cancel(self: Reactor, key: int, *, force: bool, recursive: bool) -> None:
        cancel(self, key, force=force, recursive=False)

    patch.setattr(Reactor, "on_cancel", on_cancel)


def looks_only_once_for_work(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "run_pass", Scheduler._pass_once)


def forgets_who_is_idle(patch: pytest.MonkeyPatch) -> None:
    add_idle = Scheduler.add_idle

    def add_new(self: Scheduler, worker: Any) -> None:
        if not worker.seq or worker.seq % 5:
            add_idle(self, worker)

    patch.setattr(Scheduler, "add_idle", add_new)


def does_not_keep_what_a_value_contains(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Graph, "_contain", lambda self, record, keys: None)


def settles_an_error_with_the_wrong_cause(patch: pytest.MonkeyPatch) -> None:
    submit = Reactor.on_submit

    def on_submit(self: Reactor, node: Any) -> None:
        for dep in node.deps:
            if dep.failed:
                self.graph.add(node)
                self.graph.fail(node, dep.outcome, "not inherited")
                return
        submit(self, node)

    patch.setattr(Reactor, "on_submit", on_submit)


def does_not_answer_a_task_that_waits(patch: pytest.MonkeyPatch) -> None:
    progress = Requests._get_progress

    def lose_failures(self: Requests, question: Any, record: Any) -> None:
        if not record.failed:
            progress(self, question, record)

    patch.setattr(Requests, "_get_progress", lose_failures)


def retries_what_was_cancelled(patch: pytest.MonkeyPatch) -> None:
    failed = Reactor.on_failed

    def on_failed(self: Reactor, worker: Any, seq: int, error: Any, **how: Any) -> None:
        node = worker.inflight.get(seq)
        failed(self, worker, seq, error, **how)
        if node is not None and node.state.name == "CANCELLED":
            self.ready.push(node)
            node.state = type(node.state).READY
            self.graph.nodes[node.key] = node

    patch.setattr(Reactor, "on_failed", on_failed)


def hands_a_worker_more_than_it_may_have(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_room", lambda self, worker, node: 1000)


BROKEN = [
    forgets_to_release_a_lease,
    drops_a_dependent,
    pushes_twice,
    charges_the_innocent,
    gives_the_guilty_another_attempt,
    forgets_what_the_dead_had_borrowed,
    never_takes_lent_cpus_back,
    keeps_a_share_of_a_gpu,
    leaves_the_children_of_the_cancelled_alone,
    looks_only_once_for_work,
    forgets_who_is_idle,
    does_not_keep_what_a_value_contains,
    settles_an_error_with_the_wrong_cause,
    does_not_answer_a_task_that_waits,
    retries_what_was_cancelled,
    hands_a_worker_more_than_it_may_have,
]


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda breaks: breaks.__name__)
def test_a_loom_that(breaks: Callable[[pytest.MonkeyPatch], None], monkeypatch) -> None:
    breaks(monkeypatch)
    plans = chain(ONCE_FAILED.values(), map(make_plan, range(300)))
    assert any(failure(plan) for plan in plans), "is not found out"


def test_a_failing_plan_is_cut_down_to_what_it_takes(monkeypatch) -> None:
    forgets_to_release_a_lease(monkeypatch)
    plan = next(plan for plan in map(make_plan, range(50)) if failure(plan) is not None)
    smallest = shrink(plan, lambda other: failure(other) is not None)
    assert len(smallest.actions) == 1
    assert not smallest.faults
    assert "Traceback" in explain(smallest)
