"""Who waits for whom, and what follows when one of them ends."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Iterator

import pytest
from loom_driver import Core, Trouble
from tests.scale import scaled

from taskloom._core.states import NodeState

S = NodeState
MANY = scaled(100_000)


# -- dependencies ------------------------------------------------------------------------------


def test_a_node_without_dependencies_is_ready_at_once(core: Core) -> None:
    assert core.submit().state is S.READY


def test_a_node_waits_for_every_dependency_not_just_the_first(core: Core) -> None:
    a, b = core.submit(), core.submit()
    c = core.submit([a, b])

    core.finish(a)
    assert core.state(c) is S.WAITING

    core.finish(b)
    assert core.state(c) is S.READY


def test_dependencies_may_end_in_any_order(core: Core) -> None:
    deps = [core.submit() for _ in range(20)]
    last = core.submit(deps)
    random.Random(1).shuffle(deps)
    for dep in deps:
        assert last.state is S.WAITING
        core.finish(dep)
    assert last.state is S.READY


def test_a_dependency_that_is_done_already_is_not_waited_for(core: Core) -> None:
    a = core.submit()
    core.finish(a)
    assert core.submit([a, core.put()]).state is S.READY


def test_a_node_waits_for_the_rest_when_some_are_done(core: Core) -> None:
    a, b = core.submit(), core.submit()
    core.finish(a)
    c = core.submit([a, b])
    assert c.unfinished == 1
    core.finish(b)
    assert c.state is S.READY


def test_one_ref_given_a_thousand_times_counts_once(core: Core) -> None:
    a = core.submit()
    b = core.submit([a] * 1000)
    assert b.unfinished == 1
    core.finish(a)
    assert b.state is S.READY
    core.finish(b)
    core.drop(a, b)
    assert core.is_at_rest()


def test_each_return_value_of_one_call_is_an_object_of_its_own(core: Core) -> None:
    a = core.submit(num_returns=3)
    first, _, third = a.outputs
    b = core.submit([first, third])
    assert b.unfinished == 2
    core.finish(a)
    assert b.state is S.READY
    assert all(output.outcome is not None for output in a.outputs)


def test_a_ref_inside_an_argument_is_kept_and_not_waited_for(core: Core) -> None:
    a = core.submit()
    b = core.submit(nested=[a])
    core.drop(a)
    assert b.state is S.READY
    core.finish(a)
    assert core.is_kept(a)
    core.finish(b)
    assert not core.is_kept(a)


def test_dependents_become_ready_in_the_order_in_which_they_were_submitted(core: Core) -> None:
    a = core.submit()
    dependents = [core.submit([a]) for _ in range(10)]
    core.finish(a)
    assert list(core.loom.ready) == dependents


def test_the_diamond_runs_its_last_node_once(core: Core) -> None:
    top = core.submit()
    left, right = core.submit([top]), core.submit([top])
    bottom = core.submit([left, right])
    core.finish(top, left, right)
    core.started_now()
    core.finish(bottom)
    assert core.started_now() == [bottom]


def test_waiters_are_told_once_when_the_object_is_done(core: Core) -> None:
    a = core.submit(num_returns=2)
    first, second = core.watch(a.outputs[0]), core.watch(a.outputs[1])
    assert not first
    assert not second
    core.finish(a)
    assert first == [a.outputs[0]]
    assert second == [a.outputs[1]]


# -- failure -----------------------------------------------------------------------------------


def test_a_failed_dependency_fails_its_dependents(core: Core) -> None:
    a = core.submit()
    b, other = core.submit([a]), core.submit()
    core.fail(a)
    assert b.state is S.FAILED
    assert other.state is not S.FAILED


def test_the_error_is_its_own_at_the_top_and_inherited_below(core: Core) -> None:
    a = core.submit()
    b = core.submit([a])
    error = core.fail(a)
    assert core.outcome(a) is error
    assert core.outcome(b) is error.inherit()


def test_a_whole_chain_has_one_shared_error(core: Core) -> None:
    top = node = core.submit()
    chain = [node := core.submit([node]) for _ in range(100)]
    error = core.fail(top)
    assert {core.outcome(link) for link in chain} == {error.inherit()}
    assert all(link.state is S.FAILED for link in chain)


def test_a_node_fails_once_with_the_first_error_of_its_dependencies(core: Core) -> None:
    a, b = core.submit(), core.submit()
    c = core.submit([a, b])
    told = core.watch(c)
    first = core.fail(a)
    assert c.state is S.FAILED
    core.fail(b)
    assert core.outcome(c) is first.inherit()
    assert told == [c.outputs[0]]


def test_a_node_fails_at_once_although_other_dependencies_are_still_running(core: Core) -> None:
    slow, bad = core.submit(), core.submit()
    c = core.submit([slow, bad])
    core.start(slow, bad)
    core.fail(bad)
    assert c.state is S.FAILED
    core.finish(slow)
    assert c.state is S.FAILED


def test_a_call_with_a_failed_argument_fails_at_once(core: Core) -> None:
    a = core.submit()
    error = core.fail(a)
    b = core.submit([core.put(), a])
    assert b.state is S.FAILED
    assert core.outcome(b) is error.inherit()


def test_a_failed_call_fails_all_its_return_values(core: Core) -> None:
    a = core.submit(num_returns=3)
    by_first, by_last = core.submit([a.outputs[0]]), core.submit([a.outputs[2]])
    error = core.fail(a)
    assert [output.outcome for output in a.outputs] == [error] * 3
    assert core.outcome(by_first) is core.outcome(by_last) is error.inherit()


def test_dependents_of_a_cancelled_call_are_cancelled(core: Core) -> None:
    a = core.submit()
    b = core.submit([a])
    c = core.submit([b])
    core.cancel(a)
    assert [node.state for node in (a, b, c)] == [S.CANCELLED] * 3
    assert core.outcome(c).cancelled


def test_an_error_that_nobody_looked_at_is_reported_when_the_last_ref_goes(core: Core) -> None:
    a = core.submit()
    core.fail(a)
    assert core.outbox.said("report_unseen") == []
    core.drop(a)
    assert [record for record, _ in core.outbox.said("report_unseen")] == [a.outputs[0]]


def test_an_error_is_reported_for_the_end_of_a_chain_only(core: Core) -> None:
    a = core.submit()
    b = core.submit([a])
    core.fail(a)
    core.drop(a, b)
    assert [record for record, _ in core.outbox.said("report_unseen")] == [b.outputs[0]]


def test_the_error_of_a_call_without_return_values_is_reported_at_once(core: Core) -> None:
    a = core.submit(num_returns=0, function="forgotten")
    error = core.fail(a)
    ((record, name),) = core.outbox.said("report_unseen")
    assert (record.outcome, name) == (error, "forgotten")


def test_a_cancelled_call_is_not_reported_as_an_error_that_nobody_saw(core: Core) -> None:
    a, b = core.submit(), core.submit(num_returns=0, parent=None)
    core.cancel(a)
    core.drop(a)
    core.loom.graph.fail(b, Trouble("stop", b.key, cancelled=True), "test")
    assert core.outbox.said("report_unseen") == []


def test_an_error_that_was_looked_at_is_not_reported(core: Core) -> None:
    a = core.submit()
    core.fail(a)
    a.outputs[0].seen = True
    core.drop(a)
    assert core.outbox.said("report_unseen") == []


# -- large graphs ------------------------------------------------------------------------------


@pytest.fixture
def little_stack() -> Iterator[None]:
    """So little that whatever goes down a graph by recursion breaks at once."""
    limit = sys.getrecursionlimit()
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]  # None ends it
    sys.setrecursionlimit(depth + 60)
    yield
    sys.setrecursionlimit(limit)


@pytest.fixture
def large(little_stack: None) -> Iterator[Core]:
    """A loom for many nodes: tables are compared by the test, at the end."""
    gc.disable()  # it would look through all of them again and again
    yield Core(cpus=10 * MANY, max_processes=4, checks=False)
    gc.enable()


def test_a_chain_of_a_hundred_thousand_ends_node_by_node(large: Core) -> None:
    node = large.submit()
    chain = [node, *(node := large.submit([node]) for _ in range(MANY))]
    large.check_all()
    large.finish(*chain)
    assert all(link.state is S.FINISHED for link in chain)
    large.drop(*chain)
    large.check_all()
    assert large.is_at_rest()
    assert not large.loom.graph.objects


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_chain_of_a_hundred_thousand_falls_at_once(large: Core, end: str) -> None:
    top = node = large.submit()
    chain = [node := large.submit([node]) for _ in range(MANY)]
    if end == "failed":
        large.fail(top)
    else:
        large.cancel(top)
    assert {link.state for link in chain} == {S.FAILED if end == "failed" else S.CANCELLED}
    assert len({id(large.outcome(link)) for link in chain}) == 1
    large.drop(top, *chain)
    large.check_all()
    assert large.is_at_rest()
    assert not large.loom.graph.objects


def test_a_hundred_thousand_objects_each_inside_the_next_go_together(large: Core) -> None:
    innermost = box = large.put()
    boxes = [box]
    for _ in range(MANY):
        box = large.put(contains=[box])
        boxes.append(box)
    large.drop(*boxes[:-1])
    assert large.is_kept(innermost)
    large.drop(boxes[-1])
    assert not large.loom.graph.objects


def test_one_node_has_a_hundred_thousand_dependents(large: Core) -> None:
    a = large.submit()
    dependents = [large.submit([a]) for _ in range(MANY)]
    large.finish(a)
    assert all(node.state is S.READY for node in dependents)
    large.check_all()


def test_one_node_has_a_hundred_thousand_dependencies(large: Core) -> None:
    deps = [large.put() for _ in range(MANY - 1)]
    slow = large.submit()
    last = large.submit([*deps, slow])
    assert last.state is S.WAITING
    large.finish(slow)
    assert last.state is S.READY
    large.check_all()


def test_a_hundred_thousand_children_are_cancelled_with_their_parent(large: Core) -> None:
    parent = large.submit()
    large.start(parent)
    node = parent
    line = [node := large.submit(parent=node) for _ in range(MANY)]
    large.cancel(parent)
    assert all(child.state is S.CANCELLED for child in line)


def test_three_hundred_that_wait_for_three_hundred(core: Core) -> None:
    core = Core(cpus=1000, checks=False)
    above = [core.submit() for _ in range(300)]
    below = [core.submit(above) for _ in range(300)]
    for node in above[:-1]:
        core.finish(node)
    assert all(node.state is S.WAITING for node in below)
    core.finish(above[-1])
    assert all(node.state is S.READY for node in below)
    core.finish(*below)
    core.drop(*above, *below)
    core.check_all()
    assert core.is_at_rest()


def steps_of(work: object) -> int:
    """How many lines of ``_core`` a piece of work executes: seconds would depend on the day."""
    steps = 0

    def count(frame: object, event: str, _arg: object) -> object:
        nonlocal steps
        if event == "line":
            steps += 1
        return count

    def enter(frame: object, event: str, arg: object) -> object:
        code = frame.f_code  # type: ignore[attr-defined]  # a frame
        return count if "/_core/" in code.co_filename else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        work()  # type: ignore[operator]
    finally:
        sys.settrace(before)
    return steps


def chain_of(count: int) -> Core:
    core = Core(max_processes=4, checks=False)
    node = core.submit()
    chain = [node, *(node := core.submit([node]) for _ in range(count))]
    core.finish(*chain)
    core.drop(*chain)
    return core


def fan_of(count: int) -> Core:
    core = Core(max_processes=4, checks=False)
    core.learn()
    top = core.submit()
    middle = [core.submit([top]) for _ in range(count)]
    last = core.submit(middle)
    core.finish(top)
    for node in middle:
        core.finish(node, seconds=0.000_005)
    core.finish(last)
    core.drop(top, *middle, last)
    return core


def cancelled_of(count: int) -> Core:
    core = Core(cpus=1, max_processes=1, checks=False)
    nodes = [core.submit() for _ in range(count)]
    for node in reversed(nodes):
        core.cancel(node)
    core.schedule()
    core.drop(*nodes)
    return core


def failures_of(count: int) -> Core:
    core = Core(max_processes=4, checks=False)
    top = core.submit()
    chains = [top]
    for index in range(count):
        chains.append(core.submit([chains[index // 2]]))
    core.fail(top)
    core.drop(*chains)
    return core


@pytest.mark.parametrize("graph", [chain_of, fan_of, cancelled_of, failures_of])
def test_ten_times_the_nodes_are_ten_times_the_work(graph: object) -> None:
    few = steps_of(lambda: graph(100))  # type: ignore[operator]
    many = steps_of(lambda: graph(1000))  # type: ignore[operator]
    assert many < 11 * few
