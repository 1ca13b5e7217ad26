"""Streams in the loom: items, ends, errors, retries, back-pressure, drops."""

from __future__ import annotations

import pytest
from loom_driver import Core, Trouble

from taskloom import _ids
from taskloom._core.node import Node
from taskloom._core.states import NodeState
from taskloom.exceptions import InternalError
from taskloom.generator import END, STOP

S = NodeState


def item(node: Node, index: int) -> bytes:
    return f"item {index} of {node.key:#x}".encode()


def test_there_is_always_one_record_ahead_of_the_items(core: Core) -> None:
    a = core.submit(stream=0)
    assert core.line(a) == [None]
    core.emit(a, 0)
    core.emit(a, 1)
    assert core.line(a) == [item(a, 0), item(a, 1), None]


def test_the_end_fills_the_record_ahead(core: Core) -> None:
    a = core.submit(stream=0)
    core.emit(a, 0)
    core.finish(a)
    assert core.line(a) == [item(a, 0), END]
    assert core.outcome(a) == f"value of {a.key:#x}".encode()


def test_an_error_stands_between_the_items_and_the_end(core: Core) -> None:
    a = core.submit(stream=0)
    core.emit(a, 0)
    error = core.fail(a)
    assert core.line(a) == [item(a, 0), error, END]
    assert core.outcome(a) is error


def test_who_waits_for_the_record_ahead_is_told_of_the_item(core: Core) -> None:
    a = core.submit(stream=0)
    head = core.take(a)
    told = core.watch(head)
    core.emit(a, 0)
    assert told == [head]
    assert core.outcome(head) == item(a, 0)
    assert core.line(a) == [None]


def test_an_item_that_was_taken_is_kept_by_its_ref_alone(core: Core) -> None:
    a = core.submit(stream=0)
    core.emit(a, 0)
    taken = core.take(a)
    core.finish(a)
    assert core.is_kept(taken)
    core.drop(taken)
    assert not core.is_kept(taken)


def test_what_an_item_contains_is_kept_by_it(core: Core) -> None:
    a, inner = core.submit(stream=0), core.put()
    core.emit(a, 0, contains=[inner])
    core.drop(inner)
    taken = core.take(a)
    assert core.is_kept(inner)
    core.drop(taken)
    assert not core.is_kept(inner)


def test_a_stream_whose_argument_fails_has_that_error_and_ends(core: Core) -> None:
    a = core.submit()
    b = core.submit([a], stream=0)
    error = core.fail(a)
    assert core.line(b) == [error.inherit(), END]


def test_the_error_of_a_stream_is_reported_once_if_nobody_sees_it(core: Core) -> None:
    a = core.submit(stream=0)
    error = core.fail(a)
    taken = core.take(a)
    core.drop(a, taken)
    assert [record.outcome for record, _ in core.outbox.said("report_unseen")] == [error]


def test_the_error_of_a_stream_that_was_seen_is_not_reported(core: Core) -> None:
    a = core.submit(stream=0)
    core.fail(a)
    taken = core.take(a)
    taken.seen = True  # a get() has raised it
    core.drop(a, taken)
    assert not core.outbox.said("report_unseen")


# -- attempts -------------------------------------------------------------------------------------


def test_a_second_attempt_brings_only_what_the_first_had_not(core: Core) -> None:
    a = core.submit(stream=0, retries=1)
    core.emit(a, 0)
    core.emit(a, 1)
    first = core.take(a)
    core.fail(a, retry=True)
    assert core.line(a) == [item(a, 1), None]
    for index in range(3):
        core.emit(a, index)
    core.finish(a)
    assert core.line(a) == [item(a, 1), item(a, 2), END]
    assert core.outcome(first) == item(a, 0)


def test_a_worker_that_dies_ends_the_stream_behind_the_items_that_had_come(core: Core) -> None:
    a = core.submit(stream=0)
    core.emit(a, 0)
    assert a.worker is not None
    core.lose(a.worker)
    value, error, end = core.line(a)
    assert (value, error.kind, end) == (item(a, 0), "crash", END)


