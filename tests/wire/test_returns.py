"""What a function returned becomes the values of its refs (REM-7)."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator

import pytest

from taskloom._wire.returns import split_returns


def test_one_return_is_the_value_itself():
    value = [1, 2]

    assert split_returns(value, 1, "f")[0] is value


@pytest.mark.parametrize("value", [(1, 2), [1, 2], iter([1, 2]), {1: "a", 2: "b"}])
def test_an_iterable_of_exactly_that_many_is_taken_apart(value):
    assert split_returns(value, 2, "f") == [1, 2]


def test_too_few_say_how_many_there_were():
    with pytest.raises(ValueError, match=r"^Task returned 1 objects, but num_returns=2\.$"):
        split_returns([1], 2, "f")


def test_too_many_are_an_error_and_an_endless_generator_is_not_driven_on():
    source = itertools.count()
    with pytest.raises(ValueError, match=r"^Task returned more than num_returns=2 objects\.$"):
        split_returns(source, 2, "f")

    assert next(source) == 3


def test_what_is_no_iterable_is_named():
    with pytest.raises(ValueError, match="'f' returned an object of type int"):
        split_returns(1, 2, "f")


def test_the_error_of_a_generator_is_raised():
    def fail() -> Iterator[int]:
        yield 1
        raise KeyError("midway")

    with pytest.raises(KeyError):
        split_returns(fail(), 2, "f")


def test_a_value_where_none_is_wanted_only_warns():
    with pytest.warns(RuntimeWarning, match="num_returns=0"):
        assert split_returns([1], 0, "f") == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert split_returns(None, 0, "f") == []
