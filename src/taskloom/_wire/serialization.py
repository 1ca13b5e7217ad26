"""Values and functions to bytes and back: the only place that knows cloudpickle.

A value becomes a *payload*: plain ``bytes`` when it is small and whole; a :class:`Packed` with
the pickle and the buffers (pickle protocol 5) beside it when it is middling; and when it is large
something of the store (``_store/stored``) that says where it lies.  All are opaque to everybody
between the one who packs and the one who unpacks.

Plain builtin values never meet cloudpickle: the C pickler writes them.  Whatever is not on that
short list goes through a pickler that adds two things to cloudpickle's: refs are recorded by
their key, and context variables travel by name.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from types import CodeType
from typing import Any, Final, NoReturn, Protocol

import cloudpickle  # type: ignore[import-untyped]  # it has no stubs

from taskloom import _current
from taskloom._store.stored import THRESHOLD, Parts
from taskloom._wire import unpicklable, unreadable
from taskloom._wire.careful import repr_of
from taskloom._wire.context_vars import reduce_context_var
from taskloom._wire.custom_serializers import Pair, serializers
from taskloom._wire.unreadable import Misbehaved
from taskloom.exceptions import RayError
from taskloom.ref import ObjectRef

INLINE_BYTES: Final = 32 * 1024
"""A pickle longer than this travels beside its message, not copied into it."""

PLAIN: Final = frozenset({int, float, str, bytes, bool, type(None), complex})
"""Types that the C pickler writes the same way in every process."""
SIZED: Final = frozenset({str, bytes})
UNSIZED: Final = frozenset({float, bool, type(None), complex})
"""Those of them that are never large."""
_PROTOCOL: Final = 5


class Packed:
    """A middling value: the pickle and its out-of-band buffers, all without a copy.

    Args:
        data: the pickle, bytes-like.
        buffers: what the pickle left outside, in its order; read-only when received.
    """

    __slots__ = ("buffers", "data")

    def __init__(self, data: Any, buffers: Sequence[Any]) -> None:
        self.data = data
        self.buffers = buffers

    def __reduce__(self) -> tuple[Callable[..., Packed], tuple[Any, ...]]:
        return _repack, (
            pickle.PickleBuffer(self.data),
            tuple(pickle.PickleBuffer(buffer) for buffer in self.buffers),
        )

    @property
    def size_bytes(self) -> int:
        return sum(memoryview(part).nbytes for part in (self.data, *self.buffers))

    @property
    def is_large(self) -> bool:
        """What the scheduler asks: see ``_core/placement``."""
        return self.size_bytes > INLINE_BYTES

    def open(self) -> tuple[Any, Sequence[Any]]:
        """The pickle and the buffers."""
        return self.data, self.buffers


def _repack(data: Any, buffers: Sequence[Any]) -> Packed:
    # What arrives is shared by all who unpack it, so nobody may write to it (STO-1).
    return Packed(data, tuple(memoryview(buffer).toreadonly() for buffer in buffers))


class LargePayload(Protocol):
    """What is not plain bytes."""

    @property
    def size_bytes(self) -> int: ...
    def open(self) -> tuple[Any, Sequence[Any]]: ...


Payload = bytes | LargePayload
Keep = Callable[[Parts], Any]
"""Writes a large value to the store; the payload that stands for it."""


class ForeignRefError(ValueError):
    """A value contains a ref of another session."""


class _ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is untyped
    """cloudpickle, plus refs by key and context variables by name."""

    def __init__(self, file: Any, buffers: list[pickle.PickleBuffer] | None) -> None:
        """``buffers`` takes what is left outside the pickle; None keeps all in one piece."""
        callback = None if buffers is None else buffers.append
        super().__init__(file, protocol=_PROTOCOL, buffer_callback=callback)
        self.refs: list[ObjectRef[Any]] = []

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is ObjectRef and obj._home is not None:
            if obj._home is not _current.peek():
                raise ForeignRefError(f"{obj!r} does not belong to this session")
            self.refs.append(obj)
            return _load_ref, (obj._key,)
        if kind is ContextVar:
            return reduce_context_var(obj)
        if kind is CodeType:
            return _reduce_code(obj)
        if serializers.active:
            reduced = serializers.reduce(obj, loads)
            if reduced is not NotImplemented:
                return reduced
        return super().reducer_override(obj)


def _reduce_code(code: CodeType) -> tuple[Callable[..., CodeType], tuple[Any, ...]]:
    # From 3.1.3 on cloudpickle says that every file is "<dynamic-code>": then tracebacks have no
    # lines, and a debugger finds no source.
    make, parts = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _load_code, (make, parts, code.co_filename)


def _load_code(make: Callable[..., CodeType], parts: tuple[Any, ...], filename: str) -> CodeType:
    return make(*parts).replace(co_filename=filename)


def _load_ref(key: int) -> ObjectRef[Any]:
    return _current.require().adopt(key)


class _Pieces:
    """A file that keeps what is written to it in pieces: a large ``bytes`` is not copied."""

    __slots__ = ("pieces", "write")

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self.write = self.pieces.append


def pack(value: object, keep: Keep | None = None) -> tuple[Payload, tuple[int, ...]]:
    """Pickle ``value``; the payload and the keys of the refs inside it.

    Args:
        value: anything.
        keep: where a large value goes; without it, it travels as it is.

    Raises:
        Whatever pickling raised: see :func:`explained` for a text that says where.
        ObjectStoreFullError, OutOfDiskError: there is no room for it.
    """
    kind = type(value)
    if kind in PLAIN and not (kind in SIZED and len(value) > INLINE_BYTES):  # type: ignore[arg-type]
        data = pickle.dumps(value, _PROTOCOL)
        if len(data) <= INLINE_BYTES:
            return data, ()
    parts, refs = pickled(value)
    return settle(parts, keep), refs


def pack_plain(value: object) -> bytes:
    """:func:`pack` for what is known to hold nothing but plain values; in one piece."""
    return pickle.dumps(value, _PROTOCOL)


def pickled(value: object) -> tuple[Parts, tuple[int, ...]]:
    """The first half of :func:`pack`: the pickle, not yet anywhere, and the keys of the refs.

    Buffers are still the caller's memory: settle them before he goes on (PUT-1).
    """
    file = _Pieces()
    buffers: list[pickle.PickleBuffer] = []
    if type(value) in PLAIN:
        pickle.Pickler(file, _PROTOCOL).dump(value)
        return Parts.of(file.pieces, ()), ()
    pickler = _ValuePickler(file, buffers)
    pickler.dump(value)
    refs = tuple(dict.fromkeys(ref._key for ref in pickler.refs)) if pickler.refs else ()
    return Parts.of(file.pieces, buffers), refs


def settle(parts: Parts, keep: Keep | None) -> Payload:
    """The second half: a copy of the parts in the place that fits their size."""
    size = parts.shape.size
    if size > THRESHOLD and keep is not None:
        kept: Payload = keep(parts)
        return kept
    data = b"".join(parts.pieces)
    if size <= INLINE_BYTES and not parts.buffers:
        return data
    return Packed(data, tuple(bytes(buffer) for buffer in parts.buffers))


def unpack(payload: Payload) -> Any:
    """The value of a payload."""
    if isinstance(payload, bytes):
        return pickle.loads(payload)
    data, buffers = payload.open()
    return pickle.loads(data, buffers=buffers)


def unpack_all(payloads: Iterable[Payload], values: list[Any]) -> None:
    """The value of each goes to ``values``; when one cannot be had, those before it are there."""
    for payload in payloads:
        value = pickle.loads(payload) if type(payload) is bytes else unpack(payload)
        values.append(value)  # how many there are says which one failed


def dumps(value: object) -> bytes:
    """Pickle what is not an object of the store (errors, contexts), in one piece.

    Refs inside are kept for the whole session: nobody knows how long these bytes live.
    """
    file = io.BytesIO()
    pickler = _ValuePickler(file, None)
    pickler.dump(value)
    for ref in pickler.refs:
        _current.require().pin(ref)
    return file.getvalue()


def loads(data: bytes) -> Any:
    return pickle.loads(data)


# No room in the store, for example.
_NOT_THE_VALUE: Final = (ForeignRefError, RayError, MemoryError)


def explained(
    error: BaseException, value: object, what: str, name: str | tuple[str, ...]
) -> BaseException:
    """What to raise for ``error``, which pickling ``value`` has raised.

    It is a TypeError that names the member, whatever was raised; but what is not the value's
    fault stays as it is, and so does Ctrl-C.  Arguments as for ``unpicklable.explain``.
    """
    if issubclass(type(error), _NOT_THE_VALUE) or type(error) is KeyboardInterrupt:
        return error
    better = unpicklable.explain(error, value, what, name, try_to_pickle)
    better.__cause__ = error
    return better


def refuse(error: BaseException, value: object, what: str, name: str | tuple[str, ...]) -> NoReturn:
    """Raise what :func:`explained` gives."""
    raise explained(error, value, what, name)


def try_to_pickle(value: object) -> None:
    """As ``dumps``, but nobody keeps the bytes, so no ref is kept either."""
    _ValuePickler(io.BytesIO(), None).dump(value)


# -- functions --------------------------------------------------------------------------------


def pack_function(function: Callable[..., Any]) -> bytes:
    """Pickle a function once and for all: modules by reference, ``__main__`` by value.

    Refs it captured are kept for the whole session: nobody knows when the last call comes.

    Raises:
        TypeError: it captured something that cannot be pickled; the text names it.
    """
    try:
        return dumps(function)
    except BaseException as error:
        name = getattr(function, "__qualname__", None)
        name = name if isinstance(name, str) else repr_of(function)
        refuse(error, function, f"the function {name}", name)


def pack_retry(classes: tuple[type[BaseException], ...], name: str) -> bytes:
    """Pickle the ``retry_exceptions`` of the function ``name``; raises TypeError."""
    try:
        return dumps(classes)
    except BaseException as error:
        refuse(error, classes, f"an option of {name}()", "retry_exceptions")


def unpack_function(blob: bytes) -> Callable[..., Any]:
    """The function of :func:`pack_function`.

    Raises:
        Misbehaved: it cannot be unpickled here; its cause says why.
    """
    try:
        function: Callable[..., Any] = pickle.loads(blob)
    except BaseException as error:
        if type(error) is KeyboardInterrupt:
            raise  # the task was cancelled
        raise Misbehaved("the function could not be unpickled here") from error
    return function


def blame(error: BaseException, payload: Payload, whose: str) -> NoReturn:
    """Raise ``error``, which :func:`unpack` has raised, or a better one: see ``unreadable``."""
    raise unreadable.blame(error, lambda: path_to_unreadable(payload), whose)


def path_to_unreadable(payload: Payload) -> str:
    """The steps to the member of a payload that does not unpickle."""
    try:
        data, buffers = _parts(payload)
    except Exception:
        return ""  # it was its place in the store that could not be opened
    return unreadable.path_to_unreadable(data, buffers)


def _parts(payload: Payload) -> tuple[Any, Sequence[Any]]:
    return (payload, ()) if isinstance(payload, bytes) else payload.open()


# -- registered classes -----------------------------------------------------------------------


def pack_registration(cls: type, pair: Pair | None) -> tuple[str, bytes]:
    """The name of a registration and its pickle for the workers; None: the class is forgotten.

    Raises:
        TypeError: the class or one of its functions cannot be pickled.
    """
    name = f"{cls.__module__}.{cls.__qualname__}"
    try:
        return f"{name} {id(cls):x}", dumps((cls, pair))
    except BaseException as error:
        refuse(error, (cls, pair), f"the serializer of {name}", ("cls", "functions"))


def pack_registrations() -> dict[str, bytes]:
    """All that is registered in this process: the pickles by their names."""
    return dict(pack_registration(cls, pair) for cls, pair in serializers.all())
