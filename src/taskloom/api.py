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
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

from taskloom import _current
from taskloom._blocking import FOREVER_S, forget_warnings, seconds, warn_in_loop
from taskloom._config import env_flag, make_config
from taskloom._context import RayContext
from taskloom.backends._addresses import (
    check_connect_timeout,
    parse_address,
    refuse_local_arguments,
)
from taskloom.exceptions import RaySystemError
from taskloom.generator import ObjectRefGenerator, call_of, waitable
from taskloom.ref import ObjectRef

if TYPE_CHECKING:
    from taskloom._memory import MemoryReport
    from taskloom.backends.base import Backend

R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")

_NOT_STARTED: Final = "Ray has not been started yet. You can start Ray with 'ray.init()'."

_owner_pid: int | None = None  # the process whose exit ends the session


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
    cancel_grace: float | None = None,
    connect_timeout: float | None = None,
    **kwargs: Any,
) -> RayContext:
    """Start a session: the engine on a thread of its own and its workers, or a cluster's.

    Calling it is optional: the first ``.remote()``, ``get``, ``put`` or ``wait`` does.

    Args:
        address: None or "local": the engine in this process; nothing else is looked for.  "ray",
            "ray://host:10001", "ray+gcs://host:6379", "dask", "dask://host:8786" and
            "dask+tls://host:8786": a cluster (see ``docs/backends.md``).
            Where it is None, ``TASKLOOM_ADDRESS`` counts.
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
        cancel_grace: seconds that a task has to end after ``cancel`` or its ``timeout=`` has
            interrupted it; then its worker is killed.  5 by default; ``math.inf``: never.
        connect_timeout: seconds that a running cluster has to answer; 10 by default.

    The other arguments are Ray's, for clusters; they are accepted and have no effect here.

    Returns:
        The session's facts; ``with`` and ``async with`` it to end the session at the end.

    Raises:
        RuntimeError: there is a session already, or an argument is unknown.
        ValueError: an argument is out of range, or describes this machine although the address
            is that of a running cluster.
        ConnectionError: no cluster answers at the address, or it does not fit.
        ImportError: the library of that cluster is not installed.
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
        where = parse_address(arguments.pop("address"))
        refuse_local_arguments(where, arguments)
        timeout_s = check_connect_timeout(arguments.pop("connect_timeout"))
        del arguments["ignore_reinit_error"]
        config = make_config(**arguments)
        # Loaded here: a program that only imports remote functions needs no engine.
        if where.kind == "local":
            name = "inline" if config.local_mode else "local_start"
            backend = import_module(f"taskloom.backends.{name}").start(config)
        else:
            module = import_module(f"taskloom.backends.{where.kind}")
            backend = module.start(config, where, arguments, timeout_s)
        _current.set_backend(backend)
        _end_with_process()
        return RayContext(backend, shutdown)


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
            forget_warnings()


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
    if isinstance(object_refs, ObjectRefGenerator):
        return object_refs  # as Ray does
    if isinstance(object_refs, ObjectRef):
        warn_in_loop("get()", "'await ref'")
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
        warn_in_loop("get()", "'await ref'")
        values = backend.get(object_refs, timeout_s)
    return tuple(values) if isinstance(object_refs, tuple) else values


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is None or timeout == -1:
        return None
    timeout_s = seconds(timeout)
    if not timeout_s >= 0:  # so that NaN is refused too
        raise ValueError(
            f"timeout must be None, -1 (for ever) or a number of seconds >= 0, got {timeout!r}"
        )
    return None if timeout_s > FOREVER_S else timeout_s


def put(value: R, *, _owner: object = None, _tensor_transport: object = None) -> ObjectRef[R]:
    """Keep a snapshot of ``value``, to be passed to many tasks or fetched later.

    Raises:
        TypeError: it is a ref already, or it cannot be pickled.
        ValueError: ``_owner`` or ``_tensor_transport`` is given.
    """
    if issubclass(type(value), ObjectRef):
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
    ray_waitables: list[R],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[R], list[R]]:
    """Block until ``num_returns`` of the refs are done or time is up.

    A task that failed or was cancelled is done.  Values are not fetched.

    Args:
        ray_waitables: a list of different refs, and of generators of refs.  Such a one is done
            when its next item is there, or its end.
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
    if timeout is not None:
        timeout = seconds(timeout)
        if not timeout >= 0:
            raise ValueError(f"The 'timeout' argument must be nonnegative. Received {timeout}")
    for ref in ray_waitables:
        if not isinstance(ref, ObjectRef | ObjectRefGenerator):
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
        warn_in_loop("wait()", "'await wait_async(refs)'")
    if timeout is not None and timeout > FOREVER_S:
        timeout = None
    refs = {waitable(one): one for one in ray_waitables}
    done = backend.wait(list(refs), num_returns, timeout)
    ready, rest = ([refs[ref] for ref in half] for half in done)
    return ready, rest


def cancel(
    ray_waitable: ObjectRef[object] | ObjectRefGenerator[object],
    *,
    force: bool = False,
    recursive: bool = True,
) -> None:
    """Cancel the task that makes ``ray_waitable``; does nothing when it is done.

    Args:
        ray_waitable: the ref; ``get`` of it raises ``TaskCancelledError`` from then on.
        force: end the worker process instead of interrupting the function.
        recursive: cancel what the task has submitted, too.

    Raises:
        TypeError: not a ref.
    """
    if not isinstance(ray_waitable, ObjectRef | ObjectRefGenerator):
        raise TypeError(
            "ray.cancel() only supported for object refs. For actors, try ray.kill(). "
            f"Got: {type(ray_waitable)}."
        )
    _current.require().cancel(call_of(ray_waitable), force=force, recursive=recursive)


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


def memory() -> MemoryReport:
    """All objects of the session: their size, where they are, and who keeps them.

    Works in the driver and in tasks; ``print(taskloom.memory())`` shows a table (``ray memory``).
    With ``TASKLOOM_RECORD_REF_CREATION_SITES=1`` it says where refs were made in the driver.

    Raises:
        RaySystemError: there is no session; this function does not start one.
    """
    return _running().memory()


def available_resources() -> dict[str, float]:
    """What no task uses now; names of which nothing is left are missing.

    Raises:
        RaySystemError: there is no session; this function does not start one.
    """
    return _running().available_resources()


def nodes() -> list[dict[str, Any]]:
    """The machines of the cluster, in Ray's form; without a cluster this one.

    Raises:
        RaySystemError: there is no session; this function does not start one.
    """
    backend = _running()
    found = backend.nodes()
    if found is not None:
        return found
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
