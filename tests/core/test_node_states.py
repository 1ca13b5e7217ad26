"""The table of moves, and the one door through which a node changes its state."""

from __future__ import annotations

import itertools

import pytest
from loom_driver import Core

from taskloom._core.node import Node
from taskloom._core.states import LEGAL, TERMINAL, NodeState
from taskloom.exceptions import InternalError

S = NodeState
MOVES = {
    (S.WAITING, S.READY),
    (S.WAITING, S.ASSIGNED),
    (S.WAITING, S.BACKOFF),
    (S.WAITING, S.FAILED),
    (S.WAITING, S.CANCELLED),
    (S.READY, S.ASSIGNED),
    (S.READY, S.FAILED),
    (S.READY, S.CANCELLED),
    (S.ASSIGNED, S.READY),
    (S.ASSIGNED, S.WAITING),
    (S.ASSIGNED, S.BACKOFF),
    (S.BACKOFF, S.READY),
    (S.BACKOFF, S.WAITING),
    (S.BACKOFF, S.FAILED),
    (S.BACKOFF, S.CANCELLED),
    (S.ASSIGNED, S.FINISHED),
    (S.ASSIGNED, S.FAILED),
    (S.ASSIGNED, S.CANCELLED),
}
ALL = list(itertools.product(S, S))


def node_in(core: Core, state: NodeState) -> Node:
    node = core.submit()
    node.state = state
    return node


@pytest.mark.parametrize(("old", "new"), [pair for pair in ALL if pair in MOVES])
def test_a_legal_move_is_made_and_told_to_the_observer(old: NodeState, new: NodeState) -> None:
    core = Core(checks=False)
    node = node_in(core, old)
    seen: list[tuple[object, ...]] = []
    core.loom.graph.observer = lambda *entry: seen.append(entry)

    core.loom.graph.move(node, new, "a reason")

    assert node.state is new
    assert seen == [(node, old, new, "a reason")]


@pytest.mark.parametrize(("old", "new"), [pair for pair in ALL if pair not in MOVES])
def test_an_illegal_move_raises_and_changes_nothing(old: NodeState, new: NodeState) -> None:
    core = Core(checks=False)
    node = node_in(core, old)
    seen: list[tuple[object, ...]] = []
    core.loom.graph.observer = lambda *entry: seen.append(entry)

    with pytest.raises(InternalError, match=f"{old.name} -> {new.name} is not a move .a reason."):
        core.loom.graph.move(node, new, "a reason")

    assert node.state is old
    assert seen == []


def test_the_table_has_a_line_for_every_state() -> None:
    assert set(LEGAL) == set(S)


def test_no_move_leads_out_of_a_state_that_ends() -> None:
    assert {state for state in S if not LEGAL[state]} == TERMINAL


def test_a_life_goes_through_the_states_in_order(core: Core) -> None:
    moves: list[tuple[NodeState, NodeState]] = []
    core.loom.graph.observer = lambda _node, old, new, _why: moves.append((old, new))
    a = core.submit()
    core.finish(a)
    assert moves == [(S.WAITING, S.READY), (S.READY, S.ASSIGNED), (S.ASSIGNED, S.FINISHED)]


def test_the_name_of_a_node_says_what_it_is_and_how_it_stands(core: Core) -> None:
    assert repr(core.submit(function="load")) == "<Node load 0x100000 READY>"