@pytest.mark.parametrize("again", [0, 1])
def test_an_attempt_that_brings_less_than_the_one_before_has_failed(core: Core, again: int) -> None:
    a = core.submit(stream=0, retries=1)
    core.emit(a, 0)
    core.emit(a, 1)
    core.fail(a, retry=True)
    for index in range(again):
        core.emit(a, index)
    core.finish(a)
    assert a.state is S.FAILED
    *_, error, end = core.line(a)
    assert isinstance(error, Trouble)
    assert (error.kind, end) == ("contradicted", END)


def test_a_run_that_is_repeated_free_of_charge_begins_anew_too() -> None:
    """It ran well, but its end was lost with the worker, which died of what came next."""
    core = Core(cpus=1, starts_workers=False)
    worker = core.worker()
    core.learn()
    a, b = core.submit(stream=0, retries=1), core.submit()
    core.schedule()
    assert core.with_worker(worker) == [a, b]
    core.emit(a, 0)
    core.lose(worker, started=b)
    core.worker()
    core.schedule()
    assert a.attempt == 1
    core.emit(a, 0)
    core.emit(a, 1)
    core.finish(a)
    assert core.line(a) == [item(a, 0), item(a, 1), END]


def test_items_of_a_call_that_was_cancelled_are_not_kept(core: Core) -> None:
    a = core.submit(stream=0)
    core.emit(a, 0)
    core.cancel(a)
    core.emit(a, 1)
    value, error, end = core.line(a)
    assert (value, error.cancelled, end) == (item(a, 0), True, END)


def test_an_item_with_a_number_that_cannot_be_is_an_error_of_ours(core: Core) -> None:
    a = core.submit(stream=0)
    core.emit(a, 0)
    with pytest.raises(InternalError, match="item 2 comes after 1"):
        core.emit(a, 2)


def test_a_late_item_is_counted_and_dropped(core: Core) -> None:
    a = core.submit(stream=0)
    core.emit(a, 0)
    worker, seq = a.worker, a.seq
    core.finish(a)
    assert worker is not None
    core.loom.streams.on_item(worker, seq, 1, b"late", ())
    assert core.late_messages == 1
    assert core.line(a) == [item(a, 0), END]


# -- nobody consumes any more ---------------------------------------------------------------------


def test_a_stream_that_is_dropped_cancels_its_call_and_frees_its_items(core: Core) -> None:
    a = core.submit(stream=0)
    core.emit(a, 0)
    taken = core.take(a)
    core.emit(a, 1)
    core.drop_stream(a)
    core.schedule()
    assert a.state is S.CANCELLED
    assert core.loom.graph.objects.keys() == {taken.key}


def test_the_drop_may_come_after_the_ref_to_the_end_is_gone(core: Core) -> None:
    """A garbage collection finalizes them in any order."""
    a = core.submit(stream=0)
    assert a.stream is not None
    core.drop(a)
    core.schedule()
    assert a.state is not S.CANCELLED
    core.loom.streams.on_drop(a.stream)
    core.schedule()
    assert a.state is S.CANCELLED
    assert not core.loom.graph.objects


def test_a_ref_to_the_end_keeps_a_dropped_stream_going_and_nothing_else_of_it(core: Core) -> None:
    a = core.submit(stream=0)
    core.copy_ref(a)
    core.emit(a, 0)
    core.drop_stream(a)
    core.schedule()
    core.emit(a, 1)
    core.finish(a)
    assert a.state is S.FINISHED
    assert core.loom.graph.objects.keys() == {a.key + 1}


def test_when_that_ref_goes_the_call_is_cancelled(core: Core) -> None:
    a = core.submit(stream=0)
    core.copy_ref(a)
    core.drop_stream(a)
    core.schedule()
    assert a.state is not S.CANCELLED
    core.drop(a)
    core.schedule()
    assert a.state is S.CANCELLED


def test_a_claimed_record_of_a_dropped_stream_hears_the_end(core: Core) -> None:
    a = core.submit(stream=0)
    head = core.take(a)
    told = core.watch(head)
    core.drop_stream(a)
    core.schedule()
    assert told == [head]
    assert core.outcome(head) == END


def test_the_error_of_a_dropped_stream_is_that_of_its_end(core: Core) -> None:
    a = core.submit(stream=0)
    core.copy_ref(a)
    core.drop_stream(a)
    error = core.fail(a)
    core.drop(a)
    assert [record.outcome for record, _ in core.outbox.said("report_unseen")] == [error]


# -- back-pressure --------------------------------------------------------------------------------


