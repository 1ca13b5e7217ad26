"""The arguments of a call: packed with holes where refs stood, and put together again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskloom import _current
from taskloom._wire.calls import decode_call, encode_call
from taskloom._wire.serialization import INLINE_BYTES, Packed, pack
from taskloom.ref import ObjectRef


class Keeper:
    """A backend that keeps values in a dictionary."""

    session_id = b"s" * 12

    def __init__(self) -> None:
        self.values: dict[int, object] = {}
        self.adopted: list[int] = []
        self.pinned: list[int] = []

    def ref(self, value: object = None, key: int | None = None) -> ObjectRef[Any]:
        key = key or len(self.values) + 1
        self.values[key] = value
        return ObjectRef(key, self)  # type: ignore[arg-type]  # what a ref needs of a backend

    def adopt(self, key: int) -> ObjectRef[Any]:
        self.adopted.append(key)
        return ObjectRef(key, self)  # type: ignore[arg-type]

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


def call(keeper: Keeper, *args: object, **kwargs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the function sees when it is called with these arguments."""
    payload, holes, deps, _nested = encode_call(args, kwargs, "f")
    fills = [pack(keeper.values[ref._key])[0] for ref in deps] or None
    seen_args, seen_kwargs = decode_call(payload, holes, fills)
    return tuple(seen_args), seen_kwargs


def test_plain_arguments_arrive_as_they_are(keeper: Keeper) -> None:
    args = (1, 2.5, "text", b"bytes", True, None, 1j)
    assert call(keeper, *args) == (args, {})
    assert encode_call(args, {}, "f")[1] is None


def test_a_call_without_arguments_has_none(keeper: Keeper) -> None:
    assert call(keeper) == ((), {})


def test_arguments_that_are_not_plain_arrive_as_they_are(keeper: Keeper) -> None:
    args = ([1, 2], {"a": (3,)}, {4}, frozenset({5}), range(3), ValueError)
    assert call(keeper, *args, key=[6]) == (args, {"key": [6]})


def test_keyword_arguments_keep_their_order(keeper: Keeper) -> None:
    _, kwargs = call(keeper, zebra=1, ape=2, bee=keeper.ref(3))
    assert list(kwargs.items()) == [("zebra", 1), ("ape", 2), ("bee", 3)]


def test_a_ref_is_replaced_by_its_value(keeper: Keeper) -> None:
    a, b = keeper.ref("A"), keeper.ref(["B"])
    assert call(keeper, 0, a, key=b) == ((0, "A"), {"key": ["B"]})


def test_a_ref_to_none_is_none(keeper: Keeper) -> None:
    assert call(keeper, keeper.ref(None), 1) == ((None, 1), {})


def test_one_ref_given_many_times_is_one_dependency(keeper: Keeper) -> None:
    ref = keeper.ref([1])
    _, holes, deps, nested = encode_call((ref, 2, ref), {"key": ref}, "f")
    assert deps == [ref]
    assert holes == ((0, 0), (2, 0), ("key", 0))
    assert nested == ()


def test_one_ref_given_many_times_is_one_value(keeper: Keeper) -> None:
    ref = keeper.ref([1])
    (first, _, second), kwargs = call(keeper, ref, 2, ref, key=ref)
    assert first is second is kwargs["key"]


def test_two_refs_to_one_object_are_one_dependency(keeper: Keeper) -> None:
    first, second = keeper.ref("x"), ObjectRef(1, keeper)  # type: ignore[arg-type]
    assert first == second
    assert len(encode_call((first, second), {}, "f")[2]) == 1


@pytest.mark.parametrize("count", range(1, 12))
def test_a_call_of_nothing_but_refs_is_like_any_other(keeper: Keeper, count: int) -> None:
    values = [f"value {number}" for number in range(count)]
    refs = [keeper.ref(value) for value in values]
    assert call(keeper, *refs) == (tuple(values), {})
    payload, holes, deps, nested = encode_call(tuple(refs), {}, "f")
    with_number = encode_call((*refs, 0), {}, "f")  # goes the long way
    assert [payload, holes, list(deps), nested] == [
        pack(([None] * count, {}))[0],
        with_number[1],
        list(with_number[2]),
        (),
    ]


def test_dependencies_come_in_the_order_of_the_arguments(keeper: Keeper) -> None:
    a, b, c = (keeper.ref(name) for name in "abc")
    assert encode_call((c, a), {"key": b}, "f")[2] == [c, a, b]


