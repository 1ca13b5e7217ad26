"""The functions of the front door: ``init``, ``get``, ``put``, ``wait``, ``cancel`` and the rest.

Arguments are checked here, with Ray's own words where Ray has some; the work is the backend's.
``import taskloom`` changes nothing in the host program, and neither does ``init``: no signal
handler, no excepthook, no environment variable, no event-loop policy.
"""

# A tuple is a Sequence too, but what comes back for it is a tuple, on purpose.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

from taskloom import _current
from taskloom._config import env_flag, make_config
from taskloom._context import RayContext
from taskloom.exceptions import BlockingGetWarning, RaySystemError
from taskloom.ref import ObjectRef

if TYPE_CHECKING:
    from taskloom.backends.base import Backend

R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")

_NOT_STARTED: Final = "Ray has not been started yet. You can start Ray with 'ray.init()'."
_FOREVER_S: Final = 10**9  # a timeout beyond 30 years is none; locks cannot take much more

_owner_pid: int | None = None  # the process whose exit ends the session
_warned_lines: set[tuple[str, int]] = set()


# -- a session --------------------------------------------------------------------------------


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: dict[str, float] | None = None,
    labels: dict[str, str] | None = None,
    object_store_memory: int | None = None,
    local_mode: bool = False,
    ignore_reinit_error: bool = False,
    include_dashboard: bool | None = None,
    dashboard_host: str = "127.0.0.1",
    dashboard_port: int | None = None,
    job_config: object = None,
    configure_logging: bool = True,
    logging_level: int | str = "info",
    logging_format: str | None = None,
    logging_config: object = None,
    log_to_driver: bool | None = None,
    namespace: str | None = None,
    runtime_env: dict[str, Any] | None = None,
    enable_resource_isolation: bool = False,
    cgroup_path: str | None = None,
    system_reserved_cpu: float | None = None,
    system_reserved_memory: int | None = None,
    proxy_server_url: str | None = None,
    preload: Sequence[str] = (),
    idle_worker_timeout: float | None = None,
    max_extra_workers: int | None = None,
    await_cancels: bool | None = None,
    **kwargs: Any,
) -> RayContext:
    """Start a session: the engine on a thread of its own, and its workers.

    Calling it is optional: the first ``.remote()``, ``get``, ``put`` or ``wait`` does.

    Args:
        address: None or "local": the engine in this process.  Nothing else is looked for.
        num_cpus: how many CPUs tasks may use together; those of this machine by default.
        num_gpus: the same for GPUs.
        resources: amounts of resources of your own, by name.
        object_store_memory: bytes for large values.
        local_mode: run tasks in this process, one after another, so that a debugger works.
        ignore_reinit_error: return the running session instead of raising.
        log_to_driver: show what workers print; yes by default.
        namespace: where named actors are found.
        preload: modules that workers find imported when they start.
        idle_worker_timeout: seconds after which a worker without work ends.
        max_extra_workers: how many workers may stand in for those blocked in ``get``.
        await_cancels: whether a task is cancelled when the ``await`` of its ref was, and nobody
            else wants the result; yes by default.

    The other arguments are Ray's, for clusters; they are accepted and have no effect here.

    Returns:
        The session's facts; ``with`` and ``async with`` it to end the session at the end.

    Raises:
        RuntimeError: there is a session already, or an argument is unknown.
        ValueError: an argument is out of range.
    """
    arguments = locals()  # first, while it holds the arguments and nothing else
    arguments.update(arguments.pop("kwargs"))
    with _current.lock:
        backend = _current.peek()
        if backend is not None:
            if not ignore_reinit_error:
                raise RuntimeError(
                    "Maybe you called ray.init twice by accident? This error can be suppressed "
                    "by passing in 'ignore_reinit_error=True' or by calling 'ray.shutdown()' "
                    "prior to 'ray.init()'."
                )
            return RayContext(backend, shutdown)
        _refuse_cluster_resources(arguments)
        del arguments["ignore_reinit_error"]
        config = make_config(**arguments)
        # Loaded here: a program that only imports remote functions needs no engine.
        module = import_module(f"taskloom.backends.{'inline' if config.local_mode else 'local'}")
        backend = cast("Backend", module.start(config))
        _current.set_backend(backend)
        _end_with_process()
        return RayContext(backend, shutdown)


