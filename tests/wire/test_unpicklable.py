"""The path to the member that cannot be pickled."""

from __future__ import annotations

import functools
import threading
import time
from collections import namedtuple
from typing import NamedTuple

import cloudpickle
import pytest

from taskloom._wire.unpicklable import path_to_unpicklable

LOCK = threading.Lock()


def find(value, name="args[0]"):
    return path_to_unpicklable(value, name, cloudpickle.dumps)


class Connection:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Slots:
    __slots__ = ("__private", "plain")

    def __init__(self, plain, private):
        self.plain = plain
        self.__private = private


class Pair(NamedTuple):
    left: object
    right: object


class Hides:
    """Pickles without its lock, but not without the rest."""

    def __init__(self, rest):
        self.lock = LOCK
        self.rest = rest

    def __getstate__(self):
        return {"rest": self.rest}


def makes_closure(lock):
    def f():
        return lock

    return f


def with_default(lock=LOCK):
    return lock


def by_value(function):
    """As a function of __main__ is: with its globals."""
    return type(function)(
        function.__code__,
        dict(function.__globals__, __name__="__main__"),
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


def uses_global():
    return LOCK


def uses_global_inside():
    return lambda: LOCK


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (LOCK, "args[0]"),
        ([1, LOCK], "args[0][1]"),
        ({"k": [0, 1, 2, LOCK]}, "args[0]['k'][3]"),
        ((1, {"a": (LOCK,)}), "args[0][1]['a'][0]"),
        ({LOCK}, "args[0].<member>"),
        ({LOCK: 1}, f"args[0].<key {LOCK!r}>"),
        (Connection(conn=Connection(_lock=LOCK)), "args[0].conn._lock"),
        (Connection(**{"odd name": LOCK}), "args[0].__dict__['odd name']"),
        (Slots(1, LOCK), "args[0].__private"),
        (Pair(1, LOCK), "args[0].right"),
        (Hides(Connection(x=LOCK)), "args[0].rest.x"),
        (makes_closure(LOCK), "args[0].<closure>.lock"),
        (makes_closure([1, LOCK]), "args[0].<closure>.lock[1]"),
        (by_value(uses_global), "args[0].<globals>.LOCK"),
        (by_value(uses_global_inside), "args[0].<globals>.LOCK"),
        (by_value(with_default), "args[0].__defaults__[0]"),
        (functools.partial(print, LOCK), "args[0].args[0]"),
        (ValueError(1, LOCK), "args[0].args[1]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_path_leads_to_the_innermost_member(value, path):
    assert find(value) == (path, LOCK)


def test_a_class_made_in_a_function_is_searched():
    class Local:
        shared = LOCK

    assert find(Local, "x") == ("x.shared", LOCK)
    assert find(Local(), "x") == ("x.__class__.shared", LOCK)


def test_a_bound_method_leads_to_its_object():
    assert find(Connection(x=LOCK).__init__, "m") == ("m.__self__.x", LOCK)


def test_the_first_part_is_the_name_that_was_given():
    assert find([LOCK], "kwargs['x']")[0] == "kwargs['x'][0]"


def test_what_pickles_has_no_path():
    assert find([1, {"a": Connection(x=2)}]) is None


def test_a_ring_ends():
    ring = [1]
    ring.append(ring)
    ring.append(Connection(ring=ring, lock=LOCK))
    path, culprit = find(ring)
    assert culprit is LOCK
    assert path == "args[0][2].lock"


def test_what_has_no_bad_member_is_the_culprit_itself():
    class Refuses:
        def __reduce__(self):
            raise KeyboardInterrupt

    value = Refuses()
    path, culprit = find([value])
    assert path == "args[0][0]"
    assert culprit is value


def test_a_value_that_fights_back_is_named_as_a_whole():
    class Hostile:
        def __getattribute__(self, name):
            raise ZeroDivisionError

    value = [Hostile()]
    path, _ = find(value)
    assert path.startswith("args[0]")


def test_deep_and_wide_values_do_not_take_for_ever():
    deep = LOCK
    for _ in range(500):
        deep = [deep]
    wide = [[LOCK if i == 99_999 else i] for i in range(100_000)]
    Big = namedtuple("Big", "deep wide")

    start = time.monotonic()
    assert find(deep)[0].startswith("args[0][0][0]")
    assert find(wide)[0] == "args[0]"  # too wide to look at every member
    assert find(Big(wide, [1])) is not None
    assert time.monotonic() - start < 60
