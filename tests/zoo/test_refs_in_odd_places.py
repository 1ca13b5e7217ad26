"""Refs in closures, errors, keys, sets, dataclasses and so on: they work, and nothing is left."""

from __future__ import annotations

import contextvars
import copy
import dataclasses
import functools
import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from tests.gates import eventually

from taskloom import _current
from taskloom._core import invariants
from taskloom.util import inspect_serializability

LIMIT_S = 20
SESSION = {"num_cpus": 1}

VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("ref")


def in_engine(function: Any) -> Any:
    """Call ``function(loom)`` in the engine's thread, between two of its turns."""
    backend: Any = _current.peek()
    return backend._portal.call(functools.partial(function, backend._engine.loom))


def kept(_tl: ModuleType) -> int:
    return in_engine(lambda loom: len(loom.graph.objects))  # type: ignore[no-any-return]


@pytest.fixture
def counted(tl: ModuleType) -> Iterator[Callable[[int], None]]:
    """Afterwards exactly as many objects more are kept as the test says (0 if nothing)."""
    ping = tl.remote(lambda: 1)

    def settled(goal: int) -> bool:
        gc.collect()
        tl.get(ping.remote(), timeout=LIMIT_S)  # workers tell with the next message they send
        return kept(tl) == goal

    assert eventually(lambda: settled(kept(tl)))
    before = kept(tl)
    pinned = [0]
    yield functools.partial(pinned.__setitem__, 0)
    assert eventually(lambda: settled(before + pinned[0])), (
        f"{kept(tl) - before} more objects are kept, {pinned[0]} were pinned"
    )
    in_engine(invariants.check)


@dataclasses.dataclass(frozen=True)
class Box:
    ref: Any
    more: tuple[Any, ...] = ()


class Named:
    __slots__ = ("ref",)

    def __init__(self, ref: Any) -> None:
        self.ref = ref


def values(box: Any) -> Any:
    """The values of all refs in ``box``, in a task."""
    import taskloom

    if isinstance(box, taskloom.ObjectRef):
        return taskloom.get(box)
    if isinstance(box, dict):
        return [values(one) for pair in box.items() for one in pair]
    if isinstance(box, (list, tuple, set, frozenset)):
        return [values(one) for one in box]
    if isinstance(box, BaseException):
        return values(box.args)
    if isinstance(box, (Box, Named)):
        return values(box.ref)
    return box


BOXES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "list": (lambda ref: [ref, ref], [7, 7]),
    "key": (lambda ref: {ref: ref}, [7, 7]),
    "set": (lambda ref: {ref}, [7]),
    "frozen set": (lambda ref: frozenset([ref]), [7]),
    "dataclass": (lambda ref: Box(ref, (ref,)), 7),
    "set of dataclasses": (lambda ref: {Box(ref)}, [7]),
    "slots": (Named, 7),
    "error": (lambda ref: ValueError("x", ref), ["x", 7]),
    "nested deep": (lambda ref: [[{"k": (ref, [ref])}]], [[["k", [7, [7]]]]]),
}


@pytest.mark.parametrize("name", BOXES)
def test_a_ref_inside_an_argument_a_result_and_a_put_works_and_goes(
    tl: ModuleType, counted: Callable[[int], None], name: str
):
    make, expected = BOXES[name]
    f, back = tl.remote(values), tl.remote(lambda box: box)

    assert tl.get(f.remote(make(tl.put(7))), timeout=LIMIT_S) == expected
    assert tl.get(f.remote(box=make(tl.put(7))), timeout=LIMIT_S) == expected
    assert tl.get(f.remote(tl.put(make(tl.put(7)))), timeout=LIMIT_S) == expected
    returned = tl.get(back.remote(make(tl.put(7))), timeout=LIMIT_S)
    assert tl.get(f.remote(returned), timeout=LIMIT_S) == expected
    made = tl.remote(lambda: make(__import__("taskloom").put(7)))
    assert tl.get(f.remote(made.remote()), timeout=LIMIT_S) == expected


def test_refs_that_a_generator_yields_work_and_go(tl: ModuleType, counted: Callable[[int], None]):
    @tl.remote(num_returns=3)
    def generates() -> Any:
        import taskloom

        for n in range(3):
            yield [taskloom.put(n)]

    boxes = tl.get(generates.remote(), timeout=LIMIT_S)
    assert [tl.get(box[0]) for box in boxes] == [0, 1, 2]


def test_a_generator_that_fails_half_way_leaves_nothing(
    tl: ModuleType, counted: Callable[[int], None]
):
    @tl.remote(num_returns=3)
    def generates() -> Any:
        import taskloom

        yield [taskloom.put(1)]
        raise ValueError("half way")

    first, *others = generates.remote()
    assert tl.get(tl.get(first, timeout=LIMIT_S)) == [1]
    for ref in others:
        with pytest.raises(ValueError, match="half way"):
            tl.get(ref, timeout=LIMIT_S)


