"""Values and functions to bytes and back: the only place that knows cloudpickle.

A value becomes a *payload*: plain ``bytes`` when it is small and whole, else a :class:`Packed`
with the pickle and the large buffers (pickle protocol 5) beside it, which travel without being
copied into the pickle.  Both are opaque to everybody between the one who packs and the one who
unpacks.

Plain builtin values never meet cloudpickle: the C pickler writes them.  Whatever is not on that
short list goes through a pickler that adds two things to cloudpickle's: refs are recorded by
their key, and context variables travel by name.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Final

import cloudpickle  # type: ignore[import-untyped]  # it has no stubs

from taskloom import _current
from taskloom._wire.context_vars import reduce_context_var
from taskloom._wire.unpicklable import path_to_unpicklable
from taskloom.ref import ObjectRef

INLINE_BYTES: Final = 32 * 1024
"""A pickle longer than this travels beside its message, not copied into it."""

PLAIN: Final = frozenset({int, float, str, bytes, bool, type(None), complex})
"""Types that the C pickler writes the same way in every process."""
_PROTOCOL: Final = 5


class Packed:
    """A large value: the pickle and its out-of-band buffers, all without a copy.

    Args:
        data: the pickle, bytes-like.
        buffers: what the pickle left outside, in its order; read-only when received.
    """

    __slots__ = ("buffers", "data")

    is_large = True  # what the scheduler asks: see ``_core/placement``

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


def _repack(data: Any, buffers: Sequence[Any]) -> Packed:
    # What arrives is shared by all who unpack it, so nobody may write to it (STO-1).
    return Packed(data, tuple(memoryview(buffer).toreadonly() for buffer in buffers))


Payload = bytes | Packed


class ForeignRefError(ValueError):
    """A value contains a ref of another session."""


class _ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is untyped
    """cloudpickle, plus refs by key and context variables by name."""

    def __init__(self, file: io.BytesIO, buffers: list[pickle.PickleBuffer] | None) -> None:
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
        return super().reducer_override(obj)


def _load_ref(key: int) -> ObjectRef[Any]:
    return _current.require().adopt(key)


def pack(value: object) -> tuple[Payload, tuple[int, ...]]:
    """Pickle ``value``; the payload and the keys of the refs inside it.

    Raises:
        Whatever pickling raised: see :func:`explain` for a text that says where.
    """
    if type(value) in PLAIN:
        data = pickle.dumps(value, _PROTOCOL)
        return (data if len(data) <= INLINE_BYTES else Packed(data, ())), ()
    return _pack_any(value)


def pack_plain(args: tuple[object, ...]) -> Payload:
    """:func:`pack` for what is known to hold nothing but plain values."""
    data = pickle.dumps(args, _PROTOCOL)
    return data if len(data) <= INLINE_BYTES else Packed(data, ())


def _pack_any(value: object) -> tuple[Payload, tuple[int, ...]]:
    file = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    pickler = _ValuePickler(file, buffers)
    pickler.dump(value)
    refs = tuple(dict.fromkeys(ref._key for ref in pickler.refs)) if pickler.refs else ()
    if not buffers and file.tell() <= INLINE_BYTES:
        return file.getvalue(), refs
    # A snapshot (PUT-1): the buffers are still the caller's memory, which he may change.
    return Packed(file.getvalue(), tuple(bytes(buffer.raw()) for buffer in buffers)), refs


def unpack(payload: Payload) -> Any:
    """The value of a payload."""
    if isinstance(payload, bytes):
        return pickle.loads(payload)
    return pickle.loads(payload.data, buffers=payload.buffers)


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


def explain(error: BaseException, value: object, what: str, name: str) -> TypeError:
    """A TypeError that says which member of ``value`` could not be pickled, and why.

    Args:
        error: what pickling raised.
        value: what was pickled.
        what: the sentence's subject, such as "the arguments of f".
        name: what the value is called in the path, such as "args".
    """
    found = path_to_unpicklable(value, name, dumps)
    where = f": {found[0]} is {_short_repr(found[1])}" if found else ""
    return TypeError(f"could not serialize {what}{where} ({type(error).__name__}: {error})")


def _short_repr(value: object) -> str:
    try:
        text = repr(value)
    except BaseException:
        text = object.__repr__(value)
    return text if len(text) <= 100 else text[:97] + "..."


# -- functions --------------------------------------------------------------------------------


def pack_function(function: Callable[..., Any]) -> bytes:
    """Pickle a function once and for all: modules by reference, ``__main__`` by value.

    Refs it captured are kept for the whole session: nobody knows when the last call comes.

    Raises:
        TypeError: it captured something that cannot be pickled; the text names it.
    """
    name = getattr(function, "__qualname__", None) or repr(function)
    try:
        return dumps(function)
    except Exception as error:
        raise explain(error, function, f"the function {name}", name) from error


def unpack_function(blob: bytes) -> Callable[..., Any]:
    """The function of :func:`pack_function`."""
    function: Callable[..., Any] = pickle.loads(blob)
    return function
