"""Every inhabitant of the zoo in every place where a value can be (rows 38 to 49 of the faults).

Each use ends in the value or in an error of that one ref which names what and where; the worker
lives, and the next call is answered.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from tests.zoo import hostile
from tests.zoo.hostile import CASES, Case

from taskloom.exceptions import RayError

SESSION = {"num_cpus": 1}
LIMIT_S = 20

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def no_worker_is_lost(tl: ModuleType) -> Iterator[None]:
    before = tl.get(tl.remote(os.getpid).remote(), timeout=LIMIT_S)
    yield
    assert tl.get(tl.remote(os.getpid).remote(), timeout=LIMIT_S) == before


def each(condition: Callable[[Case], bool]) -> Any:
    return pytest.mark.parametrize("name", [n for n, one in CASES.items() if condition(one)])


def told(error: BaseException) -> str:
    """All that the user is told of an error."""
    return "".join(traceback.format_exception(error))


def outcome(function: Callable[[], Any]) -> Any:
    """What a call returns or raises."""
    try:
        return function()
    except BaseException as error:
        return error


def take(value: Any, *_: Any, **__: Any) -> str:
    return "arrived"


def arrived_well(name: str, value: Any, dig: Callable[[Any], Any]) -> bool:
    """In the worker: what came is what was sent."""
    return is_same(name, dig(value))


def is_same(name: str, value: Any) -> bool:
    same = CASES[name].same
    return bool(same(value)) if same else type(value).__name__ == type(hostile.make(name)).__name__


def identity(value: Any) -> Any:
    return value


def first(value: Any) -> Any:
    return value[0]


def only_key(value: Any) -> Any:
    return next(iter(value))


def calls(tl: ModuleType, name: str) -> dict[str, Callable[[], Any]]:
    """The inhabitant in each place on the way to a task."""
    one = CASES[name]
    f = tl.remote(take)
    ways: dict[str, Callable[[], Any]] = {
        "args[0]": lambda: f.remote(one.make()),
        "args[1]": lambda: f.remote(1, one.make()),
        "kwargs['key']": lambda: f.remote(1, key=one.make()),
        "args[0]['list'][1]": lambda: f.remote({"list": [0, one.make()]}),
    }
    if one.is_key:
        ways["args[0].<key"] = lambda: f.remote({one.make(): 1})
    return ways


@each(lambda one: not one.packs)
def test_what_does_not_pickle_is_refused_where_it_is_passed(tl: ModuleType, name: str):
    one = CASES[name]
    for where, call in calls(tl, name).items():
        error = outcome(call)
        assert type(error) is TypeError, where
        assert where in str(error)
        assert "an argument of take()" in str(error)
        assert one.says in str(error)
        assert len(str(error)) < 2000
        if not where.endswith("key"):
            assert f"{where}{one.path}" in str(error)


@each(lambda one: not one.packs)
def test_what_does_not_pickle_cannot_be_put_or_captured(tl: ModuleType, name: str):
    one = CASES[name]

    value = one.make()
    error = outcome(lambda: tl.put(value))
    assert type(error) is TypeError
    assert f"the value given to put(): value{one.path}" in str(error)

    error = outcome(lambda: tl.remote(lambda: value).remote())
    assert type(error) is TypeError
    assert f".<closure>.value{one.path}" in str(error)


@each(lambda one: not one.packs)
def test_what_does_not_pickle_is_the_error_of_the_task_that_returned_it(tl: ModuleType, name: str):
    one = CASES[name]

    @tl.remote(retry_exceptions=True)
    def whole(runs: list[int]) -> Any:
        return hostile.make(name)

    @tl.remote(num_returns=2)
    def parts() -> Any:
        return [1, [hostile.make(name)]]

    for ref, where in ((whole.remote([]), "value"), (parts.remote()[1], "value[0]")):
        error = outcome(lambda: tl.get(ref, timeout=LIMIT_S))  # noqa: B023
        assert isinstance(error, TypeError)
        assert isinstance(error, RayError)
        assert f"the return value of {'whole' if where == 'value' else 'parts'}()" in told(error)
        assert f"{where}{one.path}" in told(error)
        assert one.says in told(error)


@each(lambda one: one.packs and not one.unpacks)
def test_what_does_not_unpickle_is_the_error_of_its_task(tl: ModuleType, name: str):
    one = CASES[name]
    for where, call in calls(tl, name).items():
        error = outcome(lambda: tl.get(call(), timeout=LIMIT_S))  # noqa: B023
        assert isinstance(error, RayError), where
        assert one.says in str(error)
        assert "could not be unpickled here" in str(error)
        if not where.endswith("key"):
            assert f"({where}{one.path} could not" in str(error)
        assert len(str(error)) < 600_000


@each(lambda one: one.packs and not one.unpacks)
def test_what_does_not_unpickle_as_a_dependency_names_the_argument(tl: ModuleType, name: str):
    ref = tl.put([hostile.make(name)])
    f = tl.remote(take)

    error = outcome(lambda: tl.get(f.remote(1, ref), timeout=LIMIT_S))
    assert f"args[1][0]{CASES[name].path} could not be unpickled" in str(error)
    error = outcome(lambda: tl.get(f.remote(1, key=ref), timeout=LIMIT_S))
    assert f"kwargs['key'][0]{CASES[name].path} could not be unpickled" in str(error)


@each(lambda one: one.packs and not one.unpacks)
def test_a_function_whose_closure_does_not_unpickle_fails_with_its_name(tl: ModuleType, name: str):
    value = hostile.make(name)

    def captures() -> Any:
        return value

    for _ in range(2):
        error = outcome(lambda: tl.get(tl.remote(captures).remote(), timeout=LIMIT_S))
        assert isinstance(error, RayError)
        assert "the function could not be unpickled here" in str(error)
        assert CASES[name].says in str(error)
        assert "captures" in str(error)


@each(lambda one: one.packs and not one.unpacks)
def test_a_result_that_does_not_unpickle_fails_only_the_get_each_time(tl: ModuleType, name: str):
    one = CASES[name]
    bad = tl.remote(lambda: [1, hostile.make(name)]).remote()
    good = tl.remote(lambda: 1).remote()

    for _ in range(2):
        error = outcome(lambda: tl.get([good, bad], timeout=LIMIT_S))
        assert isinstance(error, Exception)  # nothing that would end or cancel the program
        assert one.says in told(error)
        assert f"the value of {bad!r} could not be unpickled" in told(error)
        assert f"it fails at value[1]{one.path}" in told(error)
    assert isinstance(bad.exception(), Exception)
    assert tl.get(good) == 1

    put = tl.put(hostile.make(name))
    assert f"the value of {put!r} could not" in told(outcome(lambda: tl.get(put)))


@each(lambda one: one.packs and not one.unpacks)
async def test_a_result_that_does_not_unpickle_fails_an_await_each_time(tl: ModuleType, name: str):
    bad = tl.remote(hostile.make).remote(name)
    for _ in range(2):
        with pytest.raises(Exception) as raised:  # any, if it ends no program
            await bad
        assert CASES[name].says in told(raised.value)
        assert "could not be unpickled here" in told(raised.value)


@each(lambda one: one.packs and one.unpacks)
def test_what_pickles_arrives_in_every_place(tl: ModuleType, name: str):
    one = CASES[name]
    f = tl.remote(arrived_well)
    refs = [
        f.remote(name, one.make(), identity),
        f.remote(name, value=one.make(), dig=identity),
        f.remote(name, [one.make()], first),
        f.remote(name, tl.put(one.make()), identity),
    ]
    if one.is_key:
        refs.append(f.remote(name, {one.make(): 1}, only_key))
    assert tl.get(refs, timeout=LIMIT_S) == [True] * len(refs)

    value = one.make()
    captures = tl.remote(lambda: is_same(name, value))
    assert tl.get(captures.remote(), timeout=LIMIT_S)

    make = tl.remote(hostile.make)
    assert is_same(name, tl.get(make.remote(name), timeout=LIMIT_S))
    several = tl.remote(lambda: [hostile.make(name), [hostile.make(name)]]).options(num_returns=2)
    alone, listed = tl.get(several.remote(), timeout=LIMIT_S)
    assert is_same(name, alone)
    assert is_same(name, listed[0])
    assert is_same(name, tl.get(tl.put(one.make())))
