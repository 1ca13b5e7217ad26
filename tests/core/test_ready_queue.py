"""In which order ready nodes start."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st
from loom_driver import Core

from taskloom._core.node import Node
from taskloom._core.ready_queue import ReadyQueue


def order_of(core: Core) -> list[Node]:
    """The order in which one worker would start all that is ready."""
    nodes = []
    queue = core.loom.ready
    while buckets := queue.in_order():
        nodes.append(buckets[0].nodes.popleft())
    return nodes


def test_first_come_first_served(core: Core) -> None:
    nodes = [core.submit() for _ in range(5)]
    assert order_of(core) == nodes


def test_higher_priority_first(core: Core) -> None:
    low, plain, high = (core.submit(priority=p) for p in (-1, 0, 7))
    assert order_of(core) == [high, plain, low]


def test_deeper_nested_first(core: Core) -> None:
    parent = core.submit()
    core.start(parent)
    flat = core.submit()
    child = core.submit(parent=parent)
    grandchild = core.submit(parent=child)
    assert order_of(core) == [grandchild, child, flat]


def test_priority_goes_before_depth(core: Core) -> None:
    parent = core.submit()
    core.start(parent)
    child, urgent = core.submit(parent=parent), core.submit(priority=1)
    assert order_of(core) == [urgent, child]


def test_calls_of_different_shapes_keep_their_common_order(core: Core) -> None:
    nodes = [core.submit(cpus=cpus) for cpus in (1, 2, 1, 3, 2, 1)]
    assert order_of(core) == nodes


def test_cancelled_calls_are_passed_over(core: Core) -> None:
    a, b, c, d = (core.submit() for _ in range(4))
    core.cancel(a)
    core.cancel(c)
    assert list(core.loom.ready) == [b, d]
    assert order_of(core) == [b, d]


def test_a_queue_of_cancelled_calls_is_empty(core: Core) -> None:
    nodes = [core.submit(cpus=1 + i % 3) for i in range(9)]
    for node in nodes:
        core.cancel(node)
    assert not core.loom.ready
    assert core.loom.ready.in_order() == []
    core.schedule()
    assert core.started_now() == []


def test_what_was_handed_out_and_comes_back_goes_before_what_came_later(core: Core) -> None:
    early = [core.submit() for _ in range(3)]
    late = core.submit()
    queue = ReadyQueue()
    queue.push(late)
    queue.push_front(early)
    assert list(queue) == [*early, late]


def test_a_new_queue_is_empty() -> None:
    queue = ReadyQueue()
    assert not queue
    assert list(queue) == []
    assert queue.in_order() == []


@given(
    st.lists(
        st.tuples(st.integers(-2, 2), st.integers(0, 3), st.sampled_from([0, 1, 2]), st.booleans())
    )
)
def test_the_order_is_that_of_one_sorted_list(
    calls: list[tuple[int, int, int, bool]],
) -> None:
    core = Core(checks=False)
    nodes = []
    for priority, depth, cpus, is_cancelled in calls:
        parent = None
        if depth:
            parent = core.submit()
            core.cancel(parent, recursive=False)
            parent.cancel_asked = False
            parent.depth = depth - 1
        node = core.submit(priority=priority, cpus=cpus, parent=parent)
        if is_cancelled:
            core.cancel(node)
        else:
            nodes.append(node)
    expected = sorted(nodes, key=lambda n: (-n.spec.priority, -n.depth, n.order))
    assert order_of(core) == expected


def standing(core: Core) -> int:
    """How many nodes the lines hold, dead or alive."""
    return sum(len(bucket.nodes) for bucket in core.loom.ready._buckets.values())


def test_who_submits_and_cancels_behind_a_stuck_head_fills_no_memory() -> None:
    core = Core(cpus=1, starts_workers=False, checks=False)
    stuck = [core.submit() for _ in range(10)]
    for _ in range(5000):
        core.cancel(core.submit())
        assert standing(core) < 100
    assert order_of(core) == stuck


def test_a_line_that_was_cancelled_from_behind_keeps_the_order_of_what_is_left() -> None:
    core = Core(checks=False)
    nodes = [core.submit(cpus=1 + i % 2) for i in range(1000)]
    kept = nodes[::7]
    for node in reversed(nodes):
        if node not in kept:
            core.cancel(node)
    assert standing(core) <= 2 * len(kept) + 2 * 33
    assert order_of(core) == kept


def test_clearing_a_line_of_the_dead_costs_each_of_them_the_same() -> None:
    core = Core(checks=False)
    nodes = [core.submit() for _ in range(4096)]
    looked_at = 0

    class Counting(deque):
        def __iter__(self):
            nonlocal looked_at
            looked_at += len(self)
            return super().__iter__()

    (bucket,) = core.loom.ready._buckets.values()
    for node in nodes:
        if type(bucket.nodes) is deque:
            bucket.nodes = Counting(bucket.nodes)
        core.cancel(node)
    assert 0 < looked_at <= 2 * len(nodes)
    assert not core.loom.ready


def test_what_was_cancelled_while_it_waited_is_let_go_by_what_it_waited_for() -> None:
    slow = Core(checks=False)
    head = slow.submit()
    kept = slow.submit([head])
    for _ in range(5000):
        slow.cancel(slow.submit([head]))
    assert len(head.outputs[0].dependents or ()) <= 64
    slow.finish(head)
    assert list(slow.loom.ready) == [kept]
