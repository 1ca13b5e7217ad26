"""What a remote function calls: how it may be called, and how it travels.

One :class:`Callee` is shared by ``f`` and every ``f.options(...)``.  It counts arguments without
``inspect`` (most calls need no more), and pickles the function once per session.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, NoReturn, cast

from taskloom._caller import level_of_caller
from taskloom._spec import Function, FunctionKey

WARN_FUNCTION_BYTES: Final = 10**7
MAX_FUNCTION_BYTES: Final = 10**8

_VARARGS: Final = 0x04
_GENERATOR: Final = 0x20 | 0x200  # plain and async generators
# What runs in an event loop: async def, a generator under types.coroutine, an async generator.
_COROUTINE: Final = 0x80 | 0x100 | 0x200
_MAX_SHAPES: Final = 256
_pack_lock = threading.RLock()


class Callee:
    """A function, what may be passed to it, and its pickle for the session that is active.

    Args:
        function: anything that can be called.
    """

    # What comes first is told to the pickler; what follows belongs to this process.
    _FACTS: Final = (
        "function",
        "module",
        "qualname",
        "name",
        "is_coroutine",
        "is_generator",
        "min_args",
        "max_args",
    )
    __slots__ = (*_FACTS, "_packed", "_session", "_shapes")

    def __init__(self, function: Callable[..., Any]) -> None:
        named, bound = _unwrap(function)
        coded: Any = named
        self.module = _text_of(named, "__module__") or _text_of(type(named), "__module__")
        self.qualname = _text_of(named, "__qualname__")
        if not self.qualname:  # an object with a __call__ method
            self.qualname = _text_of(type(named), "__qualname__")
            coded, bound = type(named).__call__, None
        code = getattr(coded, "__code__", None)
        flags = code.co_flags if code is not None else 0
        marked = getattr(coded, "_is_coroutine_marker", None)  # inspect.markcoroutinefunction
        self.function = function
        self.name = self.qualname.rpartition(".")[2]
        self.is_coroutine = marked is not None or bool(flags & _COROUTINE)
        self.is_generator = bool(flags & _GENERATOR)
        # A call with this many positional arguments and no others is right at first sight.
        self.min_args, self.max_args = _positional_range(coded, code, bound)
        self._forget()

    def _forget(self) -> None:
        self._shapes: set[tuple[object, ...]] = set()
        self._session: bytes | None = None
        self._packed: Function | None = None

    # In two steps, because the globals of a recursive function lead back here: the pickler
    # remembers the empty object before it looks at the function.  Unpickling must not look into
    # the function either: it may be half made at that time.
    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (), tuple(getattr(self, fact) for fact in self._FACTS)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for fact, value in zip(self._FACTS, state, strict=True):
            setattr(self, fact, value)
        self._forget()

    def check(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Raise TypeError unless the function can be called like that.

        It depends on the number and the names of the arguments alone, so each such shape is
        bound once.
        """
        shape = (len(args), *kwargs)
        if shape in self._shapes:
            return
        inspect = import_module("inspect")  # most programs never come here
        try:
            # Not what it wraps: a decorator may well add or take away an argument.
            signature = inspect.signature(self.function, follow_wrapped=False)
        except Exception:
            return  # a builtin without a signature, or an odd object: the call itself will tell
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.qualname}(): {error}") from None
        if len(self._shapes) < _MAX_SHAPES:
            self._shapes.add(shape)

    def pack(self, session: bytes) -> Function:
        """The function as it travels: pickled by the first call of a session (REM-13).

        Raises:
            TypeError: it captured something that cannot be pickled.
            ValueError: its pickle is 100 MB or more.
        """
        with _pack_lock:
            if self._packed is None or self._session != session:
                self._packed = self._pack()
                self._session = session
            return self._packed

    def pack_retry(self, classes: tuple[type[BaseException], ...]) -> bytes:
        """The classes of ``retry_exceptions`` as they travel.

        Raises:
            TypeError: one of them cannot be pickled.
        """
        serialization = import_module("taskloom._wire.serialization")
        blob: bytes = serialization.pack_retry(classes, self.name)
        return blob

    def _pack(self) -> Function:
        # Loaded here: to import a module of remote functions should not cost a pickler.
        hashlib = import_module("hashlib")
        serialization = import_module("taskloom._wire.serialization")
        try:
            blob: bytes = serialization.pack_function(self.function)
        except TypeError:
            # As in Ray a decorated function travels by value even if its module could be
            # imported.  One that cannot (its module holds a lock, say) is imported over there.
            if not self._is_importable():
                raise
            blob = serialization.pack_function(_Imported(self.module, self.qualname))
        if len(blob) >= WARN_FUNCTION_BYTES:
            self._complain_of_size(len(blob))
        digest = hashlib.blake2b(blob, digest_size=16, usedforsecurity=False)
        digest.update(self.qualname.encode())
        return Function(
            key=FunctionKey(digest.digest()),
            blob=blob,
            name=self.qualname,
            module=self.module,
            is_coroutine=self.is_coroutine,
        )

    def _is_importable(self) -> bool:
        if self.module == "__main__":
            return False
        try:
            return _import_function(self.module, self.qualname) is self.function
        except (ImportError, AttributeError):
            return False

    def _complain_of_size(self, size_bytes: int) -> None:
        name, captured_bytes = _largest_capture(self.function)
        text = (
            f"The remote function {self.module}.{self.qualname} is very large "
            f"({size_bytes // 2**20} MiB)."
        )
        if name:
            text += f" It captures {name!r} ({captured_bytes // 2**20} MiB)."
        text += " Tip: use put() to store large objects once and pass the ref."
        if size_bytes >= MAX_FUNCTION_BYTES:
            raise ValueError(f"{text} The limit is {MAX_FUNCTION_BYTES // 2**20} MiB.")
        warnings.warn(text, UserWarning, stacklevel=level_of_caller())


