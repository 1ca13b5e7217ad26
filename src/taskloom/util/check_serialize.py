"""Ray's ``ray.util.check_serialize``: which variable it is that cannot be pickled."""

from __future__ import annotations

from importlib import import_module
from typing import IO, Any, Final

from taskloom._wire.careful import Patience, line_of, repr_of
from taskloom._wire.unpicklable import first_unpicklable

__all__ = ["FailureTuple", "inspect_serializability"]


_PATIENCE_S: Final = 10.0  # for one level: somebody sits and waits for the answer


class FailureTuple:
    """A member that does not pickle, and where it was found.

    Attributes:
        obj: the member.
        path: the names that lead to it, the first for what was inspected.
        name: the last of them, which is the variable.
        parent: what refers to it; None when it is what was inspected.
    """

    __slots__ = ("obj", "parent", "path")

    def __init__(self, obj: object, path: tuple[str, ...], parent: object) -> None:
        self.obj = obj
        self.path = path
        self.parent = parent

    @property
    def name(self) -> str:
        return self.path[-1]

    def __repr__(self) -> str:
        where = " -> ".join(self.path)
        return (
            f"FailTuple({self.name} [path={where}, obj={repr_of(self.obj)}, "
            f"parent={repr_of(self.parent)}])"
        )


def inspect_serializability(
    base_obj: object,
    name: str | None = None,
    depth: int = 3,
    print_file: IO[str] | None = None,
) -> tuple[bool, set[FailureTuple]]:
    """Say whether ``base_obj`` can be pickled, and if not, which of its members cannot.

    Looks into containers, attributes, closures, globals that a function uses, and so on, down
    the first member that fails in each.

    Args:
        base_obj: a function, a class or any value.
        name: what to call it; by default its own name, or its class's.
        depth: how many steps to go down; 0 or less only asks about ``base_obj`` itself.
        print_file: where to print what is found; the standard output by default.

    Returns:
        Whether it can be pickled, and the innermost members that cannot (empty if it can).
    """
    try_to_pickle = import_module("taskloom._wire.serialization").try_to_pickle
    label = name if name is not None else _name_of(base_obj)
    title = f"Checking serializability of {repr_of(base_obj)}"
    _print(print_file, "=" * min(len(title), 80), title, "=" * min(len(title), 80))
    reason = _reason(base_obj, try_to_pickle)
    if reason is None:
        _print(print_file, "It can be serialized.")
        return True, set()
    path: tuple[str, ...] = (label,)
    culprit: object = base_obj
    parent: object = None
    seen = {id(base_obj)}
    _print(print_file, f"FAIL {label}: {line_of(reason)}")
    for level in range(1, max(depth, 0) + 1):
        found = first_unpicklable(culprit, seen, try_to_pickle, Patience(_PATIENCE_S))
        if found is None:
            break
        path, parent, culprit = (*path, _variable(found[0])), culprit, found[1]
        seen.add(id(culprit))
        reason = _reason(culprit, try_to_pickle) or reason
        _print(print_file, f"{'    ' * level}FAIL {path[-1]}: {line_of(reason)}")
    failure = FailureTuple(culprit, path, parent)
    _print(
        print_file,
        f"\n{failure!r}\ncannot be serialized. There may be others: only the first of each value "
        "was followed.\nMake it inside the function or task that uses it, leave it out in "
        "__getstate__, or see taskloom.util.register_serializer.",
    )
    return False, {failure}


def _variable(step: str) -> str:
    """The name a user knows: ``lock`` for the step ``.<closure>.lock``."""
    return step.rpartition(".")[2] if step.startswith(".") else step


def _reason(value: object, try_to_pickle: Any) -> BaseException | None:
    """What pickling raises, if it does."""
    try:
        try_to_pickle(value)
    except BaseException as error:
        if type(error) is KeyboardInterrupt:
            raise
        return error
    return None


def _name_of(value: object) -> str:
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else type(value).__qualname__


def _print(file: IO[str] | None, *lines: str) -> None:
    for line in lines:
        print(line, file=file)
