"""A long queue stays out of the garbage collector's way, and comes back when it has run down."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from taskloom._engine.backlog import OWN_FROZEN, RUN_DOWN, START, STEP, Backlog


@pytest.fixture(autouse=True)
def _thaw() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.enable()
    gc.unfreeze()


def test_a_short_queue_leaves_the_collector_alone() -> None:
    Backlog().note(START - 1)
    assert gc.get_freeze_count() == 0


def test_a_long_queue_is_frozen_until_it_has_run_down() -> None:
    backlog = Backlog()
    backlog.note(START)
    assert gc.get_freeze_count() > 0
    backlog.note(RUN_DOWN)
    assert gc.get_freeze_count() > 0  # not as many as before: other threads let go of some
    backlog.note(RUN_DOWN - 1)
    assert gc.get_freeze_count() == 0


def test_a_queue_that_grows_is_frozen_step_by_step() -> None:
    backlog = Backlog()
    backlog.note(START)
    before = gc.get_freeze_count()
    more = [[n] for n in range(1000)]
    backlog.note(START + 1)
    assert gc.get_freeze_count() <= before
    backlog.note(START + STEP)
    assert gc.get_freeze_count() >= before + len(more)


def test_garbage_that_was_frozen_is_collected_after_the_queue() -> None:
    class Node:
        pass

    node = Node()
    node.me = node  # type: ignore[attr-defined]
    backlog = Backlog()
    backlog.note(START)
    del node
    gc.collect()
    assert any(type(thing) is Node for thing in gc.get_objects()) or gc.get_freeze_count()
    backlog.note(0)
    gc.collect()
    assert not any(type(thing) is Node for thing in gc.get_objects())


def test_a_program_that_freezes_or_switches_the_collector_off_is_left_alone() -> None:
    keep = [[n] for n in range(OWN_FROZEN + 1)]
    gc.freeze()
    before = gc.get_freeze_count()
    backlog = Backlog()
    backlog.note(START)
    backlog.note(0)
    assert not backlog.frozen
    # What is frozen may be freed meanwhile, but nothing was added, and all is not let go.
    assert before >= gc.get_freeze_count() >= len(keep)
    gc.unfreeze()
    gc.disable()
    backlog = Backlog()
    backlog.note(START)
    assert gc.get_freeze_count() == 0
