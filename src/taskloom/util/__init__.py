"""Ray's ``ray.util``: helpers under the names and with the arguments that Ray programs use."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from taskloom import _current, groups
from taskloom._mapping import Results
from taskloom.ref import ObjectRef
from taskloom.remote_function import remote
from taskloom.util.check_serialize import inspect_serializability
from taskloom.util.serialization import deregister_serializer, register_serializer

if TYPE_CHECKING:
    from taskloom.groups import Completions

T = TypeVar("T")

DEFAULT_CHUNK_SIZE: Final = 10
DEFAULT_BACKPRESSURE_SIZE: Final = 100
_ENDLESS: Final = 1 << 62

__all__ = [
    "as_completed",
    "deregister_serializer",
    "inspect_serializability",
    "list_named_actors",
    "map_unordered",
    "register_serializer",
]


@overload
def as_completed(
    refs: Iterable[ObjectRef[T]],
    *,
    chunk_size: int = ...,
    yield_obj_refs: Literal[False] = ...,
    **wait_options: Any,
) -> Completions[T]: ...
@overload
def as_completed(
    refs: Iterable[ObjectRef[T]],
    *,
    chunk_size: int = ...,
    yield_obj_refs: Literal[True],
    **wait_options: Any,
) -> Completions[ObjectRef[T]]: ...
def as_completed(
    refs: Iterable[ObjectRef[Any]],
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    yield_obj_refs: bool = False,
    **wait_options: Any,
) -> Completions[Any]:
    """Values in the order in which they are done; see :func:`taskloom.as_completed`.

    Args:
        refs: refs, each once.
        chunk_size: Ray waits for that many at a time.  Here each value comes as soon as it is
            done, whatever the number, so it is only checked.
        yield_obj_refs: give the refs instead of their values.
        wait_options: ``timeout`` and ``fetch_local`` of ``wait``.  In Ray they change how it
            waits for a chunk and never what comes out; here they are only checked.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    _check(chunk_size, wait_options, "as_completed")
    return groups.as_completed(refs, yield_obj_refs=yield_obj_refs)


def map_unordered(
    fn: Any,
    items: Iterable[Any] | AsyncIterable[Any],
    *,
    backpressure_size: int | None = DEFAULT_BACKPRESSURE_SIZE,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    yield_obj_refs: bool = False,
    **wait_options: Any,
) -> Results[Any]:
    """``fn.remote(item)`` for each item; values in the order in which they are done.

    See :func:`taskloom.map` with ``ordered=False``.

    Args:
        fn: a remote function, or a plain one, which is made remote.
        items: one item for each call; may be endless.
        backpressure_size: how many calls may be submitted and not yet yielded; None: all,
            which reads ``items`` to the end first.
        chunk_size, wait_options: see :func:`as_completed`.
        yield_obj_refs: give refs instead of values.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    if backpressure_size is not None and backpressure_size <= 0:
        raise ValueError("backpressure_size must be positive.")
    _check(chunk_size, wait_options, "map_unordered")
    limit = _ENDLESS if backpressure_size is None else backpressure_size
    if not hasattr(fn, "remote"):
        fn = remote(fn)
    return Results(fn, items, ordered=False, limit=limit, yield_obj_refs=yield_obj_refs)


def _check(chunk_size: int, wait_options: dict[str, Any], name: str) -> None:
    if chunk_size < 1:
        raise ValueError("`chunk_size` must be >= 1")
    if "num_returns" in wait_options:
        raise ValueError("Use the `chunk_size` argument instead of `num_returns`.")
    unknown = wait_options.keys() - {"timeout", "fetch_local"}
    if unknown:
        raise TypeError(f"{name}() got an unexpected keyword argument {min(unknown)!r}")
    timeout = wait_options.get("timeout")
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"The 'timeout' argument must be nonnegative. Received {timeout}")


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """The names of the living actors.

    Args:
        all_namespaces: of all namespaces, not only that of the session.

    Returns:
        Names; with ``all_namespaces`` rows ``{"name": ..., "namespace": ...}``.
    """
    backend = _current.require()
    found = backend.ask_about_actors("list", "" if all_namespaces else backend.namespace)
    if not all_namespaces:
        return [name for _, name in found]
    return [{"name": name, "namespace": namespace} for namespace, name in found]
