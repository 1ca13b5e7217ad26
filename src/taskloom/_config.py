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

_GIB: Final = 1 << 30
MIN_OBJECT_STORE_BYTES: Final = 75 * 1024 * 1024
MAX_OBJECT_STORE_BYTES: Final = 200 * _GIB
OBJECT_STORE_SHARE: Final = 0.3
MEMORY_SHARE: Final = 0.7
IDLE_WORKER_TIMEOUT_S: Final = 60.0
MAX_EXTRA_WORKERS: Final = 64


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
        max_extra_workers: how many workers may stand in for those blocked in ``get``.
        preload: modules that workers find imported when they start.
        await_cancels: cancelling an ``await`` of a ref may cancel the task.
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
    preload: tuple[str, ...] = ()
    idle_worker_timeout: float | None = IDLE_WORKER_TIMEOUT_S
    max_extra_workers: int = MAX_EXTRA_WORKERS
    await_cancels: bool = True
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
    address: str | None = None,
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
    **others: object,
) -> Config:
    """Check the arguments of ``init`` and complete them with the environment and the machine.

    Args:
        idle_worker_timeout: ``math.inf`` for never; None for the default.

    The others are described in ``taskloom.init``.

    Raises:
        RuntimeError: an argument is unknown.
        TypeError, ValueError: an argument has the wrong type, or makes no sense.
        ConnectionError, NotImplementedError: an address of anything but this process.
    """
    unknown = [name for name in others if name not in _CLUSTER_ARGUMENTS]
    if unknown:
        raise RuntimeError(f"Unknown keyword argument(s): {', '.join(unknown)}")
    check_address(address)
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
        preload=_check_preload(preload),
        idle_worker_timeout=_check_idle(idle_worker_timeout),
        max_extra_workers=_check_extra(max_extra_workers),
        await_cancels=_flag("await_cancels", True if await_cancels is None else await_cancels),
    )


# -- checks -----------------------------------------------------------------------------------


def check_address(address: object) -> None:
    """Only the embedded engine has an address for now: None or "local".

    The variable ``TASKLOOM_ADDRESS`` (not ``RAY_ADDRESS``, which names a cluster of Ray's) counts
    where no address is given.

    Raises:
        TypeError: no string.
        ConnectionError: "auto": there is never a cluster to be found.
        NotImplementedError: another backend.
        ValueError: nothing that is known.
    """
    if address is None:
        address = os.environ.get("TASKLOOM_ADDRESS") or "local"
    if not isinstance(address, str):
        raise TypeError(f"address must be a string or None, got {address!r}")
    if address == "local":
        return
    if address == "auto":
        raise ConnectionError(
            "address='auto' asks for a running cluster, and taskloom never attaches to one that "
            "it happens to find. Use address=None or 'local' for the engine in this process"
        )
    if address.startswith(("ray", "dask")):
        raise NotImplementedError(f"address={address!r}: backends on clusters are not there yet")
    raise ValueError(f"address must be None or 'local', got {address!r}")


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


def _check_idle(timeout: object) -> float | None:
    if timeout is None:
        return IDLE_WORKER_TIMEOUT_S
    if timeout == math.inf:
        return None
    return _amount("idle_worker_timeout", timeout)


def _check_extra(workers: object) -> int:
    if workers is None:
        return MAX_EXTRA_WORKERS
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"max_extra_workers must be an int, got {workers!r}")
    if workers < 0:
        raise ValueError(f"max_extra_workers must be >= 0, got {workers!r}")
    return workers


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


# -- the machine ------------------------------------------------------------------------------

_PROC: Final = "/proc"
_CGROUP: Final = "/sys/fs/cgroup"


def usable_cpus(proc: str = _PROC, cgroup: str = _CGROUP) -> int:
    """How many CPUs this process may use: its affinity, and the quota of its containers.

    A quota of 1.5 CPUs counts as 2: tasks are not to be kept from the half.
    """
    try:
        cpus = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on Linux
        cpus = os.cpu_count() or 1
    for directory in _cgroup_directories("cpu", proc, cgroup):
        quota = _cpu_quota(directory)
        if quota is not None:
            cpus = min(cpus, math.ceil(quota))
    return max(1, cpus)


def _cpu_quota(directory: str) -> float | None:
    words = _read(f"{directory}/cpu.max").split()  # "150000 100000" or "max 100000"
    if len(words) != 2:
        words = [
            _read(f"{directory}/cpu.cfs_quota_us").strip(),
            _read(f"{directory}/cpu.cfs_period_us").strip(),
        ]
    quota, period = map(_number, words)
    return quota / period if quota and period else None


def usable_memory_bytes(proc: str = _PROC, cgroup: str = _CGROUP) -> int:
    """Memory that is free for use now, and not more than the limits of the containers."""
    usable = 0
    for line in _read(f"{proc}/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            usable = int(line.split()[1]) * 1024
    if not usable:
        try:
            usable = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            usable = _GIB
    for directory in _cgroup_directories("memory", proc, cgroup):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(_read(f"{directory}/{name}").strip())
            if limit:
                usable = min(usable, limit)
    return usable


def _default_store(memory_bytes: int) -> float:
    share = memory_bytes * OBJECT_STORE_SHARE
    return min(max(share, MIN_OBJECT_STORE_BYTES), MAX_OBJECT_STORE_BYTES)


def find_gpus(proc: str = _PROC) -> tuple[str, ...]:
    """Names of the GPUs: those in ``CUDA_VISIBLE_DEVICES``, else numbers."""
    visible = visible_gpus()
    if visible is not None:
        return visible
    try:
        return tuple(map(str, range(len(os.listdir(f"{proc}/driver/nvidia/gpus")))))
    except OSError:
        return ()


def visible_gpus() -> tuple[str, ...] | None:
    """The GPUs in ``CUDA_VISIBLE_DEVICES``, or None when it is not set."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    ids: list[str] = []
    for name in map(str.strip, value.split(",")):
        if name in ("", "-1", "NoDevFiles"):
            break  # as CUDA does: the first that does not exist hides the rest
        ids.append(name)
    return tuple(ids)


def _cgroup_directories(controller: str, proc: str, root: str) -> list[str]:
    """Where limits on this process may stand: its own group and those around it."""
    found: list[str] = []
    for line in _read(f"{proc}/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2; beside version 1 it is mounted as "unified"
            mounts = [root, f"{root}/unified"]
        elif controller in controllers.split(","):
            mounts = [f"{root}/{controllers}", f"{root}/{controller}"]
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for mount in mounts:
            # In a container the path may be that of the host: what does not exist says nothing.
            found += ["/".join([mount, *parts[:n]]) for n in range(len(parts), -1, -1)]
    return found


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
