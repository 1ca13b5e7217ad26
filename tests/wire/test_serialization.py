"""Values to bytes and back: a snapshot, read-only where it is shared, otherwise the same."""

from __future__ import annotations

import array
import dataclasses
import enum
import math
import pickle
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom import _current
from taskloom._wire.frames import FrameReader, encode
from taskloom._wire.serialization import (
    INLINE_BYTES,
    PLAIN,
    Packed,
    Payload,
    dumps,
    loads,
    pack,
    pack_function,
    pack_plain,
    unpack,
    unpack_function,
)
from taskloom.ref import ObjectRef


class Keeper:
    """What a ref needs of a backend."""

    session_id = b"k" * 12

    def __init__(self) -> None:
        self.pinned: list[int] = []

    def ref(self, key: int) -> ObjectRef[Any]:
        return ObjectRef(key, self)  # type: ignore[arg-type]

    adopt = ref

    def drop(self, ref: ObjectRef[Any]) -> None:
        pass

    def pin(self, ref: ObjectRef[Any]) -> None:
        self.pinned.append(ref._key)


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    _current.set_backend(keeper)  # type: ignore[arg-type]
    yield keeper
    _current.set_backend(None)


def travel(payload: Payload) -> Payload:
    """The payload as the other side has it."""
    data = b"".join(bytes(piece) for piece in encode([(payload,)]))
    reader = FrameReader()
    while True:
        room = reader.buffer()
        count = min(len(room), len(data))
        room[:count] = data[:count]
        data = data[count:]
        for ((arrived,),) in reader.received(count):
            return arrived  # type: ignore[no-any-return]


def there(value: object) -> Any:
    """The value as the other side has it."""
    payload, _ = pack(value)
    return unpack(travel(payload))


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int
    y: object = None


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(max_size=10)
    | st.binary(max_size=10)
    | st.sampled_from([Color.RED, Point(1), range(3), ...]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        | st.lists(inner, max_size=3).map(deque)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=12,
)


@given(values)
def test_every_builtin_value_arrives_equal_and_of_its_type(value: object) -> None:
    seen = there(value)
    assert seen == value
    assert type(seen) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        OrderedDict(a=1),
        defaultdict(list, a=[1]),
        array.array("d", [1.0, 2.0]),
        bytearray(b"abc"),
        slice(1, 2),
        Exception("x", 1).args,
        {1: {2: {3: []}}},
        "\ud800",
        10**1000,
        -0.0,
        float("inf"),
    ],
    ids=repr,
)
def test_less_common_values_arrive_as_they_are(value: object) -> None:
    seen = there(value)
    assert seen == value
    assert type(seen) is type(value)


def test_not_a_number_stays_not_a_number() -> None:
    assert math.isnan(there(float("nan")))


def test_functions_and_classes_of_this_module_arrive() -> None:
    assert there(Point) is Point
    assert there(travel) is travel
    assert there(lambda x: x + 1)(1) == 2


# -- a snapshot --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_value_is_that_of_the_moment_it_was_packed(size: int) -> None:
    numbers = np.arange(size)
    raw = bytearray(size)
    payload, _ = pack([numbers, raw, pickle.PickleBuffer(raw)])
    numbers[0] = raw[0] = 99
    seen = unpack(payload)
    assert seen[0][0] == 0
    assert seen[1][0] == 0
    assert bytes(seen[2])[0] == 0


@pytest.mark.parametrize("size", [10, 100_000])
def test_arrays_arrive_read_only(size: int) -> None:
    numbers = np.arange(size)
    seen = there(numbers)
    assert (seen == numbers).all()
    assert not seen.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        seen[0] = 1


def test_arrays_are_read_only_for_their_own_process_too() -> None:
    assert not unpack(pack(np.arange(10))[0]).flags.writeable


def test_a_copy_of_an_array_can_be_written() -> None:
    copy = there(np.arange(10)).copy()
    copy[0] = 5
    assert copy[0] == 5


@pytest.mark.parametrize(
    "numbers",
    [
        np.arange(12).reshape(3, 4).T,
        np.arange(100)[::3],
        np.zeros((0, 3)),
        np.array(5),
        np.array(["a", "bc"]),
        np.array([1, None], dtype=object),
        np.zeros(3, dtype=[("x", "i4"), ("y", "f8")]),
        np.float32(1.5),
    ],
    ids=lambda numbers: f"{numbers.dtype}{numbers.shape}",
)
def test_arrays_of_any_shape_arrive(numbers: np.ndarray[Any, Any]) -> None:
    seen = there(numbers)
    assert seen.dtype == numbers.dtype
    assert seen.shape == numbers.shape
    assert (seen == numbers).all()


def test_two_who_unpack_the_same_value_share_nothing_that_can_be_written() -> None:
    payload = travel(pack([np.arange(100_000), [1]])[0])
    first, second = unpack(payload), unpack(payload)
    first[1].append(2)
    assert second[1] == [1]
    assert np.shares_memory(first[0], second[0])
    assert not first[0].flags.writeable


