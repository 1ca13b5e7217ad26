"""How long an object is kept: as long as there is a reason, and not a moment longer."""

from __future__ import annotations

from loom_driver import Core

from taskloom._core.states import NodeState


def test_an_object_goes_with_the_last_ref(core: Core) -> None:
    a = core.submit()
    core.copy_ref(a)
    core.finish(a)
    core.drop(a)
    assert core.is_kept(a)
    core.drop(a)
    assert not core.is_kept(a)


def test_a_call_whose_ref_is_dropped_still_runs(core: Core) -> None:
    a = core.submit()
    core.drop(a)
    assert core.is_kept(a)
    core.finish(a)
    assert a.state is NodeState.FINISHED
    assert not core.is_kept(a)


def test_a_put_object_goes_with_its_ref(core: Core) -> None:
    value = core.put()
    assert core.is_kept(value)
    core.drop(value)
    assert not core.is_kept(value)


def test_a_task_that_waits_keeps_its_arguments(core: Core) -> None:
    a, slow = core.submit(), core.submit()
    b = core.submit([a, slow])
    core.finish(a)
    core.drop(a)
    assert core.is_kept(a)
    core.finish(slow)
    core.start(b)
    assert core.is_kept(a)
    core.finish(b)
    assert not core.is_kept(a)


def test_a_failed_task_lets_go_of_its_arguments(core: Core) -> None:
    value, inner, bad = core.put(), core.put(), core.submit()
    b = core.submit([value, bad], nested=[inner])
    core.drop(value, inner)
    core.fail(bad)
    assert b.state is NodeState.FAILED
    assert not core.is_kept(value)
    assert not core.is_kept(inner)


def test_a_cancelled_task_lets_go_of_its_arguments(core: Core) -> None:
    value = core.put()
    b = core.submit([value])
    core.drop(value)
    core.cancel(b)
    assert not core.is_kept(value)


def test_a_task_that_is_to_be_retried_keeps_its_arguments(core: Core) -> None:
    value = core.put()
    b = core.submit([value], retries=1)
    core.drop(value)
    core.fail(b, retry=True)
    assert core.is_kept(value)
    core.finish(b)
    assert not core.is_kept(value)


def test_an_object_keeps_what_it_contains(core: Core) -> None:
    inner = core.submit()
    box = core.put(contains=[inner])
    core.drop(inner)
    core.finish(inner)
    assert core.is_kept(inner)
    core.drop(box)
    assert not core.is_kept(inner)


def test_a_result_keeps_what_it_contains(core: Core) -> None:
    inner = core.put()
    a = core.submit(nested=[inner])
    core.drop(inner)
    core.finish(a, contains=[[inner]])
    assert core.is_kept(inner)
    core.drop(a)
    assert not core.is_kept(inner)


def test_each_return_value_keeps_only_what_is_inside_it(core: Core) -> None:
    one, two = core.put(), core.put()
    a = core.submit(nested=[one, two], num_returns=2)
    core.drop(one, two)
    core.finish(a, contains=[[one], [two]])
    core.drop(a.outputs[0])
    assert not core.is_kept(one)
    assert core.is_kept(two)


def test_what_two_objects_contain_goes_with_the_second(core: Core) -> None:
    inner = core.put()
    first, second = core.put(contains=[inner]), core.put(contains=[inner])
    core.drop(inner, first)
    assert core.is_kept(inner)
    core.drop(second)
    assert not core.is_kept(inner)


def test_an_object_inside_another_may_still_be_in_the_making(core: Core) -> None:
    inner = core.submit()
    box = core.put(contains=[inner])
    core.drop(inner, box)
    assert not core.is_kept(box)
    core.finish(inner)
    assert not core.is_kept(inner)


def test_a_worker_that_borrows_keeps_the_object(core: Core) -> None:
    worker, value = core.worker(), core.put()
    core.borrow(worker, value)
    core.drop(value)
    assert core.is_kept(value)
    core.release(worker, value)
    assert not core.is_kept(value)


def test_borrowing_twice_counts_once(core: Core) -> None:
    worker, value = core.worker(), core.put()
    core.borrow(worker, value)
    core.borrow(worker, value)
    core.drop(value)
    core.release(worker, value)
    assert not core.is_kept(value)


def test_what_was_not_borrowed_cannot_be_released(core: Core) -> None:
    worker, value = core.worker(), core.put()
    core.release(worker, value)
    assert core.is_kept(value)


def test_a_borrow_of_an_object_that_is_gone_does_nothing(core: Core) -> None:
    worker, value = core.worker(), core.put()
    core.drop(value)
    core.borrow(worker, value)
    assert not worker.borrowed


def test_a_worker_that_dies_lets_go_of_what_it_borrowed(core: Core) -> None:
    first, second, value = core.worker(), core.worker(), core.put()
    core.borrow(first, value)
    core.borrow(second, value)
    core.drop(value)
    core.lose(first)
    assert core.is_kept(value)
    core.lose(second)
    assert not core.is_kept(value)


def test_what_a_task_submitted_goes_when_its_worker_dies(core: Core) -> None:
    worker = core.worker()
    parent = core.submit()
    core.start(parent)
    child = core.submit(parent=parent, by=worker)
    core.lose(worker)
    assert child.state is NodeState.CANCELLED
    assert not core.is_kept(child)


def test_a_dependency_is_kept_when_the_worker_dies_with_its_dependent(core: Core) -> None:
    value = core.put()
    b = core.submit([value], retries=1)
    core.drop(value)
    core.start(b)
    assert b.worker is not None
    core.lose(b.worker)
    assert core.is_kept(value)
    core.finish(b)
    assert not core.is_kept(value)


def test_nothing_is_left_of_a_node_that_has_ended(core: Core) -> None:
    parent = core.submit()
    core.start(parent)
    child = core.submit([core.put()], nested=[core.put()], parent=parent)
    core.finish(child)
    assert child.deps == child.nested == ()
    assert child.args is child.context is child.parent is None
    assert child.outputs[0].producer is None
    assert not parent.children
    assert child.key not in core.loom.graph.nodes
