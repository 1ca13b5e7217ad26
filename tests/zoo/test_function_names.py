"""What can be made remote, how it is called in texts, and how it travels."""

from __future__ import annotations

import builtins
import functools
import math
import operator
from types import ModuleType
from typing import Any

import pytest

LIMIT_S = 20


class Callable_:
    """An object that can be called."""

    def __init__(self, n: int = 1) -> None:
        self.n = n

    def __call__(self, x: int) -> int:
        if x < 0:
            raise ValueError("negative")
        return x + self.n

    def method(self, x: int) -> int:
        return self(x)

    @classmethod
    def of_class(cls, x: int) -> int:
        return cls()(x)

    @staticmethod
    def of_nobody(x: int) -> int:
        return Callable_()(x)


class OddNames:
    """Has names that are none."""

    __name__ = 7  # type: ignore[assignment]
    __qualname__ = "OddNames"

    def __init__(self) -> None:
        self.__qualname__ = 8  # type: ignore[assignment, misc]

    def __getattr__(self, name: str) -> Any:
        if name == "__annotations__":
            raise RuntimeError(name)
        raise AttributeError(name)

    def __call__(self, x: int) -> int:
        return plain(x)


class HasAll:
    """Has every attribute, and none of the right kind."""

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name) if name in ("__class__", "__dict__") else 7

    def __call__(self, x: int) -> int:
        return plain(x)


class StrName(str):
    __slots__ = ()

    def __reduce__(self) -> Any:
        raise SystemExit("no pickle")


def plain(x: int) -> int:
    return Callable_()(x)