def test_a_ref_inside_a_container_stays_a_ref(keeper: Keeper) -> None:
    ref = keeper.ref("value")
    ((seen,), deeper), kwargs = call(keeper, [ref], {"a": [(ref,)]}, key={"b": ref})
    assert type(seen) is ObjectRef
    assert seen == deeper["a"][0][0] == kwargs["key"]["b"] == ref


def test_refs_inside_arguments_are_named_once_each(keeper: Keeper) -> None:
    a, b = keeper.ref(), keeper.ref()
    _, _, deps, nested = encode_call(([a, b, a],), {"key": {"x": b}}, "f")
    assert deps == []
    assert nested == (a._key, b._key)


def test_a_ref_may_be_an_argument_and_inside_another(keeper: Keeper) -> None:
    ref = keeper.ref("value")
    _, _, deps, nested = encode_call((ref, [ref]), {}, "f")
    assert deps == [ref]
    assert nested == (ref._key,)
    assert call(keeper, ref, [ref]) == (("value", [ref]), {})


def test_refs_that_travel_are_not_pinned(keeper: Keeper) -> None:
    ref = keeper.ref("value")
    call(keeper, ref, [ref])
    assert keeper.pinned == []


def test_what_two_arguments_share_they_still_share(keeper: Keeper) -> None:
    shared = [1]
    (first, second), kwargs = call(keeper, shared, [shared], key=shared)
    assert first is second[0] is kwargs["key"]


def test_arguments_are_those_of_the_moment_of_the_call(keeper: Keeper) -> None:
    array = [1]
    payload, holes, _, _ = encode_call((array,), {}, "f")
    array.append(2)
    assert decode_call(payload, holes, None)[0] == [[1]]


def test_the_callers_arguments_are_left_alone(keeper: Keeper) -> None:
    ref = keeper.ref(1)
    kwargs: dict[str, object] = {"key": ref}
    encode_call((ref,), kwargs, "f")
    assert kwargs == {"key": ref}


def test_large_plain_arguments_travel_beside_the_message(keeper: Keeper) -> None:
    text = "x" * (INLINE_BYTES + 1)
    payload, holes, _, _ = encode_call((text, 1), {}, "f")
    assert isinstance(payload, Packed)
    assert not holes
    assert call(keeper, text, 1) == ((text, 1), {})


def test_a_thousand_arguments(keeper: Keeper) -> None:
    refs = [keeper.ref(number) for number in range(500)]
    args = [item for pair in zip(refs, range(500), strict=True) for item in pair]
    seen, _ = call(keeper, *args)
    assert seen == tuple(number for number in range(500) for _ in range(2))


@pytest.mark.parametrize(
    ("args", "kwargs", "place"),
    [
        ((1, threading.Lock()), {}, r"args\[1\] is <unlocked"),
        (({"a": [threading.Lock()]},), {}, r"args\[0\]\['a'\]\[0\] is <unlocked"),
        ((), {"key": threading.Lock()}, r"kwargs\['key'\] is <unlocked"),
        (([1],), {"good": 1, "bad": (threading.Lock(),)}, r"kwargs\['bad'\]\[0\] is <unlocked"),
    ],
)
def test_an_argument_that_cannot_be_pickled_is_named(
    keeper: Keeper, args: tuple[object, ...], kwargs: dict[str, object], place: str
) -> None:
    with pytest.raises(TypeError, match=rf"could not serialize an argument of f\(\): {place}"):
        encode_call(args, kwargs, "f")


leaves = st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
arguments = st.one_of(leaves, st.tuples(st.just("ref"), st.integers(1, 5)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(arguments, max_size=6),
    st.dictionaries(st.text("abc", min_size=1, max_size=3), arguments, max_size=4),
)
def test_every_call_arrives_with_values_in_the_places_of_its_refs(
    keeper: Keeper, args: list[object], kwargs: dict[str, object]
) -> None:
    def given_as(argument: Any) -> object:
        if isinstance(argument, tuple):
            return keeper.ref(f"value {argument[1]}", argument[1])
        return argument

    def seen_as(argument: Any) -> object:
        return f"value {argument[1]}" if isinstance(argument, tuple) else argument

    seen_args, seen_kwargs = call(
        keeper, *map(given_as, args), **{name: given_as(value) for name, value in kwargs.items()}
    )
    assert list(seen_args) == [seen_as(argument) for argument in args]
    assert seen_kwargs == {name: seen_as(value) for name, value in kwargs.items()}
