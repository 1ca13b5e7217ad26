"""Values: put, containers, arrays, functions and classes, context variables."""

from __future__ import annotations

import functools
import pickle
import threading
from contextvars import ContextVar

import numpy as np
import pytest
from tests.conformance.subjects import LONG_S, add

import taskloom as tl

colour: ContextVar[str] = ContextVar("colour", default="none")


def test_put_keeps_a_snapshot():
    value = [1, 2]
    ref = tl.put(value)
    value.append(3)
    assert tl.get(ref) == [1, 2]


def test_put_refuses_a_ref_and_what_cannot_be_pickled():
    with pytest.raises(TypeError, match="not allowed"):
        tl.put(tl.put(1))
    with pytest.raises(TypeError, match="lock"):
        tl.put(threading.Lock())


def test_a_task_does_not_change_the_arguments_of_its_caller():
    @tl.remote
    def change(items):
        items.append("changed")
        return items

    items = ["mine"]
    assert tl.get(change.remote(items)) == ["mine", "changed"]
    assert items == ["mine"]


def test_refs_in_containers_stay_refs():
    @tl.remote
    def look(box):
        (ref,) = box["refs"]
        return isinstance(ref, tl.ObjectRef), tl.get(ref), {"made": add.remote(1, 1)}

    is_ref, value, made = tl.get(look.remote({"refs": [add.remote(20, 1)]}), timeout=LONG_S)
    assert (is_ref, value, tl.get(made["made"])) == (True, 21, 2)


def test_a_ref_in_a_value_that_was_put_stays_good():
    outer = tl.put({"inner": tl.put("deep")})
    assert tl.get(tl.get(outer)["inner"]) == "deep"


def test_a_value_that_was_put_in_a_task_outlives_it():
    @tl.remote
    def keep():
        return [tl.put(np.ones(100_000))]

    (ref,) = tl.get(keep.remote())
    assert tl.get(ref).sum() == 100_000


def test_a_ref_that_was_pickled_by_hand_is_found_in_a_task():
    blob = pickle.dumps(tl.put([1, 2, 3]))

    @tl.remote
    def read(data):
        return tl.get(pickle.loads(data))

    assert tl.get(read.remote(blob)) == [1, 2, 3]


def test_large_arrays_travel_to_tasks_and_back():
    @tl.remote
    def make(n):
        return np.arange(n)

    @tl.remote
    def total(array):
        return int(array.sum())

    ref = make.remote(1_000_000)
    assert tl.get(total.remote(ref)) == 499_999_500_000
    assert tl.get(ref)[-1] == 999_999
    assert tl.get(total.remote(np.ones(500_000))) == 500_000


def test_arrays_arrive_read_only():
    @tl.remote
    def writeable(array):
        return array.flags.writeable

    assert tl.get(writeable.remote(tl.put(np.ones(200_000)))) is False
    assert tl.get(tl.put(np.ones(200_000))).flags.writeable is False


@pytest.mark.differs("dask", "each get brings the value anew")
def test_two_gets_of_a_large_array_share_its_memory():
    ref = tl.put(np.ones(200_000))
    assert np.shares_memory(tl.get(ref), tl.get(ref))


def test_closures_lambdas_and_partials_travel():
    offset = 5
    shifted = tl.remote(lambda n: n + offset)
    doubled = tl.remote(functools.partial(lambda a, b: a * b, 2))
    assert tl.get([shifted.remote(1), doubled.remote(21)]) == [6, 42]


def test_classes_that_are_defined_in_a_function_travel():
    class Point:
        def __init__(self, x):
            self.x = x

        def moved(self):
            return Point(self.x + 1)

    @tl.remote
    def move(point):
        return point.moved()

    assert tl.get(move.remote(Point(1))).x == 2


def test_context_variables_of_the_caller_reach_the_task():
    @tl.remote
    def look():
        return colour.get()

    token = colour.set("blue")
    try:
        ref = look.remote()
    finally:
        colour.reset(token)
    assert tl.get([ref, look.remote()]) == ["blue", "none"]


def test_context_variables_reach_nested_tasks_and_coroutines():
    @tl.remote
    async def inner():
        return colour.get()

    @tl.remote
    def outer():
        return tl.get(inner.remote())

    token = colour.set("green")
    try:
        ref = outer.remote()
    finally:
        colour.reset(token)
    assert tl.get(ref, timeout=LONG_S) == "green"


def test_what_a_task_sets_in_a_context_variable_stays_in_the_task():
    @tl.remote
    def change():
        before = colour.get()
        colour.set("changed")
        return before

    assert tl.get([change.remote(), change.remote()]) == ["none", "none"]
    assert colour.get() == "none"


def test_a_serializer_that_was_registered_is_used_on_both_sides():
    class Guarded:
        def __init__(self, value):
            self.value = value
            self.lock = threading.Lock()

    @tl.remote
    def look(guarded):
        return guarded.value, type(guarded.lock).__name__, guarded

    tl.util.register_serializer(
        Guarded, serializer=lambda guarded: guarded.value, deserializer=lambda value: Guarded(value)
    )
    try:
        value, lock, back = tl.get(look.remote(Guarded(7)), timeout=LONG_S)
    finally:
        tl.util.deregister_serializer(Guarded)
    assert (value, lock, back.value) == (7, "lock", 7)


def test_a_value_of_many_megabytes_travels():
    @tl.remote
    def double(block):
        return block + block

    assert len(tl.get(double.remote(bytes(8_000_000)), timeout=LONG_S)) == 16_000_000


def test_none_and_empty_values_travel():
    @tl.remote
    def same(value):
        return value

    values = [None, "", b"", [], {}, 0, False, float("inf")]
    assert tl.get([same.remote(value) for value in values]) == values
