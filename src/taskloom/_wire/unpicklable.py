"""Which member of a value cannot be pickled, and the path to it.

Only asked after pickling has failed, to make a useful error out of "cannot pickle
'_thread.lock' object".  Every step pickles a member; the search follows the first one that
fails and stops at the innermost.  It is bounded in depth, in breadth and in time.
"""

from __future__ import annotations

import re
import types
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_DEPTH: Final = 20
_MAX_MEMBERS: Final = 1_000  # looked at in each value
_MAX_TIME_S: Final = 5.0
_IDENTIFIER: Final = re.compile(r"\A[^\W\d]\w*\Z")


def path_to_unpicklable(
    value: object, name: str, dumps: Callable[[object], bytes]
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
    deadline = monotonic() + _MAX_TIME_S
    try:
        if _pickles(value, dumps):
            return None
        path, culprit = name, value
        seen = {id(value)}
        for _ in range(_MAX_DEPTH):
            step = _first_bad(culprit, seen, dumps, deadline)
            if step is None:
                break
            path, culprit = path + step[0], step[1]
            seen.add(id(culprit))
        return path, culprit
    except Exception:
        return name, value  # what the user holds is stranger than the search can bear


def _first_bad(
    value: object, seen: set[int], dumps: Callable[[object], bytes], deadline: float
) -> tuple[str, object] | None:
    members = _members(value)
    for _ in range(_MAX_MEMBERS):
        if monotonic() > deadline:
            return None
        try:
            step, member = next(members)
        except StopIteration:
            return None
        except Exception:
            return None  # an attribute that raises when it is looked at
        if id(member) not in seen and not _pickles(member, dumps):
            return step, member
    return None


def _pickles(value: object, dumps: Callable[[object], bytes]) -> bool:
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
    if isinstance(value, dict):
        for key, item in islice(value.items(), _MAX_MEMBERS):
            yield f"[{_short(key)}]", item
            yield f".<key {_short(key)}>", key
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
    state = _state(value)
    if isinstance(state, dict):
        for name, item in list(state.items())[:_MAX_MEMBERS]:
            yield _attribute(name), item
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


def _attribute(name: object) -> str:
    if isinstance(name, str) and _IDENTIFIER.match(name):
        return f".{name}"
    return f".__dict__[{_short(name)}]"


def _mangle(cls: type, name: str) -> str:
    if name.startswith("__") and not name.endswith("__"):
        return f"_{cls.__name__.lstrip('_')}{name}"
    return name


def _short(key: object) -> str:
    try:
        text = repr(key)
    except Exception:
        text = f"<{type(key).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."
