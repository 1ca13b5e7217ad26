"""Arguments of ``init`` and ``TASKLOOM_*`` variables, checked and made into one frozen Config.

Every variable is also read under Ray's name: ``RAY_NAMESPACE`` where there is no
``TASKLOOM_NAMESPACE``.  Ray's arguments for clusters and its dashboard are accepted, so that a
program need not be changed; each that is given leaves a debug line in the log.  Nothing is ever
read from a temporary directory: a session knows only what it was told.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Final, cast

from taskloom._machine import find_gpus, usable_cpus, usable_memory_bytes, visible_gpus
from taskloom._memory_settings import SYSTEM_CONFIG_NAMES, MemorySettings, read_memory_settings

_GIB: Final = 1 << 30
MIN_OBJECT_STORE_BYTES: Final = 75 * 1024 * 1024
MAX_OBJECT_STORE_BYTES: Final = 200 * _GIB
OBJECT_STORE_SHARE: Final = 0.3
MEMORY_SHARE: Final = 0.7
IDLE_WORKER_TIMEOUT_S: Final = 60.0
WORKER_START_TIMEOUT_S: Final = 60.0
MAX_EXTRA_WORKERS: Final = 64
CANCEL_GRACE_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of a session.

    Attributes:
        num_cpus, num_gpus, memory: the resources that tasks share; memory in bytes.
        gpu_ids: the names of the GPUs, for ``CUDA_VISIBLE_DEVICES``.
        resources: the user's own resources, by name.
        object_store_memory: bytes for large values.
        spill_directory: where values go when the store is full; None for the default.
        temp_dir: where files of the session go; None for the default.
        idle_worker_timeout: seconds after which a worker without work ends; None for never.
        worker_start_timeout: seconds after which a worker that is not ready counts as failed.
        max_extra_workers: how many workers may stand in for those blocked in ``get``.
        record_ref_creation_sites: ``memory()`` says where refs were made.
        preload: modules that workers find imported when they start.
        await_cancels: cancelling an ``await`` of a ref may cancel the task.
        cancel_grace: seconds that a task has to end when it was told to; None for ever.
        memory_monitor: when workers are ended because memory runs out.
        runtime_env: empty for now.
    """

    num_cpus: float
    num_gpus: float = 0
    gpu_ids: tuple[str, ...] = ()
    memory: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    object_store_memory: int = MIN_OBJECT_STORE_BYTES
    spill_directory: str | None = None
    temp_dir: str | None = None
    local_mode: bool = False
    namespace: str = ""
    log_to_driver: bool = True
    color_prefix: bool | None = None  # None: when the driver's stream is a terminal
    worker_log_prefix: bool = True
    ignore_unhandled_errors: bool = False
    warn_blocking_get: bool = True
    record_ref_creation_sites: bool = False
    preload: tuple[str, ...] = ()
    idle_worker_timeout: float | None = IDLE_WORKER_TIMEOUT_S
    worker_start_timeout: float = WORKER_START_TIMEOUT_S
    max_extra_workers: int = MAX_EXTRA_WORKERS
    await_cancels: bool = True
    cancel_grace: float | None = CANCEL_GRACE_S
    memory_monitor: MemorySettings = field(default_factory=MemorySettings)
    runtime_env: Mapping[str, object] = field(default_factory=dict)


# Arguments that mean nothing on one machine, with the value that says nothing (INIT-1).
_CLUSTER_ARGUMENTS: Final[dict[str, object]] = {
    "include_dashboard": None,
    "dashboard_host": "127.0.0.1",
    "dashboard_port": None,
    "job_config": None,
    "configure_logging": True,
    "logging_level": "info",
    "logging_format": None,
    "logging_config": None,
    "enable_resource_isolation": False,
    "cgroup_path": None,
    "system_reserved_cpu": None,
    "system_reserved_memory": None,
    "proxy_server_url": None,
    "_enable_object_reconstruction": False,
    "_plasma_directory": None,
    "_node_ip_address": None,
    "_node_name": None,
    "_driver_object_store_memory": None,
    "_redis_username": None,
    "_redis_password": None,
    "_redis_max_memory": None,
    "_system_config": None,
    "_metrics_export_port": None,
    "_tracing_startup_hook": None,
    "_metrics_agent_port": None,
    "_cluster_id": None,
    "_skip_env_hook": False,
}


