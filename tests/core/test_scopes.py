"""Scopes: what belongs to one, when it is cancelled, and when it is over."""

from __future__ import annotations

from loom_driver import LOOP, Core

from taskloom._core.node import Node
from taskloom._core.scopes import Scope
from taskloom._core.states import NodeState

CANCELLED = NodeState.CANCELLED


def is_over(scope: Scope) -> bool:
    return scope.end.outcome is not None


def errors_of(scope: Scope) -> tuple[object, ...]:
    assert scope.end.outcome[0] == "errors"
    return tuple(scope.end.outcome[1:])


def started(core: Core, *nodes: Node) -> None:
    core.start(*nodes)


def test_a_scope_is_over_when_it_is_closed_and_its_calls_are_done(core):
    scope = core.open_scope()
    a, b = core.submit(scope=scope), core.submit(scope=scope)
    core.finish(a, b)
    assert not is_over(scope)
    core.close_scope(scope)
    assert errors_of(scope) == ()


def test_the_first_failure_cancels_the_rest_before_the_next_pass(core):
    scope = core.open_scope()
    bad, other = core.submit(scope=scope), core.submit(scope=scope)
    stranger = core.submit()
    core.start(bad, other)
    late = core.submit([bad], scope=scope)
    error = core.fail(bad)
    core.started_now()
    waiting = core.submit([stranger], scope=scope)
    core.schedule()
    assert scope.alarm.outcome is not None
    assert [core.state(n) for n in (other, waiting)] == [CANCELLED, CANCELLED]
    assert core.state(late) is NodeState.FAILED
    assert core.state(stranger) is not CANCELLED
    assert core.started_now() == [] or core.started_now() == [stranger]

    core.close_scope(scope)
    assert not is_over(scope)  # the worker of ``other`` has not said that it has stopped
    core.loom.on_failed(other.worker, other.seq, None, retry=False, seconds=0.0)
    assert errors_of(scope)[0] is error
    assert len(errors_of(scope)) == 2  # its own, and the one that ``late`` has inherited


def test_a_chain_of_failures_is_one_inherited_error(core):
    scope = core.open_scope()
    head = node = core.submit(scope=scope)
    for _ in range(100):
        node = core.submit([node], scope=scope)
    error = core.fail(head)
    core.schedule()
    core.close_scope(scope)
    assert errors_of(scope) == (error, error.inherit())


def test_what_members_submit_belongs_to_the_scope_and_its_failure_does_not(core):
    scope = core.open_scope()
    parent = core.submit(scope=scope)
    core.start(parent)
    child = core.submit(parent=parent, by=parent.worker)
    core.fail(child)
    core.schedule()
    assert core.state(parent) is NodeState.ASSIGNED
    grandchild = core.submit(parent=parent, by=parent.worker)
    core.finish(parent)
    core.close_scope(scope)
    assert not is_over(scope)
    core.finish(grandchild)
    assert errors_of(scope) == ()


def test_cancel_reaches_children_of_members_that_are_done(core):
    scope = core.open_scope()
    parent = core.submit(scope=scope)
    core.start(parent)
    child = core.submit(parent=parent, by=parent.worker)
    core.finish(parent)
    core.cancel_scope(scope)
    assert core.state(child) is CANCELLED


def test_a_call_after_the_cancel_fails_at_once(core):
    scope = core.open_scope()
    core.cancel_scope(scope)
    assert core.state(core.submit(scope=scope)) is CANCELLED
    core.close_scope(scope)
    assert is_over(scope)
    assert core.state(core.submit(scope=scope)) is CANCELLED


def test_an_inner_scope_ends_with_the_outer_one(core):
    outer = core.open_scope()
    inner = core.open_scope(outer)
    node = core.submit(scope=inner)
    core.cancel_scope(outer)
    assert core.state(node) is CANCELLED
    core.close_scope(inner)
    assert is_over(inner)
    core.close_scope(outer)
    assert is_over(outer)


def test_an_outer_scope_waits_for_inner_ones(core):
    outer = core.open_scope()
    inner = core.open_scope(outer)
    node = core.submit(scope=inner)
    core.close_scope(inner)
    core.close_scope(outer)
    assert not is_over(outer)
    core.finish(node)
    assert is_over(inner)
    assert is_over(outer)


def test_a_scope_ends_with_the_worker_of_its_owner(core):
    owner = core.submit(retries=1)
    core.start(owner)
    scope = core.open_scope(owner=owner)
    member = core.submit(parent=owner, by=owner.worker, scope=scope)
    core.start(member)
    core.lose(owner.worker, started=owner)
    assert core.state(owner) is NodeState.READY
    assert core.state(member) is CANCELLED
    core.loom.on_failed(member.worker, member.seq, None, retry=False, seconds=0.0)
    assert is_over(scope)


def test_a_scope_that_its_owner_has_not_closed_ends_with_it(core):
    worker = core.worker(LOOP)
    owner = core.submit(coroutine=True)
    core.start(owner)
    scope = core.open_scope(owner=owner)
    member = core.submit(parent=owner, by=worker, scope=scope)
    core.finish(owner)
    assert core.state(member) is CANCELLED
    assert is_over(scope)


def test_a_scope_of_a_task_is_inside_of_the_scope_of_the_task(core):
    outer = core.open_scope()
    owner = core.submit(scope=outer)
    core.start(owner)
    inner = core.open_scope(owner=owner)
    member = core.submit(parent=owner, by=owner.worker, scope=inner)
    core.fail(member)
    core.schedule()
    assert core.state(owner) is NodeState.ASSIGNED  # the owner decides what becomes of it
    other = core.open_scope(owner=owner)
    second = core.submit(parent=owner, by=owner.worker, scope=other)
    core.cancel_scope(outer)
    assert core.state(second) is CANCELLED
    assert other.cancelled


def test_a_released_call_takes_its_children_and_their_scopes_along(core):
    scope = core.open_scope()
    node = core.submit(scope=scope)
    core.start(node)
    child = core.submit(parent=node, by=node.worker)
    inner = core.open_scope(owner=node)
    member = core.submit(parent=node, by=node.worker, scope=inner)
    core.release_from(scope, node)
    core.cancel_scope(scope)
    core.close_scope(scope)
    assert is_over(scope)
    assert CANCELLED not in [core.state(n) for n in (node, child, member)]
    assert not inner.cancelled


def test_a_call_released_from_an_inner_scope_is_a_member_of_the_outer_one(core):
    outer = core.open_scope()
    inner = core.open_scope(outer)
    node = core.submit(scope=inner)
    core.release_from(inner, node)
    core.close_scope(inner)
    assert is_over(inner)
    error = core.fail(node)
    core.schedule()
    core.close_scope(outer)
    assert errors_of(outer) == (error,)


def test_a_call_that_is_tried_again_stays(core):
    scope = core.open_scope()
    node = core.submit(scope=scope, retries=1)
    core.fail(node, retry=True)
    core.close_scope(scope)
    assert not is_over(scope)
    core.finish(node)
    assert errors_of(scope) == ()


def test_the_end_of_the_session_ends_it_with_an_error(core):
    scope = core.open_scope()
    error = core.fail(core.submit())
    core.loom.scopes.fail_all(error)
    assert scope.end.outcome is error
    assert scope.end.failed
