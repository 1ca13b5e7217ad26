"""The zoo: values that do not pickle, do not unpickle, or misbehave when they are looked at.

Workers import this module, so that classes travel by name, unless they are made inside a function.
"""

from __future__ import annotations

import array
import asyncio
import collections
import contextvars
import ctypes
import dataclasses
import decimal
import enum
import functools
import io
import itertools
import mmap
import os
import pickle
import queue
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One inhabitant.

    Attributes:
        make: makes a new one.
        packs: it can be pickled.
        unpacks: what was pickled can be unpickled.
        says: part of the error's text, when there is an error.
        path: the steps from it to the member at fault, when there is an error.
        same: whether what arrived is what was sent; by default, of the same type.
        is_key: it can be a key of a dict.
    """

    make: Callable[[], Any]
    packs: bool = True
    unpacks: bool = True
    says: str = ""
    path: str = ""
    same: Callable[[Any], bool] | None = None
    is_key: bool = True


CASES: dict[str, Case] = {}


def case(**facts: Any) -> Callable[[Any], Any]:
    """Register a class or a function that makes the value."""

    def register(make: Any) -> Any:
        CASES[make.__name__.strip("_")] = Case(make=make, **facts)
        return make

    return register


# -- does not pickle -------------------------------------------------------------------------


@case(packs=False, says="_thread.lock")
def lock() -> Any:
    return threading.Lock()


@case(packs=False, says="RLock")
def rlock() -> Any:
    return threading.RLock()


@case(packs=False, says="lock", path="._cond._lock")
def event() -> Any:
    return threading.Event()


@case(packs=False, says="lock", path=".mutex")
def simple_queue_owner() -> Any:
    return queue.Queue()


@case(packs=False, says="SimpleQueue")
def simple_queue() -> Any:
    return queue.SimpleQueue()


@case(packs=False, says="generator")
def generator() -> Iterator[int]:
    yield 1


@case(packs=False, says="async_generator")
async def async_generator() -> Any:
    yield 1


@case(packs=False, says="socket")
def open_socket() -> socket.socket:
    return socket.socket()


@case(packs=False, says="BufferedRandom")
def binary_file() -> Any:
    return tempfile.TemporaryFile()


@case(packs=False, says="mmap")
def memory_map() -> Any:
    return mmap.mmap(-1, 4096)


@case(same=lambda value: value == b"abc")
def view() -> Any:
    return memoryview(b"abc")


@case(packs=False, says="weakref")
def weak_reference() -> Any:
    return weakref.ref(Case)


@case(packs=False, says="pointers", is_key=False)
def c_pointer() -> Any:
    return ctypes.pointer(ctypes.c_int(1))


# Since 3.13 classes of C types have a class of their own, and that is what cannot be found.
_C_TYPE = "" if sys.version_info < (3, 13) else ".<args>[2][0]"


@case(unpacks=False, says="AttributeError", path=f"._FuncPtr.<args>[0]{_C_TYPE}")
def c_library() -> Any:
    return ctypes.CDLL(None)


@case(packs=False, says="frame")
def frame() -> Any:
    return sys._getframe()


@case(packs=False, says="traceback")
def traceback() -> Any:
    try:
        raise ValueError
    except ValueError as error:
        return error.__traceback__


@case(packs=False, says="Connection", is_key=False)
def database() -> Any:
    return sqlite3.connect(":memory:")


@case(packs=False, says="Context", is_key=False)
def context() -> Any:
    return contextvars.copy_context()


@case(packs=False, says="Token", is_key=False)
def context_token() -> Any:
    return contextvars.ContextVar("zoo").set(1)


@case(packs=False, says="lock", path="._lock")
class HasLock:
    def __init__(self) -> None:
        self.name = "x"
        self._lock = threading.Lock()


@case(packs=False, says="lock", path=".conn._lock")
class HasOneThatHasLock:
    def __init__(self) -> None:
        self.conn = HasLock()


@case(packs=False, says="lock", path=".guard")
class SlotsWithLock:
    __slots__ = ("guard", "name")

    def __init__(self) -> None:
        self.name = "x"
        self.guard = threading.Lock()


@case(packs=False, says="lock", path="['a'][1]", is_key=False)
def nested_lock() -> Any:
    return {"a": [1, threading.Lock()]}


@case(packs=False, says="lock", path=".<closure>.held")
def closure() -> Any:
    held = threading.Lock()
    return lambda: held


@case(packs=False, says="lock", path=".args[0]")
def partial() -> Any:
    return functools.partial(print, threading.Lock())


@case(packs=False, says="lock", path=".__self__._lock")
def method() -> Any:
    return types.MethodType(repr, HasLock())


@case(packs=False, says="recursion", path="[0][0][0]", is_key=False)
def deep_list() -> Any:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def _another(error: BaseException) -> BaseException:
    """One more of its kind: the traceback of one that is kept would keep all that it passed."""
    return type(error)(*error.args)


class _Raises:
    """Raises from ``__reduce__`` what a subclass says."""

    error: Any = None

    def __reduce__(self) -> Any:
        raise _another(self.error)


def _raises(error: Any) -> type:
    name = f"Reduce{error.__name__ if isinstance(error, type) else type(error).__name__}"
    cls = type(name, (_Raises,), {"error": error, "__module__": __name__, "__qualname__": name})
    globals()[name] = cls
    return case(packs=False, says=name.removeprefix("Reduce"))(cls)


class Interrupted(KeyboardInterrupt):
    """No Ctrl-C: a class of the user's."""