def make_config(  # the names are Ray's and ours; api.init passes what it was given
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    object_store_memory: float | None = None,
    local_mode: bool = False,
    log_to_driver: bool | None = None,
    namespace: str | None = None,
    runtime_env: Mapping[str, object] | None = None,
    object_spilling_directory: str | None = None,
    _temp_dir: str | None = None,
    _memory: float | None = None,
    preload: Sequence[str] = (),
    idle_worker_timeout: float | None = None,
    max_extra_workers: int | None = None,
    await_cancels: bool | None = None,
    cancel_grace: float | None = None,
    **others: object,
) -> Config:
    """Check the arguments of ``init`` and complete them with the environment and the machine.

    Args:
        idle_worker_timeout, cancel_grace: ``math.inf`` for never; None for the default.

    The others are described in ``taskloom.init``.

    Raises:
        RuntimeError: an argument is unknown.
        TypeError, ValueError: an argument has the wrong type, or makes no sense.
    """
    unknown = [name for name in others if name not in _CLUSTER_ARGUMENTS]
    if unknown:
        raise RuntimeError(f"Unknown keyword argument(s): {', '.join(unknown)}")
    system_config = _mapping("_system_config", others.get("_system_config"))
    if system_config.keys() <= SYSTEM_CONFIG_NAMES:
        others.pop("_system_config", None)
    for name, value in others.items():
        if value is not None and value != _CLUSTER_ARGUMENTS[name]:
            log_debug("init(%s=%r) has no effect on one machine", name, value)
    if runtime_env:
        raise NotImplementedError(
            f"init(runtime_env={dict(runtime_env)!r}): taskloom has no runtime environments yet"
        )
    total_memory = usable_memory_bytes()
    gpu_ids = find_gpus()
    gpus = _amount("num_gpus", num_gpus)
    if gpus is None:
        gpus = len(gpu_ids)
    elif gpus > len(gpu_ids):
        if visible_gpus() is not None:
            raise ValueError(
                f"num_gpus={gpus!r}, but CUDA_VISIBLE_DEVICES contains only {list(gpu_ids)}"
            )
        # More than can be seen: the user knows better, or tries out a schedule without them.
        gpu_ids = tuple(map(str, range(math.ceil(gpus))))
    cpus = _amount("num_cpus", num_cpus)
    memory = _amount("_memory", _memory)
    store = _amount("object_store_memory", object_store_memory)
    if store is not None and store < 1:
        raise ValueError(f"object_store_memory must be at least 1 byte, got {store!r}")
    if log_to_driver is None:
        log_to_driver = env_flag("LOG_TO_DRIVER", default=True)
    return Config(
        num_cpus=usable_cpus() if cpus is None else cpus,
        num_gpus=gpus,
        gpu_ids=gpu_ids[: math.ceil(gpus)],
        memory=int(total_memory * MEMORY_SHARE if memory is None else memory),
        resources=_check_resources(resources),
        labels=_check_labels(labels),
        object_store_memory=int(_default_store(total_memory) if store is None else store),
        spill_directory=_path("object_spilling_directory", object_spilling_directory),
        temp_dir=_path("_temp_dir", _temp_dir),
        local_mode=_flag("local_mode", local_mode),
        namespace=_check_namespace(namespace),
        log_to_driver=_flag("log_to_driver", log_to_driver),
        color_prefix=env_flag("COLOR_PREFIX", default=True) if env("COLOR_PREFIX") else None,
        worker_log_prefix=not env_flag("DISABLE_WORKER_LOG_PREFIX", default=False),
        ignore_unhandled_errors=env_flag("IGNORE_UNHANDLED_ERRORS", default=False),
        warn_blocking_get=env_flag("WARN_BLOCKING_GET_INSIDE_ASYNC", default=True),
        record_ref_creation_sites=env_flag("RECORD_REF_CREATION_SITES", default=False),
        preload=_check_preload(preload),
        idle_worker_timeout=_seconds(
            "idle_worker_timeout", idle_worker_timeout, IDLE_WORKER_TIMEOUT_S
        ),
        worker_start_timeout=_start_timeout(),
        max_extra_workers=_check_extra(max_extra_workers),
        await_cancels=_flag("await_cancels", True if await_cancels is None else await_cancels),
        cancel_grace=_seconds("cancel_grace", cancel_grace, CANCEL_GRACE_S),
        memory_monitor=read_memory_settings(system_config, env),
    )


