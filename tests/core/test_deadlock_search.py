"""Who waits in a circle, by the tables alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from actor_world import ActorCore
from loom_driver import LOOP, Core
from tests.scale import scaled

from taskloom._core.actor_record import ActorRecord
from taskloom._core.deadlock import Wait, _Search, describe_circle, find_circle
from taskloom._core.node import Node, ObjectRecord


def waits(node: Node, *others: Node | ObjectRecord, final: bool = True) -> Wait:
    records = [other.outputs[0] if isinstance(other, Node) else other for other in others]
    return Wait(node=node, records=records, final=final, question=None)


def running(core: Core, count: int, **options: object) -> list[Node]:
    nodes = [core.submit(**options) for _ in range(count)]  # type: ignore[arg-type]
    core.start(*nodes)
    return nodes


def test_two_that_wait_for_each_other(core):
    a, b = running(core, 2)
    assert set(find_circle(core.loom, [waits(a, b), waits(b, a)])) == {a, b}


def test_one_that_waits_for_itself(core):
    (a,) = running(core, 1)
    assert find_circle(core.loom, [waits(a, a)]) == [a]


def test_the_circle_is_named_without_those_that_only_lead_to_it(core):
    a, b, c = running(core, 3)
    circle = find_circle(core.loom, [waits(c, a), waits(a, b), waits(b, a)])
    assert set(circle) == {a, b}


def test_a_chain_that_ends_in_one_that_runs_is_none(core):
    a, b, c = running(core, 3)
    assert find_circle(core.loom, [waits(a, b), waits(b, c)]) == []


def test_a_wait_for_one_that_runs_as_well_may_end(core):
    a, b, c = running(core, 3)
    assert find_circle(core.loom, [waits(a, b, c), waits(b, a)]) == []
    core.finish(c)
    assert set(find_circle(core.loom, [waits(a, b, c), waits(b, a)])) == {a, b}


def test_a_wait_that_is_not_final_may_end_by_itself(core):
    a, b = running(core, 2)
    both = [waits(a, b), waits(b, a, final=False)]
    assert find_circle(core.loom, both) == []
    assert set(find_circle(core.loom, both, only_final=False)) == {a, b}


def test_two_awaits_of_a_coroutine_are_one_wait(core):
    core.worker(LOOP)
    a, b = running(core, 2, coroutine=True)
    both = [waits(a, a, final=False), waits(a, b, final=False)]
    assert find_circle(core.loom, both, only_final=False) == []


def test_a_circle_through_an_argument(core):
    (a,) = running(core, 1)
    b = core.submit([a])
    circle = find_circle(core.loom, [waits(a, b)])
    assert set(circle) == {a, b}
    text = describe_circle(circle, lambda n: "ab"[n is b], [waits(a, b)])
    assert "a waits for b" in text
    assert "b needs the result of a as an argument" in text


def test_a_ready_call_that_fits_moves(core):
    (a,) = running(core, 1)
    b = core.submit()
    assert find_circle(core.loom, [waits(a, b)]) == []


@pytest.mark.parametrize("needs", [{"tpu": 1}, {"GPU": 1}])
def test_what_waits_holds_what_the_other_one_needs(needs):
    core = Core(resources={"tpu": 1}, gpus=1)
    (a,) = running(core, 1, needs=needs)
    b = core.submit(needs=needs, parent=a, by=a.worker)
    core.block(a.worker, a)
    circle = find_circle(core.loom, [waits(a, b)])
    assert set(circle) == {a, b}
    assert "needs resources that" in describe_circle(circle, str, [waits(a, b)])


def test_cpus_are_lent_and_so_in_nobodys_way():
    core = Core(cpus=1)
    (a,) = running(core, 1)
    b = core.submit(parent=a, by=a.worker)
    core.block(a.worker, a)
    assert find_circle(core.loom, [waits(a, b)]) == []


def test_a_resource_that_one_holds_who_runs_will_be_free():
    core = Core(resources={"tpu": 2})
    a, other = running(core, 2, needs={"tpu": 1})
    b = core.submit(needs={"tpu": 1})
    core.block(a.worker, a)
    assert find_circle(core.loom, [waits(a, b)]) == []
    core.finish(other)
    assert find_circle(core.loom, [waits(a, b)]) == []  # it fits now


def test_a_cancelled_task_is_not_waited_for_long(core):
    a, b = running(core, 2)
    core.loom.on_cancel(b.outputs[0].key, force=False, recursive=True)
    assert find_circle(core.loom, [waits(a, b), waits(b, a)]) == []


def test_the_end_of_a_group_waits_for_all_that_is_in_it(core):
    (a,) = running(core, 1)
    scope = core.open_scope(owner=a)
    member = core.submit(parent=a, by=a.worker, scope=scope)
    core.start(member)
    pair = [waits(a, scope.end), waits(member, a)]
    assert find_circle(core.loom, pair) == []  # the owner is still in its block
    core.close_scope(scope)
    assert set(find_circle(core.loom, pair)) == {a, member}


def test_a_long_way_round_is_found_without_recursion():
    core = Core(checks=False)
    (a,) = running(core, 1)
    node = a
    for _ in range(20_000):
        node = core.submit([node])
    circle = find_circle(core.loom, [waits(a, node)])
    assert len(circle) == 20_001
    assert "and so on, 20001 in all" in describe_circle(circle, str, [waits(a, node)])


class Drawn(_Search):
    """A search in a graph that is given: who needs one of whom; None moves."""

    def __init__(self, graph: dict[int, list[int | None]], blocked: list[int]) -> None:
        self._blocked = dict.fromkeys(blocked)  # type: ignore[assignment]
        self._alike = {}
        self.graph = graph
        self.looked = 0

    def _needs(self, node: int) -> Iterator[int | None]:  # type: ignore[override]
        for helper in self.graph[node]:
            self.looked += 1
            yield helper


@pytest.mark.parametrize("seed", range(scaled(300)))
def test_the_search_finds_what_never_moves_however_it_is_drawn(seed):
    chance = random.Random(seed)
    nodes = range(chance.choice((2, 5, 12)))
    share = chance.random() / 4
    graph = {
        node: [
            None if chance.random() < share else chance.choice(nodes)
            for _ in range(chance.choice((0, 1, 1, 1, 2, 3)) if chance.random() < 0.9 else 1)
        ]
        for node in nodes
    }
    moving: set[int] = set()
    while True:  # the plain way
        more = {
            node
            for node, helpers in graph.items()
            if not helpers or any(helper is None or helper in moving for helper in helpers)
        }
        if more == moving:
            break
        moving = more
    reachable, todo = set[int](), [chance.choice(nodes)]
    blocked = todo.copy()
    while todo:
        node = todo.pop()
        if node not in reachable:
            reachable.add(node)
            todo += [helper for helper in graph[node] if helper is not None]
    stuck = Drawn(graph, blocked).stuck()
    assert {*stuck} & {*blocked} == {*blocked} - moving
    assert {*stuck} <= reachable - moving
    for node, helpers in stuck.items():
        assert helpers
        assert helpers == graph[node]


def test_a_search_looks_no_further_than_it_must():
    many = 10_000
    graph: dict[int, list[int | None]] = {0: [*range(1, many)]}
    graph |= {node: [] for node in range(1, many)}
    search = Drawn(graph, [0])
    assert search.stuck() == {}
    assert search.looked == 1


def test_calls_in_one_line_are_looked_at_as_one(monkeypatch):
    core = ActorCore()
    core.worker()
    (a,) = running(core, 1)
    actor = core.alive(threads=2)
    first, second, *behind = [core.call(actor) for _ in range(50)]
    core.schedule()
    both = [waits(a, *behind), waits(first, a), waits(second, a)]
    asked = []
    ask = ActorRecord.in_the_way
    monkeypatch.setattr(
        ActorRecord, "in_the_way", lambda self, node: (asked.append(node), ask(self, node))[1]
    )
    circle = find_circle(core.loom, both)
    assert len(circle) == 3
    assert {*circle} & {first, second}
    assert {*circle} & {*behind}
    assert len(asked) == 1