def test_a_ref_beside_what_does_not_pickle_is_not_kept(
    tl: ModuleType, counted: Callable[[int], None]
):
    f, lock = tl.remote(values), threading.Lock()
    for call in (
        lambda ref: f.remote([ref, threading.Lock()]),
        lambda ref: f.remote(ref, [ref, {"a": threading.Lock(), "b": [ref]}]),
        lambda ref: tl.put([ref, threading.Lock()]),
        lambda ref: tl.remote(functools.partial(values, [ref, lock])).remote(),
    ):
        with pytest.raises(TypeError):
            call(tl.put(7))
    assert not inspect_serializability([tl.put(7), threading.Lock()], print_file=_Nowhere())[0]


class _Nowhere:
    def write(self, text: str) -> int:
        return len(text)


def test_a_ref_beside_what_does_not_unpickle_is_not_kept(
    tl: ModuleType, counted: Callable[[int], None]
):
    class Bad:
        def __reduce__(self) -> Any:
            return divmod, (1, 0)

    f = tl.remote(values)
    with pytest.raises(ZeroDivisionError):
        tl.get(f.remote([tl.put(7), Bad(), tl.put(8)]), timeout=LIMIT_S)
    with pytest.raises(ZeroDivisionError):
        tl.get(tl.put([tl.put(7), Bad(), tl.put(8)]), timeout=LIMIT_S)


def test_a_result_that_does_not_pickle_lets_go_of_its_refs(
    tl: ModuleType, counted: Callable[[int], None]
):
    @tl.remote
    def fails() -> Any:
        import taskloom

        return [taskloom.put(1), threading.Lock(), [taskloom.put(2)]]

    with pytest.raises(TypeError):
        tl.get(fails.remote(), timeout=LIMIT_S)


# -- where nobody can know how long the bytes live: kept for the session ---------------------------


def test_a_ref_pickled_by_the_user_is_kept_once(tl: ModuleType, counted: Callable[[int], None]):
    ref = tl.put("pickled")
    blobs = [pickle.dumps(ref), pickle.dumps([ref, ref])]
    del ref
    gc.collect()
    back = pickle.loads(blobs[1])

    assert tl.get(back) == ["pickled", "pickled"]
    assert tl.get(tl.remote(values).remote(back), timeout=LIMIT_S) == ["pickled", "pickled"]
    assert tl.get(pickle.loads(blobs[0])) == "pickled"
    counted(1)


def test_copies_of_a_ref_are_the_ref(tl: ModuleType, counted: Callable[[int], None]):
    ref = tl.put(1)
    copies = [copy.copy(ref), copy.deepcopy([ref]), copy.deepcopy(Box(ref))]

    assert copies[0] is ref
    assert copies[1][0] is ref


def test_a_ref_in_a_closure_is_kept_for_the_session(tl: ModuleType, counted: Callable[[int], None]):
    ref = tl.put("captured")
    f = tl.remote(lambda: values(ref))
    assert tl.get([f.remote(), f.remote()], timeout=LIMIT_S) == ["captured"] * 2
    g = tl.remote(functools.partial(values, [ref]))
    assert tl.get(g.remote(), timeout=LIMIT_S) == ["captured"]
    counted(1)


def test_a_ref_in_an_error_is_kept_for_the_session(tl: ModuleType, counted: Callable[[int], None]):
    @tl.remote
    def fails(box: Any) -> None:
        raise ValueError(box)

    def fail() -> Any:
        with pytest.raises(ValueError, match="ObjectRef") as raised:
            tl.get(fails.remote([tl.put("in an error")]), timeout=LIMIT_S)
        return raised.value.args[0]

    assert tl.get(fail()) == ["in an error"]
    counted(1)


def test_a_ref_in_a_context_variable_is_kept_for_the_session(
    tl: ModuleType, counted: Callable[[int], None]
):
    f = tl.remote(lambda: values(VARIABLE.get(None)))

    def run() -> Any:
        VARIABLE.set([tl.put("in a variable")])
        return tl.get([f.remote(), f.remote()], timeout=LIMIT_S)

    assert contextvars.copy_context().run(run) == [["in a variable"]] * 2
    counted(1)


# -- refs of others --------------------------------------------------------------------------------


def test_a_ref_of_another_session_is_refused_everywhere_once_and_for_all(fresh: ModuleType):
    fresh.init(num_cpus=1)
    stale = fresh.put(1)
    fresh.shutdown()
    fresh.init(num_cpus=1)
    f = fresh.remote(values)

    for call in (
        lambda: f.remote(stale),
        lambda: f.remote([stale]),
        lambda: f.remote(box={stale: 1}),
        lambda: fresh.put([stale]),
        lambda: fresh.get(stale),
        lambda: fresh.remote(lambda: stale).remote(),
    ):
        with pytest.raises(ValueError, match="does not belong to this session"):
            call()
    assert fresh.get(f.remote([1]), timeout=LIMIT_S) == [1]
