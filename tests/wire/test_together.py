"""Many small calls in one message are the same calls."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from taskloom._wire import messages as m
from taskloom._wire.together import gathered

plain_done = st.tuples(
    st.just(m.DONE), st.integers(1, 99), st.binary(max_size=4), st.none(), st.floats(0, 1)
)
others = st.one_of(
    st.tuples(st.just(m.DONE), st.integers(1, 99), st.binary(), st.just((7,)), st.floats(0, 1)),
    st.tuples(st.just(m.DONE), st.integers(1, 99), st.just([b"a", b"b"]), st.none(), st.just(0.5)),
    st.tuples(st.just(m.FAILED), st.integers(1, 99), st.none(), st.booleans(), st.floats(0, 1)),
    st.tuples(st.just(m.RELEASE), st.lists(st.integers(1, 9))),
)


def apart(messages):
    """Each DONE on its own again."""
    for message in messages:
        if message[0] == m.DONE_MANY:
            for seq, payload, seconds in zip(*message[1:], strict=True):
                yield m.DONE, seq, payload, None, seconds
        else:
            yield message


@given(st.lists(st.one_of(plain_done, others)))
def test_gathering_changes_neither_what_is_said_nor_its_order(messages):
    assert list(apart(gathered(messages))) == messages


def is_small(message) -> bool:
    """A small result on its own, or many."""
    if message[0] == m.DONE:
        return message[3] is None and type(message[2]) is bytes
    return message[0] == m.DONE_MANY


@given(st.lists(st.one_of(plain_done, others)))
def test_no_two_small_results_stand_side_by_side_afterwards(messages):
    small = [is_small(message) for message in gathered(messages)]
    assert (True, True) not in pairwise(small)


def test_small_results_that_stand_together_are_one_message():
    messages = [(m.DONE, seq, b"%d" % seq, None, seq / 10) for seq in range(3)]
    assert gathered(messages) == [(m.DONE_MANY, (0, 1, 2), (b"0", b"1", b"2"), (0.0, 0.1, 0.2))]


def test_a_result_on_its_own_stays_what_it_was():
    message = (m.DONE, 5, b"x", None, 0.1)
    assert gathered([message]) == [message]


def test_a_result_with_refs_or_a_place_in_the_store_is_not_gathered():
    messages = [(m.DONE, 1, b"x", (9,), 0.1), (m.DONE, 2, object(), None, 0.1)] * 2
    assert gathered(messages) == messages
