"""The arguments of a call on the wire: one pickle, with holes where refs stood.

A ref that *is* an argument leaves a hole and becomes a dependency; its value is put into the
hole by the worker, as the bytes it was stored in.  Refs *inside* arguments stay refs.
"""

from __future__ import annotations

from typing import Any

from taskloom._wire.serialization import (
    PLAIN,
    ForeignRefError,
    Payload,
    explain,
    pack,
    pack_plain,
    unpack,
)
from taskloom.ref import ObjectRef

Holes = tuple[tuple[int | str, int], ...]


def encode_call(
    args: tuple[object, ...], kwargs: dict[str, object], name: str
) -> tuple[Payload, Holes | None, list[ObjectRef[Any]], tuple[int, ...]]:
    """The arguments of one call.

    Returns: the payload; the holes (None: the payload is a plain tuple of positional
    arguments); the refs that are dependencies, each once; the keys of refs inside arguments.

    Raises:
        TypeError: an argument cannot be pickled; says which, and the path to the member.
    """
    if not kwargs:
        # Fast path: the common call has a few plain arguments.  Plain twin: the code below.
        for arg in args:
            if type(arg) not in PLAIN:
                break
        else:
            return pack_plain(args), None, [], ()
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

    all_plain = True
    for position, arg in enumerate(args):
        if type(arg) is ObjectRef:
            plain[position] = None
            dig(position, arg)
        elif type(arg) not in PLAIN:
            all_plain = False
    for keyword, arg in kwargs.items():
        if type(arg) is ObjectRef:
            named[keyword] = None
            dig(keyword, arg)
        elif type(arg) not in PLAIN:
            all_plain = False
    if all_plain:
        return pack_plain((plain, named)), tuple(holes), refs, ()
    try:
        payload, nested = pack((plain, named))
    except ForeignRefError:
        raise
    except Exception as error:
        raise _explain(error, args, kwargs, name) from error
    return payload, tuple(holes), refs, nested


def _explain(
    error: Exception, args: tuple[object, ...], kwargs: dict[str, object], name: str
) -> TypeError:
    what = f"an argument of {name}()"
    for keyword, value in kwargs.items():
        try:
            pack(value)
        except Exception as culprit:
            return explain(culprit, value, what, f"kwargs[{keyword!r}]")
    return explain(error, args, what, "args")


def decode_call(
    payload: Payload, holes: Holes | None, fills: list[Payload] | None
) -> tuple[tuple[Any, ...] | list[Any], dict[str, Any]]:
    """Positional and keyword arguments, with the values of the dependencies put in."""
    if holes is None:
        return unpack(payload), {}
    args, kwargs = unpack(payload)
    if holes:
        assert fills is not None, "a call with holes travels with what fills them"
        values = [unpack(fill) for fill in fills]
        for where, index in holes:
            if type(where) is int:
                args[where] = values[index]
            else:
                kwargs[where] = values[index]
    return args, kwargs
