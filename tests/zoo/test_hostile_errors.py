"""Whatever a task raises, the caller gets an error that tells of it, and nobody else is harmed."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from tests.zoo.hostile import Nasty, Text

from taskloom.exceptions import RayError, RayTaskError

SESSION = {"num_cpus": 1}
LIMIT_S = 20
MAX_TEXT = 600_000

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def no_worker_is_lost(tl: ModuleType) -> Iterator[None]:
    before = tl.get(tl.remote(os.getpid).remote(), timeout=LIMIT_S)
    yield
    assert tl.get(tl.remote(os.getpid).remote(), timeout=LIMIT_S) == before


MAKERS: dict[str, tuple[Callable[[], BaseException], str]] = {}


def maker(says: str) -> Callable[[Any], Any]:
    def register(make: Any) -> Any:
        MAKERS[make.__name__] = (make, says)
        return make

    return register


for _kind in (
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    asyncio.CancelledError,
    BaseException,
    MemoryError,
    RecursionError,
):
    MAKERS[_kind.__name__] = (lambda kind=_kind: kind("it"), _kind.__name__)  # type: ignore[misc]


class TwoArguments(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code


class WithLock(Exception):
    def __init__(self) -> None:
        super().__init__("has a lock")
        self.lock = threading.Lock()


class WithSlots(Exception):
    __slots__ = ("guard", "code")

    def __init__(self) -> None:
        super().__init__("has slots")
        self.code = 4
        self.guard = threading.Lock()


class ReduceRaises(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit("from __reduce__")


class ReduceIsNonsense(Exception):
    def __reduce__(self) -> Any:
        return 7


class LoadRaises(Exception):
    def __reduce__(self) -> Any:
        return sys.exit, ("while unpickling",)


class LoadRaisesInDriver(Exception):
    def __reduce__(self) -> Any:
        return load_where, (os.getpid(),)


def load_where(home: int) -> Exception:
    if os.getpid() != home:
        raise SystemExit("only at home")
    return LoadRaisesInDriver()


class StrRaises(Exception):
    def __str__(self) -> str:
        raise SystemExit("from __str__")

    __repr__ = __str__


class StrIsOdd(Exception):
    def __str__(self) -> str:
        return Text("odd text")


class StrIsNoStr(Exception):
    def __str__(self) -> Any:
        return 7


class StrIsEndless(Exception):
    def __str__(self) -> str:
        while True:
            pass


class Liar(Exception):
    @property
    def __class__(self) -> Any:
        raise SystemExit("no class")

    @property
    def args(self) -> Any:
        raise SystemExit("no args")

    @property
    def __cause__(self) -> Any:
        raise SystemExit("no cause")

    @property
    def __traceback__(self) -> Any:
        raise SystemExit("no traceback")


class Frozen(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise SystemExit("frozen")

    def add_note(self, note: str) -> None:
        raise SystemExit("no notes")


class Shy(type):
    def __instancecheck__(cls, value: Any) -> bool:
        raise SystemExit("no instances")

    def __subclasscheck__(cls, value: Any) -> bool:
        raise SystemExit("no subclasses")


class OfShyClass(Exception, metaclass=Shy):
    pass


class NoChildren(Exception):
    def __init_subclass__(cls) -> None:
        raise SystemExit("no children")


class DelRaises(Exception):
    def __del__(self) -> None:
        raise SystemExit("from __del__")


for _cls in (
    ReduceRaises,
    ReduceIsNonsense,
    LoadRaises,
    LoadRaisesInDriver,
    StrRaises,
    StrIsOdd,
    StrIsNoStr,
    StrIsEndless,
    WithLock,
    WithSlots,
    Liar,
    Frozen,
    NoChildren,
    DelRaises,
):
    MAKERS[_cls.__name__] = (_cls, _cls.__name__)
MAKERS["OfShyClass"] = (OfShyClass, "")
MAKERS["Nasty"] = (Nasty, "Nasty")


@maker("1 and 2")
def two_arguments() -> BaseException:
    return TwoArguments(1, 2)


@maker("KeywordOnly")
def keyword_only() -> BaseException:
    return KeywordOnly(code=3)


@maker("ValueError")
def huge_text() -> BaseException:
    return ValueError("m" * 100_000_000)


@maker("KeyError")
def huge_list() -> BaseException:
    return KeyError(["m"] * 10_000_000)


@maker("ring")
def ring_of_causes() -> BaseException:
    one, other = ValueError("a ring"), KeyError("of two")
    one.__cause__, other.__cause__ = other, one
    return one


@maker("long chain")
def long_chain() -> BaseException:
    error = ValueError("long chain")
    last: BaseException = error
    for n in range(10_000):
        last.__context__ = last = ValueError(n)  # type: ignore[assignment]
    return error


@maker("many")
def large_group() -> BaseException:
    return ExceptionGroup("many", [ValueError(n) for n in range(10_000)])


@maker("deep")
def deep_group() -> BaseException:
    error: Exception = ValueError("innermost")
    for _ in range(5_000):
        error = ExceptionGroup("deep", [error])
    return error


@maker("all sorts")
def group_of_all_sorts() -> BaseException:
    sorts = [ValueError(threading.Lock()), WithLock(), StrRaises(), ReduceRaises(), SystemExit(1)]
    return BaseExceptionGroup("all sorts", sorts)


@maker("with notes")
def with_odd_notes() -> BaseException:
    error = ValueError("with notes")
    error.__notes__ = [7, "n" * 10_000_000, threading.Lock(), Text("odd")]  # type: ignore[list-item]
    return error


@maker("Local")
def of_a_local_class() -> BaseException:
    class Local(Exception):
        lock = threading.Lock()

    return Local("only in the worker")


@maker("OnlyThere")
def of_a_module_of_the_worker() -> BaseException:
    module = types.ModuleType("module_of_the_worker")
    exec("class OnlyThere(Exception): pass", module.__dict__)
    sys.modules[module.__name__] = module
    return module.OnlyThere("x")  # type: ignore[no-any-return]


@maker("arguments")
def with_odd_arguments() -> BaseException:
    return ValueError("arguments", threading.Lock(), Nasty(), Text("odd"), (n for n in ()))


def raised_by(tl: ModuleType, ref: Any) -> Exception:
    with pytest.raises(RayTaskError) as raised:
        tl.get(ref, timeout=LIMIT_S)
    return raised.value


@pytest.mark.parametrize("name", MAKERS)
def test_whatever_a_function_raises_arrives(tl: ModuleType, name: str):
    make, says = MAKERS[name]

    def fails() -> Any:
        raise make()

    async def fails_later() -> Any:
        raise make()

    for function in (fails, fails_later):
        ref = tl.remote(function).remote()
        for _ in range(2):
            error = raised_by(tl, ref)
            text = "".join(traceback.format_exception(error))
            assert says in text
            assert function.__name__ in str(error)
            assert len(str(error)) < MAX_TEXT
            assert error.pid != os.getpid()  # type: ignore[attr-defined]

        def handles(value: Any) -> str:
            return "not called"

        inherited = raised_by(tl, tl.remote(handles).remote(ref))
        assert "input arguments" in str(inherited)


@pytest.mark.parametrize("name", MAKERS)
def test_whatever_is_raised_while_a_result_is_made_arrives(tl: ModuleType, name: str):
    make, says = MAKERS[name]

    class Fails:
        def __reduce__(self) -> Any:
            raise make()

    def generates() -> Iterator[int]:
        yield 1
        raise make()

    error = raised_by(tl, tl.remote(lambda: Fails()).remote())
    if name not in ("KeyboardInterrupt", "MemoryError"):  # these are no fault of the value's
        assert isinstance(error, TypeError)
        assert "the return value of" in str(error)
    assert len(str(error)) < MAX_TEXT
    first, *others = tl.remote(num_returns=3)(generates).remote()
    assert tl.get(first) == 1, "what was yielded before is there"
    for ref in others:
        if name != "StopIteration":  # Python itself makes a RuntimeError of that
            assert says in str(raised_by(tl, ref))


@pytest.mark.parametrize("name", ["ValueError", *MAKERS])
def test_retries_are_asked_of_odd_errors_without_harm(tl: ModuleType, name: str):
    make = MAKERS[name][0] if name in MAKERS else ValueError

    @tl.remote(max_retries=1, retry_exceptions=[ValueError])
    def fails() -> Any:
        raise make()

    raised_by(tl, fails.remote())


def test_retry_classes_may_be_odd(tl: ModuleType):
    @tl.remote(max_retries=1, retry_exceptions=[OfShyClass])
    def fails() -> Any:
        raise ValueError("x")

    assert isinstance(raised_by(tl, fails.remote()), ValueError)


async def test_no_error_of_a_task_ends_or_cancels_who_awaits_it(tl: ModuleType):
    for make, _ in MAKERS.values():

        def fails(make: Any = make) -> Any:
            raise make()

        try:
            await tl.remote(fails).remote()
        except RayError as error:
            caught = error
        assert isinstance(caught, Exception)
        assert not isinstance(caught, (StopIteration, StopAsyncIteration))


def test_what_a_task_of_a_coroutine_raises_ends_no_worker(tl: ModuleType):
    async def ends(kind: Any) -> None:
        raise kind("it")

    @tl.remote
    async def starts_one(kind: Any) -> str:
        inner = asyncio.create_task(ends(kind))
        await asyncio.wait([inner])
        return type(inner.exception()).__name__

    @tl.remote
    async def pid() -> int:
        return os.getpid()

    before = tl.get(pid.remote(), timeout=LIMIT_S)
    for kind in (SystemExit, KeyboardInterrupt):
        assert tl.get(starts_one.remote(kind), timeout=LIMIT_S) == kind.__name__
    assert tl.get(pid.remote(), timeout=LIMIT_S) == before


def test_a_context_variable_that_does_not_unpickle_in_the_worker_is_left_out(
    tl: ModuleType, capfd: pytest.CaptureFixture[str]
):
    class OnlyAtHome:
        def __reduce__(self) -> Any:
            return only_at_home, (os.getpid(),)

    def run() -> Any:
        ODD.set(OnlyAtHome())
        FINE.set("fine")
        return tl.get([f.remote() for _ in range(2)], timeout=LIMIT_S)

    f = tl.remote(lambda: (ODD.get(None), FINE.get(None)))
    assert contextvars.copy_context().run(run) == [(None, "fine")] * 2
    assert "a context variable is not carried into the task" in capfd.readouterr().err


def test_a_context_variable_whose_pickling_raises_anything_is_left_out(tl: ModuleType):
    class Raises:
        def __reduce__(self) -> Any:
            raise SystemExit("no")

    def run() -> Any:
        ODD.set(Raises())
        FINE.set("fine")
        with pytest.warns(RuntimeWarning, match="is not carried into tasks"):
            return tl.get(f.remote(), timeout=LIMIT_S)

    f = tl.remote(lambda: (ODD.get(None), FINE.get(None)))
    assert contextvars.copy_context().run(run) == (None, "fine")


ODD: contextvars.ContextVar[Any] = contextvars.ContextVar("odd")
FINE: contextvars.ContextVar[Any] = contextvars.ContextVar("fine")


def only_at_home(home: int) -> Any:
    if os.getpid() != home:
        raise SystemExit("only at home")
    return None