def _refuse_cluster_resources(arguments: dict[str, Any]) -> None:
    """A cluster that is there has its resources already (INIT-10)."""
    if arguments["address"] in (None, "local"):
        return
    for name in ("num_cpus", "num_gpus", "resources", "labels", "object_store_memory"):
        if arguments[name] is not None:
            raise ValueError(
                f"When connecting to an existing cluster, {name} must not be provided."
            )


def auto_init() -> None:
    """Start a session with the defaults, unless the environment forbids it.

    Raises:
        RaySystemError: ``TASKLOOM_ENABLE_AUTO_CONNECT`` (or ``RAY_...``) is 0.
    """
    if not env_flag("ENABLE_AUTO_CONNECT", default=True):
        raise RaySystemError(_NOT_STARTED)
    init()


def _end_with_process() -> None:
    global _owner_pid
    if _owner_pid is None:
        atexit.register(_at_exit)
    _owner_pid = os.getpid()


def _at_exit() -> None:
    # A forked child inherits this hook, but the session is its parent's.
    if os.getpid() == _owner_pid:
        shutdown(_exiting_interpreter=True)


def shutdown(*, wait_for_processes: bool = False, _exiting_interpreter: bool = False) -> None:
    """End the session; does nothing when there is none.  Another ``init`` may follow.

    Args:
        wait_for_processes: Ray's; taskloom always returns after its processes have ended.
        _exiting_interpreter: Ray's; nothing that was printed is lost either way.
    """
    with _current.lock:
        backend = _current.peek()
        if backend is None or backend.is_worker:
            return  # a session is its driver's: a task cannot end it
        try:
            backend.shutdown()
        finally:
            _current.set_backend(None)
            _warned_lines.clear()


def is_initialized() -> bool:
    """True between ``init`` and ``shutdown``, and in workers."""
    return _current.peek() is not None


# -- objects ----------------------------------------------------------------------------------