class Nasty(BaseException):
    """Whose text cannot be had."""

    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


for _error in (
    pickle.PicklingError("x"),
    AttributeError("x"),
    RecursionError("x"),
    ZeroDivisionError("x"),
    SystemExit(3),
    GeneratorExit("x"),
    StopIteration(1),
    StopAsyncIteration("x"),
    asyncio.CancelledError("x"),
    Interrupted("x"),
    Nasty("x"),
    ExceptionGroup("x", [ValueError("y"), ExceptionGroup("z", [KeyError("k")])]),
    Exception("m" * 50_000_000),
):
    _raises(_error)


@case(packs=False, says="PicklingError")
class ReduceGivesNonsense:
    def __reduce__(self) -> Any:
        return 7


@case(packs=False, says="PicklingError")
class ReduceGivesLongTuple:
    def __reduce__(self) -> Any:
        return 1, 2, 3, 4, 5, 6, 7, 8


@case(packs=False, says="PicklingError")
class ReduceNamesNobody:
    def __reduce__(self) -> Any:
        return "there_is_no_such_global"


@case(packs=False, says="recursion")
class ReduceWithoutEnd:
    def __reduce__(self) -> Any:
        return list, ([type(self)()],)


@case(packs=False, says="ZeroDivisionError")
class GetStateRaises:
    def __getstate__(self) -> Any:
        return 1 / 0


@case(packs=False, says="lock", path="._lock")
class UglyWithLock:
    """Does not pickle, and whoever wants to say so meets a ``__repr__`` that raises."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        raise SystemExit("no repr")


@case(packs=False, says="lock", path="._lock")
class HugeReprWithLock:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return "r" * 100_000_000


@case(packs=False, says="lock", path="._lock")
class EndlessReprWithLock:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        while True:
            pass


@case(packs=False, says="no class")
class LiarWithLock:
    """``isinstance`` asks its ``__class__``, which raises."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @property
    def __class__(self) -> Any:
        raise SystemExit("no class")


@case(packs=False, says="lock", path="._lock", is_key=False)
class NoHashWithLock:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        raise GeneratorExit("no comparison")

    def __hash__(self) -> int:
        raise SystemExit("no hash")


class Text(str):
    """A str that is not quite one."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        raise SystemExit("no format")

    def __len__(self) -> int:
        raise SystemExit("no length")

    def encode(self, *_: Any) -> bytes:
        raise SystemExit("no encoding")

    def __reduce__(self) -> Any:
        raise SystemExit("no pickle")


# -- pickles, but does not unpickle ------------------------------------------------------------


class _Bomb:
    """Pickles as a call of ``fuse``."""

    def __reduce__(self) -> Any:
        return type(self).fuse, ()

    @staticmethod
    def fuse() -> Any:
        raise NotImplementedError


def _unpickle_raises(error: Any, name: str = "") -> None:
    name = name or f"Load{type(error).__name__}"

    def fuse() -> Any:
        raise _another(error)

    fuse.__qualname__ = fuse.__name__ = f"fuse_{name}"
    fuse.__module__ = __name__
    globals()[fuse.__name__] = fuse
    body = {"fuse": staticmethod(fuse), "__module__": __name__, "__qualname__": name}
    cls = type(name, (_Bomb,), body)
    globals()[name] = cls
    case(unpacks=False, says=type(error).__name__)(cls)


for _error in (
    ModuleNotFoundError("no such module"),
    AttributeError("x"),
    RecursionError("x"),
    SystemExit(3),
    GeneratorExit("x"),
    StopIteration(1),
    StopAsyncIteration("x"),
    asyncio.CancelledError("x"),
    Interrupted("x"),
    Nasty("x"),
    BaseExceptionGroup("x", [SystemExit(1), BaseExceptionGroup("z", [KeyError("k")])]),
):
    _unpickle_raises(_error)
_unpickle_raises(Exception("m" * 50_000_000), "LoadHugeText")


@case(unpacks=False, says="ZeroDivisionError")
class SetStateRaises:
    def __init__(self) -> None:
        self.x = 1

    def __setstate__(self, state: Any) -> None:
        raise ZeroDivisionError("setstate")


@case(unpacks=False, says="TypeError")
class NewWantsMore:
    """``__new__`` has an argument that nobody gives it."""

    def __new__(cls, *args: Any) -> Any:
        if not args:
            raise TypeError("one argument, please")
        return super().__new__(cls)

    @classmethod
    def make(cls) -> Any:
        return cls(1)


CASES["NewWantsMore"] = dataclasses.replace(CASES["NewWantsMore"], make=NewWantsMore.make)


@case(unpacks=False, says="ZeroDivisionError", path=".deep['k'][2]")
class HasOneThatDoesNotUnpickle:
    def __init__(self) -> None:
        self.fine = [1, 2, {"a": (1, 2)}]
        self.deep = {"j": 0, "k": [1, 2, SetStateRaises()]}


@case(unpacks=False, says="ZeroDivisionError", path=".inner")
class SlotsThatDoNotUnpickle:
    __slots__ = ("inner", "name")

    def __init__(self) -> None:
        self.name = "x"
        self.inner = SetStateRaises()


@case(unpacks=False, says="Vanish", path=".<args>[0]")
class Vanished:
    def __reduce__(self) -> Any:
        return _only_while_pickling()


def _only_while_pickling() -> Any:
    return getattr, (_Missing(), "Vanished")


class _Missing:
    def __reduce__(self) -> Any:
        return __import__, ("module_of_Vanished_things",)


class Unhashable:
    """A key that has a hash where it is made, and none where it arrives."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __hash__(self) -> int:
        if not hasattr(self, "home"):
            raise ZeroDivisionError("no hash")
        return 1


