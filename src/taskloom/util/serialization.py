"""Ray's ``ray.util.serialization``: how values of a class are pickled.

A registration belongs to the process and outlives sessions.  What the driver registers reaches
all workers, those of later sessions as well: a call that is submitted after it is packed and
answered by it.  What a task registers stays in its worker process, as in Ray; nobody can say which
worker that is, so register in the driver.

The deserializer travels with every value, so it must be possible to pickle it, and who reads
a value need not have registered anything.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from taskloom import _current
from taskloom._wire.custom_serializers import FIXED, serializers

T = TypeVar("T")

__all__ = ["deregister_serializer", "register_serializer"]


def register_serializer(
    cls: type[T],
    *,
    serializer: Callable[[T], Any],
    deserializer: Callable[[Any], T],
) -> None:
    """Have values of exactly the class ``cls`` pickled by ``serializer``.

    Args:
        cls: the class; subclasses are classes of their own.
        serializer: takes a value, gives something that can be pickled.
        deserializer: makes a value of what ``serializer`` gave.

    Raises:
        TypeError: one of these is of the wrong kind, or cannot be pickled.
        ValueError: the pickle of this class cannot be changed (``int``, ``list``, ``ObjectRef``).
    """
    _check_class(cls, "register_serializer")
    for name, function in (("serializer", serializer), ("deserializer", deserializer)):
        if not callable(function):
            raise TypeError(f"register_serializer(): {name} must be callable, got {function!r}")
    pair = (serializer, deserializer)
    name, blob = _wire().pack_registration(cls, pair)
    serializers.register(cls, pair)
    backend = _current.peek()
    if backend is not None:
        backend.spread(name, blob, keep=True)


def deregister_serializer(cls: type) -> None:
    """Have values of ``cls`` pickled as ever; nothing happens when it is not registered.

    Raises:
        TypeError: it is no class.
        ValueError: the pickle of this class cannot be changed.
    """
    _check_class(cls, "deregister_serializer")
    if not serializers.deregister(cls):
        return
    backend = _current.peek()
    if backend is not None:
        name, blob = _wire().pack_registration(cls, None)
        backend.spread(name, blob, keep=False)


def _check_class(cls: object, name: str) -> None:
    if not isinstance(cls, type):
        raise TypeError(f"{name}() takes a class, got {cls!r}")
    if cls in FIXED:
        raise ValueError(f"{name}(): how {cls.__qualname__} is pickled cannot be changed")


def _wire() -> Any:
    # Loaded here: to import taskloom.util should not cost a pickler.
    return import_module("taskloom._wire.serialization")