@overload
def get(
    object_refs: ObjectRef[R], *, timeout: float | None = None, _use_object_store: bool = False
) -> R: ...
@overload
def get(
    object_refs: tuple[ObjectRef[A]],
    *,
    timeout: float | None = None,
    _use_object_store: bool = False,
) -> tuple[A]: ...
@overload
def get(
    object_refs: tuple[ObjectRef[A], ObjectRef[B]],
    *,
    timeout: float | None = None,
    _use_object_store: bool = False,
) -> tuple[A, B]: ...
@overload
def get(
    object_refs: tuple[ObjectRef[A], ObjectRef[B], ObjectRef[C]],
    *,
    timeout: float | None = None,
    _use_object_store: bool = False,
) -> tuple[A, B, C]: ...
@overload
def get(
    object_refs: tuple[ObjectRef[A], ObjectRef[B], ObjectRef[C], ObjectRef[D]],
    *,
    timeout: float | None = None,
    _use_object_store: bool = False,
) -> tuple[A, B, C, D]: ...
@overload
def get(
    object_refs: tuple[ObjectRef[A], ObjectRef[B], ObjectRef[C], ObjectRef[D], ObjectRef[E]],
    *,
    timeout: float | None = None,
    _use_object_store: bool = False,
) -> tuple[A, B, C, D, E]: ...
@overload
def get(
    object_refs: tuple[
        ObjectRef[A], ObjectRef[B], ObjectRef[C], ObjectRef[D], ObjectRef[E], ObjectRef[F]
    ],
    *,
    timeout: float | None = None,
    _use_object_store: bool = False,
) -> tuple[A, B, C, D, E, F]: ...
@overload
def get(
    object_refs: tuple[ObjectRef[R], ...],
    *,
    timeout: float | None = None,
    _use_object_store: bool = False,
) -> tuple[R, ...]: ...
@overload
def get(
    object_refs: Sequence[ObjectRef[R]],
    *,
    timeout: float | None = None,
    _use_object_store: bool = False,
) -> list[R]: ...
def get(object_refs: Any, *, timeout: float | None = None, _use_object_store: bool = False) -> Any:
    """Block until the task is done; its value.

    Args:
        object_refs: a ref, or a sequence of refs.
        timeout: seconds; None or -1 waits for ever, 0 does not wait.
        _use_object_store: Ray's; has no effect.

    Returns:
        The value of a ref, a tuple of values for a tuple, a list for any other sequence.

    Raises:
        GetTimeoutError: not done in time.  The task goes on, and can be asked again.
        RayTaskError: the task raised; the error is of the class it raised as well.  With many
            refs it is raised as soon as one has failed.
        TypeError: something in the sequence is not a ref.
    """
    timeout_s = _checked_timeout(timeout)
    if isinstance(object_refs, ObjectRef):
        _warn_in_loop("get")
        return _current.require().get((object_refs,), timeout_s)[0]
    if not isinstance(object_refs, Sequence) or isinstance(object_refs, str | bytes):
        raise ValueError(
            f"Invalid type of object refs, {type(object_refs)}, is given. 'object_refs' must "
            "either be an ObjectRef or a sequence of ObjectRefs."
        )
    for ref in object_refs:
        if not isinstance(ref, ObjectRef):
            raise TypeError(
                f"Attempting to call `get` on the value {ref!r}, which is not an ray.ObjectRef."
            )
    backend = _current.require()
    if not object_refs:
        values: list[object] = []
    else:
        _warn_in_loop("get")
        values = backend.get(object_refs, timeout_s)
    return tuple(values) if isinstance(object_refs, tuple) else values


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is None or timeout == -1:
        return None
    if not timeout >= 0:  # so that NaN is refused too
        raise ValueError(
            f"timeout must be None, -1 (for ever) or a number of seconds >= 0, got {timeout!r}"
        )
    return None if timeout > _FOREVER_S else timeout


def _warn_in_loop(name: str) -> None:
    """Say once per line that a coroutine blocks its loop.  The engine goes on all the same."""
    asyncio = sys.modules.get("asyncio")  # where it is not imported, no loop is running
    running = getattr(asyncio, "_get_running_loop", None)
    if running is None or running() is None:
        return
    if not env_flag("WARN_BLOCKING_GET_INSIDE_ASYNC", default=True):
        return
    caller = sys._getframe(2)
    line = (caller.f_code.co_filename, caller.f_lineno)
    if line in _warned_lines:
        return
    _warned_lines.add(line)
    instead = "'await ref'" if name == "get" else "'await wait_async(refs)'"
    warnings.warn(
        f"Using blocking {name}() inside a coroutine: the event loop stands still at "
        f"{line[0]}:{line[1]} until it returns. Use {instead} instead",
        BlockingGetWarning,
        stacklevel=3,
    )


def put(value: R, *, _owner: object = None, _tensor_transport: object = None) -> ObjectRef[R]:
    """Keep a snapshot of ``value``, to be passed to many tasks or fetched later.

    Raises:
        TypeError: it is a ref already, or it cannot be pickled.
        ValueError: ``_owner`` or ``_tensor_transport`` is given.
    """
    if isinstance(value, ObjectRef):
        raise TypeError(
            "Calling 'put' on an ray.ObjectRef is not allowed. If you really want to do this, "
            "you can wrap the ray.ObjectRef in a list and call 'put' on it."
        )
    if _owner is not None:
        raise ValueError("The '_owner' argument of put was removed in Ray 2.56")
    if _tensor_transport is not None:
        raise ValueError(f"put has no tensor transport here, got {_tensor_transport!r}")
    return cast("ObjectRef[R]", _current.require().put(value))


