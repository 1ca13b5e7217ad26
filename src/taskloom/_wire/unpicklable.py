"""Which member of a value cannot be pickled: the path to it, and the error that says so.

Only asked after pickling has failed, to make a useful error out of "cannot pickle
'_thread.lock' object".  Every step pickles a member; the search follows the first one that
fails and stops at the innermost.  It is bounded in depth, in breadth and in time.
"""

from __future__ import annotations

import re
import types
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, cast

from taskloom._wire.careful import Patience, line_of, repr_of
from taskloom._wire.custom_serializers import serializers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_DEPTH: Final = 20
_MAX_MEMBERS: Final = 1_000  # looked at in each value
_MAX_TIME_S: Final = 1.0
_IDENTIFIER: Final = re.compile(r"\A[^\W\d]\w*\Z")


def explain(
    error: BaseException,
    value: object,
    what: str,
    name: str | tuple[str, ...],
    dumps: Callable[[object], object],
) -> TypeError:
    """A TypeError that says which member of ``value`` could not be pickled, and why.

    Args:
        error: what pickling raised.
        value: what was pickled.
        what: the sentence's subject, such as "the arguments of f".
        name: what the value is called in the path, such as "value"; for a tuple, what each of
            its members is called.
        dumps: the serializer.
    """
    if isinstance(name, tuple):
        named = zip(name, cast("tuple[object, ...]", value), strict=True)
    else:
        named = zip((name,), (value,), strict=True)
    tries = (path_to_unpicklable(member, called, dumps) for called, member in named)
    found = next(filter(None, tries), None)
    where = f": {found[0]} is {repr_of(found[1])}" if found else ""
    return TypeError(f"could not serialize {what}{where} ({line_of(error)})")


def path_to_unpicklable(
    value: object, name: str, dumps: Callable[[object], object]
) -> tuple[str, object] | None:
    """The innermost member of ``value`` that does not pickle; never raises.

    Args:
        value: what did not pickle.
        name: how it is called, the first part of the path.
        dumps: the serializer.

    Returns:
        The path, such as ``args[0].conn._lock`` or ``f.<closure>.lock``, and the member.
        None when ``value`` pickles after all.
    """
    patience = Patience(_MAX_TIME_S)
    try:
        if _pickles(value, dumps):
            return None
        path, culprit = name, value
        seen = {id(value)}
        for _ in range(_MAX_DEPTH):
            step = first_unpicklable(culprit, seen, dumps, patience)
            if step is None:
                break
            path, culprit = path + step[0], step[1]
            seen.add(id(culprit))
        return path, culprit
    except KeyboardInterrupt:
        raise  # Ctrl-C: the search takes a while
    except BaseException:
        return name, value  # what the user holds is stranger than the search can bear


def first_unpicklable(
    value: object, seen: set[int], dumps: Callable[[object], object], patience: Patience
) -> tuple[str, object] | None:
    """The first member of ``value`` that does not pickle: its step and itself; or None.

    Args:
        value: what does not pickle.
        seen: the ids of values not to look at again.
        dumps: the serializer.
        patience: when it is over, the search ends.
    """
    members = _members(value)
    for _ in range(_MAX_MEMBERS):
        if patience.is_over():
            return None
        try:
            step, member = next(members)
        except StopIteration:
            return None
        except KeyboardInterrupt:
            raise  # Ctrl-C
        except BaseException:
            return None  # an attribute that raises when it is looked at
        if id(member) not in seen and not _pickles(member, dumps):
            return step, member
    return None


def _pickles(value: object, dumps: Callable[[object], object]) -> bool:
    if value is None or type(value) in _ALWAYS:
        return True
    try:
        dumps(value)
    except BaseException:
        # Whatever a __reduce__ raises, it is the answer to the question.
        return False
    return True


_ALWAYS: Final = frozenset({int, float, str, bytes, bool, complex, bytearray})


