"""The arguments of a call on the wire: one pickle, with holes where refs stood.

A ref that *is* an argument leaves a hole and becomes a dependency; its value is put into the
hole by the worker, as the bytes it was stored in.  Refs *inside* arguments stay refs.  A large
argument becomes an object of the store, as if the caller had called ``put`` (Ray does the same).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

from taskloom._store.stored import THRESHOLD, Parts
from taskloom._wire.serialization import (
    INLINE_BYTES,
    PLAIN,
    SIZED,
    Payload,
    pack_plain,
    path_to_unreadable,
    pickled,
    refuse,
    settle,
    unpack,
)
from taskloom._wire.unreadable import Misbehaved
from taskloom.ref import ObjectRef

Holes = tuple[tuple[int | str, int], ...]
NO_ARGUMENTS: Final = pack_plain(())
"""The payload of a call without arguments."""
_NO_KEYWORDS: Final[dict[str, Any]] = {}  # a call with ``**`` copies it
_ONLY_HOLES: Final[Sequence[tuple[bytes, Holes]]] = tuple(
    (pack_plain(([None] * count, {})), tuple((index, index) for index in range(count)))
    for count in range(8)
)
"""Payload and holes of a call whose arguments are so many refs.

Fast path: most calls that depend on others are such (2.9 -> 1.7 us).  Plain twin: the rest of
:func:`encode_call`.
"""
PutArgument = Callable[[object, int | str, Parts, tuple[int, ...]], ObjectRef[Any]]
"""Makes an object of an argument: the argument, where it stands, its pickle, the refs in it."""


def encode_call(
    args: tuple[object, ...],
    kwargs: dict[str, object],
    name: str,
    put_argument: PutArgument | None = None,
) -> tuple[Payload, Holes | None, Sequence[ObjectRef[Any]], tuple[int, ...]]:
    """The arguments of one call.

    Args:
        args, kwargs: as the caller gave them.
        name: the function's, for texts.
        put_argument: what becomes of large ones; without it they travel as they are.

    Returns: the payload; the holes (None: the payload is a plain tuple of positional
    arguments); the refs that are dependencies, each once; the keys of refs inside arguments.

    Raises:
        TypeError: an argument cannot be pickled; says which, and the path to the member.
    """
    if not kwargs:
        if (plain_data := pack_plain_arguments(args)) is not None:
            return plain_data, None, (), ()
        if len(args) < len(_ONLY_HOLES) and _are_different_refs(args):
            return *_ONLY_HOLES[len(args)], cast("Sequence[ObjectRef[Any]]", args), ()
    for keyword in kwargs:
        if type(keyword) is not str:
            # A subclass would be pickled with its class, some even in the engine's messages.
            kwargs = {str.__str__(name): value for name, value in kwargs.items()}
            break
    dependencies: dict[int, int] = {}
    refs: list[ObjectRef[Any]] = []
    holes: list[tuple[int | str, int]] = []
    plain: list[object] = list(args)
    named = dict(kwargs)

    def dig(where: int | str, ref: ObjectRef[Any]) -> None:
        index = dependencies.get(ref._key)
        if index is None:
            index = dependencies[ref._key] = len(refs)
            refs.append(ref)
        holes.append((where, index))

    for position, arg in enumerate(args):
        if type(arg) is ObjectRef:
            plain[position] = None
            dig(position, arg)
    for keyword, arg in kwargs.items():
        if type(arg) is ObjectRef:
            named[keyword] = None
            dig(keyword, arg)
    if _all_plain(plain) and _all_plain(named.values()):
        data = pack_plain((plain, named))
        if len(data) <= INLINE_BYTES:
            return data, tuple(holes), refs, ()

    def pickle_or_refuse(value: object) -> tuple[Parts, tuple[int, ...]]:
        try:
            return pickled(value)
        except BaseException as error:
            refuse(error, (plain, named), f"an argument of {name}()", ("args", "kwargs"))

    parts, nested = pickle_or_refuse((plain, named))
    if parts.shape.size > THRESHOLD and put_argument is not None:
        places: list[tuple[int | str, object]] = [*enumerate(plain), *named.items()]
        for where, arg in places:
            one, inside = pickle_or_refuse(arg)
            if one.shape.size > THRESHOLD:
                dig(where, put_argument(arg, where, one, inside))
                _blank(plain, named, where)
        parts, nested = pickle_or_refuse((plain, named))
    return settle(parts, None), tuple(holes), refs, nested


def pack_plain_arguments(args: tuple[object, ...]) -> bytes | None:
    """The payload of a call with a few plain arguments; None: it is another one.

    Fast path: most calls are such.  Plain twin: the rest of :func:`encode_call`.
    """
    if not args:
        return NO_ARGUMENTS
    for arg in args:
        kind = type(arg)
        if kind not in PLAIN or (kind in SIZED and len(arg) > INLINE_BYTES):  # type: ignore[arg-type]
            return None
    data = pack_plain(args)
    return data if len(data) <= INLINE_BYTES else None


def _are_different_refs(args: tuple[object, ...]) -> bool:
    for arg in args:
        if type(arg) is not ObjectRef:
            return False
    return len(args) == 1 or len({arg._key for arg in args}) == len(args)  # type: ignore[attr-defined]


def _all_plain(values: Iterable[object]) -> bool:
    return all(type(value) in PLAIN for value in values)


def _blank(plain: list[object], named: dict[str, object], where: int | str) -> None:
    if isinstance(where, int):
        plain[where] = None
    else:
        named[where] = None


def decode_call(
    payload: Payload,
    holes: Holes | None,
    fills: list[Payload] | None,
    was_interrupted: Callable[[], bool] = lambda: False,
) -> tuple[tuple[Any, ...] | list[Any], dict[str, Any]]:
    """Positional and keyword arguments, with the values of the dependencies put in.

    Raises:
        Misbehaved: one of them cannot be unpickled; says which.
        KeyboardInterrupt: the task was cancelled meanwhile, says ``was_interrupted``.
    """
    values: list[Any] = []
    try:
        if holes is None:
            return unpack(payload), _NO_KEYWORDS
        args, kwargs = unpack(payload)
        if holes:
            assert fills is not None, "a call with holes travels with what fills them"
            for fill in fills:
                values.append(unpack(fill))  # noqa: PERF401  # how many there are is asked below
            for where, index in holes:
                if type(where) is int:
                    args[where] = values[index]
                else:
                    kwargs[where] = values[index]
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and was_interrupted():
            raise
        raise Misbehaved(_sentence(payload, holes, fills, len(values))) from error
    return args, kwargs


def _sentence(
    payload: Payload, holes: Holes | None, fills: list[Payload] | None, filled: int
) -> str:
    """Which argument it is that could not be unpickled."""
    if holes is None:
        path = f"args{path_to_unreadable(payload)}"
    elif not filled and (steps := path_to_unreadable(payload)):
        path = f"args{steps[3:]}" if steps.startswith("[0]") else f"kwargs{steps[3:]}"
    elif fills is not None and filled < len(fills):
        where = next(where for where, index in holes if index == filled)
        name = f"args[{where}]" if type(where) is int else f"kwargs[{where!r}]"
        path = f"{name}{path_to_unreadable(fills[filled])}"
    else:
        path = "an argument"
    return f"{path} could not be unpickled here"