# -- checks -----------------------------------------------------------------------------------


def _amount(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or None, got {value!r}")
    if not 0 <= value < math.inf:  # NaN, too
        raise ValueError(f"{name} must be >= 0 and finite, got {value!r}")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def _path(name: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    raise TypeError(f"{name} must be a path or None, got {value!r}")


def _check_resources(resources: object) -> dict[str, float]:
    checked: dict[str, float] = {}
    for name, value in _mapping("resources", resources).items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"the names in resources must be non-empty strings, got {name!r}")
        if name in ("CPU", "GPU", "memory", "object_store_memory"):
            raise ValueError(
                f"resources must not contain {name!r}: use num_cpus, num_gpus or "
                "object_store_memory of init()"
            )
        amount = _amount(f"resources[{name!r}]", value)
        if amount is None:
            raise TypeError(f"resources[{name!r}] must be a number, got None")
        checked[name] = amount
    return checked


def _check_labels(labels: object) -> dict[str, str]:
    checked: dict[str, str] = {}
    for name, value in _mapping("labels", labels).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"labels must map strings to strings, got {name!r}: {value!r}")
        checked[name] = value
    return checked


def _mapping(name: str, value: object) -> Mapping[object, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict or None, got {value!r}")
    return cast("Mapping[object, object]", value)


def _check_namespace(namespace: object) -> str:
    if namespace is None:
        namespace = env("NAMESPACE")
    if namespace is None:
        return os.urandom(16).hex()  # anonymous: nobody else can name it
    if not isinstance(namespace, str):
        raise TypeError(f"namespace must be a string or None, got {namespace!r}")
    if not namespace:
        raise ValueError("namespace must not be empty; leave it out for an anonymous one")
    return namespace


def _check_preload(preload: object) -> tuple[str, ...]:
    if isinstance(preload, str) or not isinstance(preload, Sequence):
        raise TypeError(f"preload must be a list of module names, got {preload!r}")
    for name in preload:
        if not isinstance(name, str) or not all(map(str.isidentifier, name.split("."))):
            raise ValueError(f"preload must hold names of modules, got {name!r}")
    return tuple(preload)


def _seconds(name: str, value: object, default: float) -> float | None:
    """None where it is infinite."""
    if value is None:
        return default
    if value == math.inf:
        return None
    return _amount(name, value)


def _start_timeout() -> float:
    """Ray has no argument for it either, but this variable."""
    text = env("worker_register_timeout_seconds")
    if text is None:
        return WORKER_START_TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(
            f"TASKLOOM_worker_register_timeout_seconds must be a number > 0, got {text!r}"
        )
    return seconds


def _check_extra(workers: object) -> int:
    if workers is None:
        return MAX_EXTRA_WORKERS
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"max_extra_workers must be an int, got {workers!r}")
    if workers < 0:
        raise ValueError(f"max_extra_workers must be >= 0, got {workers!r}")
    return workers


def _default_store(memory_bytes: int) -> float:
    share = memory_bytes * OBJECT_STORE_SHARE
    return min(max(share, MIN_OBJECT_STORE_BYTES), MAX_OBJECT_STORE_BYTES)


# -- the environment --------------------------------------------------------------------------


def env(name: str) -> str | None:
    """``TASKLOOM_<name>``, else ``RAY_<name>``, else None.  Empty ones count as not set."""
    return os.environ.get(f"TASKLOOM_{name}") or os.environ.get(f"RAY_{name}") or None


def env_flag(name: str, *, default: bool) -> bool:
    """A variable that says yes or no.

    Raises:
        ValueError: it says something else.
    """
    value = env(name)
    if value is None:
        return default
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    if value.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"the variable TASKLOOM_{name} must be 0 or 1, got {value!r}")


def env_int(name: str, default: int) -> int:
    """A variable that holds a whole number.

    Raises:
        ValueError: it does not.
    """
    value = env(name)
    if value is None:
        return default
    try:
        return int(value)
    except ValueError:
        raise ValueError(
            f"the variable TASKLOOM_{name} must be a whole number, got {value!r}"
        ) from None


def log_debug(text: str, *args: object) -> None:
    """One debug line in the log of taskloom."""
    # Loaded here: only those who set such an option need the module.
    import_module("logging").getLogger("taskloom").debug(text, *args)