def _members(value: object) -> Iterator[tuple[str, object]]:
    """What ``value`` is pickled with, each with its step of the path."""
    if serializers.active and (serializer := serializers.serializer_of(type(value))):
        yield ".<serialized>", serializer(value)
        return
    if isinstance(value, dict):
        for key, item in islice(value.items(), _MAX_MEMBERS):
            yield f"[{_shown(key)}]", item
            yield f".<key {_shown(key)}>", key
    elif isinstance(value, (list, tuple)):
        names = getattr(value, "_fields", None)  # of a namedtuple
        for index, item in enumerate(islice(value, _MAX_MEMBERS)):
            named = isinstance(names, tuple) and index < len(names)
            yield f".{names[index]}" if named else f"[{index}]", item  # type: ignore[index]
    elif isinstance(value, (set, frozenset)):
        for item in islice(value, _MAX_MEMBERS):
            yield ".<member>", item
    if isinstance(value, types.FunctionType):
        yield from _members_of_function(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, type):
        yield from _members_of_class(value)
    elif not isinstance(value, types.ModuleType):
        yield from _members_of_object(value)


def _members_of_function(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f".<closure>.{name}", cell.cell_contents
        except ValueError:
            continue  # not bound yet
    for name in _global_names(code):
        if name in function.__globals__:
            yield f".<globals>.{name}", function.__globals__[name]
    for index, item in enumerate(function.__defaults__ or ()):
        yield f".__defaults__[{index}]", item
    for name, item in (function.__kwdefaults__ or {}).items():
        yield f".__kwdefaults__[{name!r}]", item
    for name, item in function.__dict__.items():
        yield f".{name}", item


def _global_names(code: types.CodeType) -> list[str]:
    """Names that a function looks up outside of itself; those of inner functions, too."""
    names: dict[str, None] = {}
    stack = [code]
    while stack and len(names) < _MAX_MEMBERS:
        item = stack.pop()
        names.update(dict.fromkeys(item.co_names))
        stack += [const for const in item.co_consts if isinstance(const, types.CodeType)]
    return list(names)


def _members_of_class(cls: type) -> Iterator[tuple[str, object]]:
    for name, item in list(vars(cls).items())[:_MAX_MEMBERS]:
        if name in ("__dict__", "__weakref__"):
            continue
        if isinstance(item, (staticmethod, classmethod)):
            item = item.__func__
        if isinstance(item, property):
            item = item.fget
        yield f".{name}", item


def _members_of_object(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(type(value).__reduce__, types.FunctionType):
        try:
            value.__reduce__()
        except BaseException:
            return  # it refuses: it is itself at fault, and none of its members
    state = _state(value)
    if isinstance(state, dict):
        for name, item in list(state.items())[:_MAX_MEMBERS]:
            yield attribute_step(name), item
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name not in ("__dict__", "__weakref__"):
                mangled = _mangle(base, name)
                try:
                    yield f".{name}", object.__getattribute__(value, mangled)
                except AttributeError:
                    continue  # never set
    if isinstance(value, BaseException):
        for index, item in enumerate(value.args[:_MAX_MEMBERS]):
            yield f".args[{index}]", item
    if type(value).__module__ == "functools" and type(value).__name__ == "partial":
        for name in ("func", "args", "keywords"):
            yield f".{name}", getattr(value, name)
    yield ".__class__", type(value)  # one of __main__ travels with all that it holds


def _state(value: object) -> Any:
    """The attributes that pickle would take: a class may hide some in ``__getstate__``."""
    own = getattr(value, "__dict__", None)
    if type(value).__getstate__ is object.__getstate__:
        return own
    try:
        state = value.__getstate__()
    except Exception:
        return own
    return state if isinstance(state, dict) else own


def attribute_step(name: object) -> str:
    """The step of a path to the attribute ``name``."""
    if isinstance(name, str) and _IDENTIFIER.match(name):
        return f".{name}"
    return f".__dict__[{_shown(name)}]"


def _mangle(cls: type, name: str) -> str:
    if name.startswith("__") and not name.endswith("__"):
        return f"_{cls.__name__.lstrip('_')}{name}"
    return name


def _shown(key: object) -> str:
    return repr_of(key, 60)