@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_a_bytearray_stays_a_bytearray_that_can_be_written(size: int) -> None:
    seen = there({"raw": bytearray(size)})["raw"]
    assert type(seen) is bytearray
    seen.append(1)
    assert len(seen) == size + 1


@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_bytes_stay_bytes(size: int) -> None:
    for value in (b"x" * size, [b"x" * size]):
        seen = there(value)
        assert seen == value
        assert type(seen) is type(value)


def test_what_is_one_object_inside_a_value_stays_one_object() -> None:
    shared = [1]
    numbers = np.arange(10)
    seen = there({"a": shared, "b": (shared,), "c": [numbers, numbers]})
    assert seen["a"] is seen["b"][0]
    assert seen["c"][0] is seen["c"][1]


def test_a_value_may_contain_itself() -> None:
    value: list[object] = [1]
    value.append(value)
    seen = there(value)
    assert seen[1] is seen


# -- payloads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, "a", b"b", [1, 2], None, {"a": Point(1)}])
def test_a_small_value_is_plain_bytes(value: object) -> None:
    assert type(pack(value)[0]) is bytes


@pytest.mark.parametrize("value", [b"x" * INLINE_BYTES, "x" * INLINE_BYTES, ["x" * INLINE_BYTES]])
def test_a_long_pickle_travels_beside_its_message(value: object) -> None:
    payload, _ = pack(value)
    assert isinstance(payload, Packed)
    assert len(encode([(payload,)])) == 2
    assert there(value) == value


def test_large_buffers_are_not_inside_the_pickle() -> None:
    payload, _ = pack([np.zeros(100_000), "x"])
    assert isinstance(payload, Packed)
    assert len(payload.data) < 1000
    assert payload.size_bytes == len(payload.data) + 800_000


def test_a_payload_travels_any_number_of_times() -> None:
    payload, _ = pack({"a": np.arange(10_000), "b": bytearray(10)})
    for _ in range(3):
        payload = travel(payload)
    seen = unpack(payload)
    assert seen["a"][-1] == 9999
    assert not seen["a"].flags.writeable
    assert seen["b"] == bytearray(10)


def test_plain_values_and_tuples_of_them_have_a_way_of_their_own() -> None:
    for kind in PLAIN:
        value = kind()
        assert unpack(pack(value)[0]) == value
    args = (1, "x", None, b"y" * INLINE_BYTES)
    assert unpack(pack_plain(args)) == args


def test_a_subclass_of_a_plain_type_stays_what_it_is() -> None:
    class Meters(float):
        unit = "m"

    seen = there(Meters(3))
    assert seen == 3.0
    assert seen.unit == "m"


# -- refs --------------------------------------------------------------------------------------


def test_refs_inside_a_value_are_named_once_each(keeper: Keeper) -> None:
    a, b = keeper.ref(1), keeper.ref(2)
    payload, keys = pack([b, a, {"x": a}, (b,)])
    assert keys == (2, 1)
    assert unpack(payload) == [b, a, {"x": a}, (b,)]


def test_one_ref_inside_a_value_stays_one_ref(keeper: Keeper) -> None:
    ref = keeper.ref(1)
    first, second = unpack(pack([ref, ref])[0])
    assert first is second


def test_a_ref_inside_a_value_is_not_pinned(keeper: Keeper) -> None:
    pack([keeper.ref(1)])
    assert keeper.pinned == []


def test_a_ref_inside_bytes_of_unknown_life_is_pinned(keeper: Keeper) -> None:
    data = dumps([keeper.ref(7)])
    assert keeper.pinned == [7]
    assert loads(data) == [keeper.ref(7)]


def test_a_ref_that_a_stranger_pickles_is_pinned(keeper: Keeper) -> None:
    pickle.dumps(keeper.ref(7))
    assert keeper.pinned == [7]


def test_a_ref_that_a_function_captured_is_pinned(keeper: Keeper) -> None:
    ref = keeper.ref(7)
    function = unpack_function(pack_function(lambda: ref))
    assert keeper.pinned == [7]
    assert function() == ref


def test_a_ref_of_no_session_travels_by_its_id(keeper: Keeper) -> None:
    stranger: ObjectRef[Any] = ObjectRef.from_random()
    payload, keys = pack([stranger])
    assert keys == ()
    assert unpack(payload)[0]._key == stranger._key


# -- functions ---------------------------------------------------------------------------------


def test_a_function_with_a_closure_arrives() -> None:
    factor = 3

    def times(x: int, *, plus: int = 1) -> int:
        return factor * x + plus

    assert unpack_function(pack_function(times))(2) == 7


def test_a_recursive_local_function_arrives() -> None:
    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial(n - 1)

    assert unpack_function(pack_function(factorial))(5) == 120


def test_a_function_that_captured_what_cannot_be_pickled_is_named() -> None:
    lock = threading.Lock()

    def uses_lock() -> object:
        return lock

    with pytest.raises(TypeError, match="could not serialize the function .*uses_lock") as caught:
        pack_function(uses_lock)
    assert "lock" in str(caught.value)
