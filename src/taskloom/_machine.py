"""What this machine has, and what its containers leave of it: CPUs, memory, GPUs."""

from __future__ import annotations

import math
import os
from typing import Final

_GIB: Final = 1 << 30
PROC: Final = "/proc"
CGROUP: Final = "/sys/fs/cgroup"


def usable_cpus(proc: str = PROC, cgroup: str = CGROUP) -> int:
    """How many CPUs this process may use: its affinity, and the quota of its containers.

    A quota of 1.5 CPUs counts as 2: tasks are not to be kept from the half.
    """
    try:
        cpus = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on Linux
        cpus = os.cpu_count() or 1
    for directory in cgroup_directories("cpu", proc, cgroup):
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


def usable_memory_bytes(proc: str = PROC, cgroup: str = CGROUP) -> int:
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
    for directory in cgroup_directories("memory", proc, cgroup):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(_read(f"{directory}/{name}").strip())
            if limit:
                usable = min(usable, limit)
    return usable


def find_gpus(proc: str = PROC) -> tuple[str, ...]:
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


def cgroup_directories(controller: str, proc: str, root: str) -> list[str]:
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