def _blank() -> Callee:
    return Callee.__new__(Callee)


class _Imported:
    """Pickles as "import this"; what arrives is the plain function."""

    def __init__(self, module: str, qualname: str) -> None:
        self.__qualname__ = qualname
        self._module = module

    def __call__(self) -> NoReturn:
        raise TypeError("the name of a function, not a function")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return _import_function, (self._module, self.__qualname__)


def _import_function(module: str, qualname: str) -> Callable[..., Any]:
    """The plain function under the remote function of that name."""
    found: Any = import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return cast("Callable[..., Any]", found.func)


def _unwrap(function: Any) -> tuple[Any, int | None]:
    """What is under partials and bound methods, and how many arguments are filled in already.

    None stands for an unknown number: a partial may fill in anything.
    """
    bound: int | None = 0
    while True:
        if isinstance(function, functools.partial):
            function, bound = function.func, None
        elif isinstance(function, types.MethodType):
            function = function.__func__
            bound = None if bound is None else bound + 1
        else:
            return function, bound


def _text_of(named: Any, attribute: str) -> str:
    """An attribute that should be text; empty when it is not, or raises."""
    try:
        text = getattr(named, attribute, "")
    except Exception:
        return ""
    # Names travel in the engine's messages: a subclass of str would bring its class along.
    return str.__str__(text) if isinstance(text, str) else ""


def _positional_range(coded: Any, code: Any, bound: int | None) -> tuple[int, int]:
    """(least, most) positional arguments of a call without keywords; (1, 0) when unclear."""
    if code is None or bound is None:
        return 1, 0
    least = code.co_argcount - len(coded.__defaults__ or ()) - bound
    most = sys.maxsize if code.co_flags & _VARARGS else code.co_argcount - bound
    if code.co_kwonlyargcount > len(coded.__kwdefaults__ or ()) or least < 0 or most < 0:
        return 1, 0
    return least, most


def _largest_capture(function: Any) -> tuple[str, int]:
    """The captured variable with the largest pickle, and its size; ("", 0) when none is known."""
    dumps = import_module("taskloom._wire.serialization").dumps
    captured: dict[str, object] = {}
    if isinstance(function, functools.partial):
        captured.update((f"args[{i}]", value) for i, value in enumerate(function.args))
        captured.update(function.keywords)
    plain, _ = _unwrap(function)
    if isinstance(plain, types.FunctionType):
        code = plain.__code__
        found = plain.__globals__
        captured.update((name, found[name]) for name in code.co_names if name in found)
        names = code.co_varnames[: code.co_argcount]
        captured.update(zip(reversed(names), reversed(plain.__defaults__ or ()), strict=False))
        for name, cell in zip(code.co_freevars, plain.__closure__ or (), strict=True):
            captured[name] = cell.cell_contents
    sizes = {name: len(dumps(value)) for name, value in captured.items()}
    return max(sizes.items(), key=lambda pair: pair[1], default=("", 0))