def wait(
    ray_waitables: list[ObjectRef[R]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef[R]], list[ObjectRef[R]]]:
    """Block until ``num_returns`` of the refs are done or time is up.

    A task that failed or was cancelled is done.  Values are not fetched.

    Args:
        ray_waitables: a list of different refs.
        num_returns: how many to wait for.
        timeout: seconds; None waits for ever, 0 does not wait.
        fetch_local: Ray's; values are on this machine anyway.

    Returns:
        Those that are done, at most ``num_returns`` of them, and the rest; both in the order
        of the list.

    Raises:
        TypeError: not a list, or it holds something else than refs.
        ValueError: a ref is there twice, or a number is out of range.
    """
    given: object = ray_waitables
    expected = "wait() expected a list of ray.ObjectRef"
    if isinstance(given, ObjectRef):
        raise TypeError(f"{expected}, got a single ray.ObjectRef {given!r}")
    if not isinstance(given, list):
        raise TypeError(f"{expected}, got {type(given)}")
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"The 'timeout' argument must be nonnegative. Received {timeout}")
    for ref in ray_waitables:
        if not isinstance(ref, ObjectRef):
            raise TypeError(f"{expected}, got list containing {type(ref)}")
    backend = _current.require()
    if not ray_waitables:
        return [], []
    if len(ray_waitables) != len(set(ray_waitables)):
        raise ValueError("Wait requires a list of unique ray_waitables.")
    if not isinstance(num_returns, int):
        raise TypeError(f"num_returns must be an int, got {num_returns!r}")
    if num_returns <= 0:
        raise ValueError(f"Invalid number of objects to return {num_returns}.")
    if num_returns > len(ray_waitables):
        raise ValueError(
            "num_returns cannot be greater than the number of ray_waitables provided to ray.wait."
        )
    if timeout != 0:
        _warn_in_loop("wait")
    if timeout is not None and timeout > _FOREVER_S:
        timeout = None
    done: Any = backend.wait(ray_waitables, num_returns, timeout)
    return cast("tuple[list[ObjectRef[R]], list[ObjectRef[R]]]", done)


def cancel(ray_waitable: ObjectRef[object], *, force: bool = False, recursive: bool = True) -> None:
    """Cancel the task that makes ``ray_waitable``; does nothing when it is done.

    Args:
        ray_waitable: the ref; ``get`` of it raises ``TaskCancelledError`` from then on.
        force: end the worker process instead of interrupting the function.
        recursive: cancel what the task has submitted, too.

    Raises:
        TypeError: not a ref.
    """
    if not isinstance(ray_waitable, ObjectRef):
        raise TypeError(
            "ray.cancel() only supported for object refs. For actors, try ray.kill(). "
            f"Got: {type(ray_waitable)}."
        )
    _current.require().cancel(ray_waitable, force=force, recursive=recursive)


# -- the machine ------------------------------------------------------------------------------


def _running() -> Backend:
    backend = _current.peek()
    if backend is None:
        raise RaySystemError(_NOT_STARTED)
    return backend


def cluster_resources() -> dict[str, float]:
    """All that tasks may use together, by name.

    Raises:
        RaySystemError: there is no session; this function does not start one.
    """
    return _running().cluster_resources()


def available_resources() -> dict[str, float]:
    """What no task uses now; names of which nothing is left are missing.

    Raises:
        RaySystemError: there is no session; this function does not start one.
    """
    return _running().available_resources()


def nodes() -> list[dict[str, Any]]:
    """The machines of the cluster: this one, in Ray's form.

    Raises:
        RaySystemError: there is no session; this function does not start one.
    """
    backend = _running()
    host = os.uname().nodename
    return [
        {
            "NodeID": backend.node_id,
            "Alive": True,
            "alive": True,
            "NodeName": host,
            "NodeManagerAddress": "127.0.0.1",
            "NodeManagerHostname": host,
            "NodeManagerPort": 0,
            "ObjectManagerPort": 0,
            "ObjectStoreSocketName": "",
            "RayletSocketName": "",
            "MetricsExportPort": 0,
            "MetricsAgentPort": 0,
            "DashboardAgentListenPort": 0,
            "RuntimeEnvAgentPort": 0,
            "DeathReason": 0,
            "DeathReasonMessage": "",
            "Resources": backend.cluster_resources(),
            "Labels": {},
        }
    ]