def test_there_is_room_at_once_when_enough_was_taken_meanwhile(core: Core) -> None:
    a = core.submit(stream=2)
    core.emit(a, 0)
    core.emit(a, 1)
    core.take(a)
    assert core.outcome(core.ask_for_room(a, 2)) == b"1"


def test_room_comes_with_the_item_that_is_taken(core: Core) -> None:
    a = core.submit(stream=2)
    core.emit(a, 0)
    core.emit(a, 1)
    room = core.ask_for_room(a, 2)
    assert core.outcome(room) is None
    core.take(a)
    assert core.outcome(room) == b"1"


@pytest.mark.parametrize("way", ["cancel", "fail"])
def test_whoever_stands_still_hears_that_it_is_over(core: Core, way: str) -> None:
    a = core.submit(stream=1)
    core.emit(a, 0)
    room = core.ask_for_room(a, 1)
    if way == "cancel":
        core.cancel(a)
    else:
        core.fail(a)
    assert core.outcome(room) == STOP


def test_a_cancelled_producer_that_asks_for_room_hears_that_it_is_over(core: Core) -> None:
    a = core.submit(stream=1)
    core.emit(a, 0)
    core.cancel(a)
    assert core.outcome(core.ask_for_room(a, 1)) == STOP


def test_a_dropped_stream_that_goes_on_has_all_the_room_there_is(core: Core) -> None:
    a = core.submit(stream=1)
    core.copy_ref(a)
    core.emit(a, 0)
    room = core.ask_for_room(a, 1)
    core.drop_stream(a)
    assert core.outcome(room) is None
    core.schedule()
    assert core.outcome(room) == END
    assert core.outcome(core.ask_for_room(a, 2)) == END


def test_a_dropped_stream_that_does_not_go_on_is_not_set_going_first(core: Core) -> None:
    a = core.submit(stream=1)
    core.emit(a, 0)
    room = core.ask_for_room(a, 1)
    core.drop_stream(a)
    core.schedule()
    assert core.outcome(room) == STOP


def test_the_room_of_a_dead_attempt_is_forgotten_when_the_next_one_asks(core: Core) -> None:
    a = core.submit(stream=1, retries=1)
    core.emit(a, 0)
    room = core.ask_for_room(a, 1)
    assert a.worker is not None
    core.lose(a.worker)
    core.emit(a, 0)
    again = core.ask_for_room(a, 1)
    assert not core.is_kept(room)
    core.take(a)
    assert core.outcome(again) == b"1"


# -- generators with a number of returns ----------------------------------------------------------


def test_an_item_fills_its_output_and_those_who_wait_for_it_go_on(core: Core) -> None:
    a = core.submit(num_returns=2)
    b = core.submit([a.outputs[0]])
    core.emit(a, 0)
    assert core.outcome(a.outputs[0]) == item(a, 0)
    assert b.state is S.READY
    core.finish(b)
    core.finish(a)
    assert core.outcome(a.outputs[0]) == item(a, 0)
    assert core.outcome(a.outputs[1]) == f"value of {a.key:#x}".encode()


def test_outputs_that_were_filled_stay_when_the_call_fails_or_is_repeated(core: Core) -> None:
    a = core.submit(num_returns=3, retries=1)
    core.emit(a, 0)
    core.fail(a, retry=True)
    core.emit(a, 0)
    core.emit(a, 1)
    error = core.fail(a)
    assert [record.outcome for record in a.outputs] == [item(a, 0), item(a, 1), error]


# -- names ----------------------------------------------------------------------------------------


def test_no_two_items_have_the_same_name_however_many_there_are() -> None:
    block = 1 << _ids.INDEX_BITS
    indices = [0, 1, block - 3, block - 2, block - 1, block, 5 * block, 10**9]
    tasks = [(process << 56) | (count << 20) for process in (0, 7) for count in (1, 2, 2**36 - 1)]
    keys = [_ids.item_of(task, index) for task in tasks for index in indices]
    assert len(set(keys)) == len(keys)
    assert not {task + 1 for task in tasks} & set(keys)
    for key in keys:
        session, parsed = _ids.parse_object_bytes(_ids.object_bytes(b"s" * 12, key))
        assert (session, parsed) == (b"s" * 12, key)
    assert _ids.task_of(_ids.item_of(tasks[1], 5)) == tasks[1]