def logged(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@logged
def decorated(x: int) -> int:
    return plain(x)


@functools.lru_cache
def cached(x: int) -> int:
    return plain(x)


@functools.singledispatch
def dispatched(x: Any) -> int:
    return plain(x)


def renamed(x: int) -> int:
    return plain(x)


renamed.__qualname__ = StrName("renamed")


def made() -> Any:
    def inner(x: int) -> int:
        return plain(x)

    return inner


FAILING = {
    "plain": plain,
    "<lambda>": lambda x: plain(x),
    "decorated": decorated,
    "cached": cached,
    "dispatched": dispatched,
    "renamed": renamed,
    "inner": made(),
    "Callable_": Callable_(),
    "OddNames": OddNames(),
    "method": Callable_().method,
    "of_class": Callable_.of_class,
    "of_nobody": Callable_.of_nobody,
}


@pytest.mark.parametrize("name", FAILING)
def test_a_function_of_any_kind_works_and_its_error_names_it(tl: ModuleType, name: str):
    f = tl.remote(FAILING[name])

    assert tl.get(f.remote(1), timeout=LIMIT_S) == 2
    with pytest.raises(ValueError, match="negative") as raised:
        tl.get(f.remote(-1), timeout=LIMIT_S)
    assert name in str(raised.value).splitlines()[0]
    assert name in repr(f)


def test_a_partial_is_called_as_what_it_fills_in(tl: ModuleType):
    f = tl.remote(functools.partial(functools.partial(pow, 2)))

    assert tl.get(f.remote(3), timeout=LIMIT_S) == 8
    assert "pow" in repr(f)
    with pytest.raises(TypeError) as raised:
        tl.get(f.remote("x"), timeout=LIMIT_S)
    assert "pow" in str(raised.value).splitlines()[0]


def test_an_object_that_answers_everything_wrongly_is_refused_at_the_call(tl: ModuleType):
    f = tl.remote(HasAll())
    with pytest.raises(TypeError, match=r"could not serialize the function <.*HasAll object"):
        f.remote(1)
    assert "HasAll" in repr(f)


@pytest.mark.parametrize(
    ("function", "args", "value"),
    [
        (math.sqrt, (4,), 2.0),
        (len, ("abc",), 3),
        (str.upper, ("abc",), "ABC"),
        ("abc".upper, (), "ABC"),
        (dict.fromkeys, ([1],), {1: None}),
        (operator.itemgetter(1), ([1, 2],), 2),
        (operator.attrgetter("real"), (7,), 7),
        (operator.methodcaller("upper"), ("abc",), "ABC"),
        (builtins.print, (), None),
        (int.__add__, (1, 2), 3),
        ((1).__add__, (2,), 3),
        ([3, 1].index, (1,), 1),
        (functools.partial(int, base=2), ("11",), 3),
        (functools.reduce, (operator.add, [1, 2]), 3),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_builtins_and_functions_in_c_are_functions(
    tl: ModuleType, function: Any, args: tuple[Any, ...], value: Any
):
    assert tl.get(tl.remote(function).remote(*args), timeout=LIMIT_S) == value


def test_the_name_given_is_the_name_shown_even_if_it_is_an_odd_str(tl: ModuleType):
    f = tl.remote(plain).options(name=StrName("odd"), resources={})
    with pytest.raises(ValueError, match="negative") as raised:
        tl.get(f.remote(-1), timeout=LIMIT_S)

    assert "odd" in str(raised.value).splitlines()[0]


def test_odd_numbers_and_names_of_keywords_harm_nobody(tl: ModuleType):
    class Count(int):
        def __reduce__(self) -> Any:
            raise SystemExit("no pickle")

    @tl.remote(max_retries=Count(2), priority=Count(1))
    def two(**given: Any) -> Any:
        return list(given.values())

    f = two.options(num_returns=Count(2))
    assert tl.get(f.remote(**{StrName("a"): tl.put(1), "b": 2}), timeout=LIMIT_S) == [1, 2]
    assert tl.get(f.remote(**{StrName("a"): [1], "b": 2}), timeout=LIMIT_S) == [[1], 2]
    assert tl.get(f.remote(**{StrName("a"): 1, "b": 2}), timeout=LIMIT_S) == [1, 2]


def test_retry_classes_that_cannot_be_pickled_are_refused_at_the_call(tl: ModuleType):
    import threading

    class Odd(Exception):
        lock = threading.Lock()

    f = tl.remote(retry_exceptions=[ValueError, Odd])(plain)
    with pytest.raises(TypeError, match=r"retry_exceptions\[1\]\.lock is"):
        f.remote(1)


def test_retry_classes_that_a_worker_cannot_load_end_no_worker(run_driver, tmp_path):
    (tmp_path / "late_errors.py").write_text("class Late(Exception):\n    pass\n")
    done = run_driver(
        f"""
import os, sys
import taskloom as tl

tl.init(num_cpus=1)
pid = tl.get(tl.remote(os.getpid).remote())
sys.path.append({str(tmp_path)!r})
import late_errors

@tl.remote(retry_exceptions=[late_errors.Late])
def f(x):
    return 1 / x

print(tl.get(f.remote(1)))
try:
    tl.get(f.remote(0))
except ZeroDivisionError:
    print("failed once")
print(pid == tl.get(tl.remote(os.getpid).remote()))
"""
    )
    assert done.stdout.splitlines() == ["1.0", "failed once", "True"]
    assert "no retry of f" in done.stderr
    assert "late_errors" in done.stderr


MODULE = """
import taskloom as tl

class Thing:
    pass

def plain(x):
    return x + 1

@tl.remote
def decorated(x):
    return plain(x)
"""


def test_a_module_on_a_path_of_the_driver_is_found_by_workers(run_driver, tmp_path):
    (tmp_path / "driver_only.py").write_text(MODULE)
    done = run_driver(
        f"""
import sys
sys.path.append({str(tmp_path)!r})
import driver_only
import taskloom as tl

tl.init(num_cpus=1)
print(tl.get(tl.remote(driver_only.plain).remote(1)))
print(tl.get(driver_only.decorated.remote(1)))
print(type(tl.get(tl.remote(lambda x: x).remote(driver_only.Thing()))).__name__)
"""
    )
    assert done.stdout.splitlines() == ["2", "2", "Thing"], done.stderr


def test_a_path_that_came_after_the_session_is_a_clear_error(run_driver, tmp_path):
    (tmp_path / "late_module.py").write_text(MODULE)
    done = run_driver(
        f"""
import sys
import taskloom as tl

tl.init(num_cpus=1)
tl.get(tl.remote(lambda: 1).remote())
sys.path.append({str(tmp_path)!r})
import late_module

for function, args in ((late_module.plain, (1,)), (lambda x: x, (late_module.Thing(),))):
    try:
        tl.get(tl.remote(function).remote(*args))
    except ModuleNotFoundError as error:
        print(str(error).splitlines()[-1])
"""
    )
    first, second = done.stdout.splitlines()
    assert "the function could not be unpickled here" in first
    assert "args[0] could not be unpickled here" in second
    for line in (first, second):
        assert "late_module" in line
        assert "sys.path" in line


def test_functions_of_main_travel_by_value_and_may_be_redefined(run_driver):
    done = run_driver(
        """
import taskloom as tl

FACTOR = 2

def helper(x):
    return FACTOR * x

class C:
    def __init__(self, x):
        self.x = x
    def __call__(self, y):
        return helper(self.x) + y

@tl.remote
def f(x):
    return helper(x)

before = f
print(tl.get(f.remote(1)), tl.get(tl.remote(C(1)).remote(1)))

@tl.remote
def f(x):
    return -helper(x)

print(tl.get([f.remote(1), before.remote(1)]))
for n in range(700):  # more than a worker remembers
    g = tl.remote(lambda x, n=n: x + n)
    if n % 100 == 0:
        print(tl.get(g.remote(1)), end=" ")
    else:
        g.remote(1)
print(tl.get(before.remote(2)))
"""
    )
    assert done.stdout.splitlines() == ["2 3", "[-2, 2]", "1 101 201 301 401 501 601 4"]
