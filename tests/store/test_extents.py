"""A set of byte ranges behaves like a set of bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom._store.extents import Extents

SIZE = 64


def the_bytes(extents: Extents) -> set[int]:
    return {byte for offset, length in extents for byte in range(offset, offset + length)}


steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "best", "first", "exact"]),
        st.integers(0, SIZE - 1),
        st.integers(1, 16),
    ),
    max_size=60,
)


@given(steps)
def test_it_holds_exactly_the_bytes_that_were_put_in_and_not_taken_out(steps):
    extents, model = Extents(), set()
    for what, offset, length in steps:
        wanted = set(range(offset, offset + length))
        if what == "add":
            if model & wanted:
                continue
            extents.add(offset, length)
            model |= wanted
        elif what == "exact":
            assert extents.take(offset, length) == (wanted <= model)
            if wanted <= model:
                model -= wanted
        else:
            longest = max((size for _, size in extents), default=0)
            taken = extents.take_best(length) if what == "best" else extents.take_first(length)
            assert (taken is None) == (longest < length)
            if taken is not None:
                assert set(range(taken, taken + length)) <= model
                model -= set(range(taken, taken + length))
        assert the_bytes(extents) == model
        assert extents.total == len(model)
        ranges = list(extents)
        assert all(a + n < b for (a, n), (b, _) in pairwise(ranges))
        assert extents.largest == max((size for _, size in ranges), default=0)


def test_the_best_fit_is_the_smallest_range_that_is_long_enough():
    extents = Extents()
    for offset, length in ((0, 100), (200, 10), (300, 20)):
        extents.add(offset, length)
    assert extents.take_best(10) == 200
    assert extents.take_best(11) == 300
    assert extents.take_best(11) == 0


def test_the_first_fit_is_the_lowest_range_that_is_long_enough():
    extents = Extents()
    for offset, length in ((300, 100), (0, 5), (100, 50)):
        extents.add(offset, length)
    assert extents.take_first(10) == 100


def test_taking_all_leaves_an_empty_set_that_can_be_used_again():
    extents = Extents()
    extents.add(0, 10)
    extents.add(20, 10)
    assert extents.take_all() == [(0, 10), (20, 10)]
    assert (extents.total, len(extents), extents.largest) == (0, 0, 0)
    extents.add(0, 3)
    assert list(extents) == [(0, 3)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
def test_neighbours_melt_together_in_whatever_order_they_come(order):
    extents = Extents()
    for number in order:
        extents.add(number * 10, 10)
    assert list(extents) == [(0, 30)]