@case(unpacks=False, says="ZeroDivisionError", path=".me", is_key=False)
def dict_with_a_key_that_cannot_be_hashed() -> Any:
    key = Unhashable()
    key.me = {key: 1}  # type: ignore[attr-defined]  # a circle: the dict is filled before the key
    return key


# -- arrives, whatever it looks like ------------------------------------------------------------


@case()
class ReprRaises:
    def __repr__(self) -> str:
        raise SystemExit("no repr")

    __str__ = __repr__


@case()
class ReprIsNoStr:
    def __repr__(self) -> Any:
        return 7


@case(is_key=False)
class EqRaises:
    def __eq__(self, other: object) -> bool:
        raise SystemExit("no comparison")

    def __hash__(self) -> int:
        raise SystemExit("no hash")

    def __bool__(self) -> bool:
        raise SystemExit("no truth")


@case()
class GetattrGivesItself:
    """Has every attribute, as mocks do."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


@case()
class DelRaises:
    def __del__(self) -> None:
        raise SystemExit("from __del__")


@case(same=lambda value: value() == 7)
def a_lambda() -> Any:
    return lambda: 7


@case(same=lambda value: value is os.path)
def module() -> Any:
    return os.path


@case()
def local_class() -> Any:
    class Local:
        pass

    return Local()


@case(same=lambda value: isinstance(value, type) and value().x == 1)
def local_type() -> Any:
    class Local:
        x = 1

    return Local


@case(same=lambda value: value.value == 7, is_key=False)
def c_int() -> Any:
    return ctypes.c_int(7)


@case(same=lambda value: value.read() == "text")
def text_file() -> Any:
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        file.write("text")
    opened = open(file.name)  # noqa: SIM115
    os.unlink(file.name)
    return opened


@case(same=lambda value: isinstance(value, contextvars.ContextVar))
def context_variable() -> Any:
    return contextvars.ContextVar("zoo")


@case(same=lambda value: value[0] is value, is_key=False)
def circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@case(same=lambda value: value.read() == b"abc")
def bytes_file() -> Any:
    return io.BytesIO(b"abc")


@case(same=lambda value: next(value) == 3)
def counter() -> Any:
    return itertools.count(3)


@case(same=lambda value: value == Colour.RED)
def member() -> Any:
    return Colour.RED


class Colour(enum.Enum):
    RED = 1


@case(same=lambda value: value.match("aa"))
def pattern() -> Any:
    return re.compile("a+")


@case(same=lambda value: value == {decimal.Decimal("1.5")}, is_key=False)
def plain_zoo() -> Any:
    return {decimal.Decimal("1.5")}


@case(same=lambda value: list(value) == [1, 2], is_key=False)
def numbers() -> Any:
    return array.array("i", [1, 2])


@case(same=lambda value: value["missing"] == [], is_key=False)
def default_dict() -> Any:
    return collections.defaultdict(list)


@case(same=lambda value: isinstance(value, ValueError) and value.args == ("a value",))
def returned_exception() -> Any:
    return ValueError("a value")


@case(same=lambda value: isinstance(value, StopIteration))
def returned_stop() -> Any:
    return StopIteration("a value")


@case(same=lambda value: value.returncode == 3)
def process_error() -> Any:
    return subprocess.CalledProcessError(3, ["x"])


def make(name: str) -> Any:
    """A new inhabitant."""
    return CASES[name].make()
