"""How much memory is in use, who holds it, and whether the kernel has ended somebody for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from taskloom._machine import CGROUP, PROC, cgroup_directories

# Files of the page cache and freeable parts of the kernel's own: the kernel takes them back first.
_RECLAIMABLE_V1: Final = ("total_inactive_file", "total_active_file")
_RECLAIMABLE_V2: Final = ("inactive_file", "active_file", "slab_reclaimable")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """What was in use at one moment, where it is tightest.

    Attributes:
        used_bytes: what cannot be taken back without ending somebody.
        limit_bytes: how much there may be.
        where: whose limit it is, in words.
    """

    used_bytes: int
    limit_bytes: int
    where: str

    @property
    def share(self) -> float:
        return self.used_bytes / self.limit_bytes

    def __str__(self) -> str:
        return (
            f"{gib(self.used_bytes)} of {gib(self.limit_bytes)} ({self.share:.1%}) "
            f"were in use in {self.where}"
        )


class Process(NamedTuple):
    """One process; ``held_bytes`` is what only its end would bring back."""

    pid: int
    group: int
    name: str
    rss_bytes: int
    held_bytes: int


class MemoryUsage:
    """Reads ``/proc`` and the control groups around this process, of either version.

    Args:
        proc, cgroup: where they are mounted.
    """

    def __init__(self, proc: str = PROC, cgroup: str = CGROUP) -> None:
        self._proc = proc
        self._directories = [
            directory
            for directory in cgroup_directories("memory", proc, cgroup)
            if os.path.isdir(directory)
        ]

    def read(self) -> Usage | None:
        """The use of the machine or of a container around, whichever is fuller."""
        usages = [self._of_machine(), *map(_of_cgroup, self._directories)]
        known = [usage for usage in usages if usage is not None]
        return max(known, key=lambda usage: usage.share, default=None)

    def kernel_kills(self) -> int:
        """How many processes of this container the kernel has ended for memory so far."""
        for directory in self._directories:
            for file in ("memory.events", "memory.oom_control"):
                count = _words(f"{directory}/{file}").get("oom_kill")
                if count is not None:
                    return count
        return _words(f"{self._proc}/vmstat").get("oom_kill", 0)

    def processes(self) -> list[Process]:
        """All processes that can be seen, the largest first."""
        try:
            pids = [int(name) for name in os.listdir(self._proc) if name.isdigit()]
        except OSError:
            return []
        found = [process for pid in pids if (process := self._process(pid)) is not None]
        found.sort(key=lambda process: -process.rss_bytes)
        return found

    def rss_bytes(self, pid: int) -> int:
        """What one process holds, what it shares included; 0 when it is gone."""
        sizes = _read(f"{self._proc}/{pid}/statm").split()
        return int(sizes[1]) * _PAGE_BYTES if len(sizes) > 1 else 0

    def _process(self, pid: int) -> Process | None:
        # "12 (a (strange) name) S parent group ..." and "size resident shared ..."
        head, _, tail = _read(f"{self._proc}/{pid}/stat").rpartition(")")
        sizes = _read(f"{self._proc}/{pid}/statm").split()
        fields = tail.split()
        if len(fields) < 3 or len(sizes) < 3:
            return None  # it has just ended, or is not for us to see
        resident, shared = int(sizes[1]), int(sizes[2])
        return Process(
            pid=pid,
            group=int(fields[2]),
            name="".join(c if c.isprintable() else "?" for c in head.partition("(")[2]),
            rss_bytes=resident * _PAGE_BYTES,
            # What it shares with others, the object store for one, stays when it ends.
            held_bytes=max(0, resident - shared) * _PAGE_BYTES,
        )

    def _of_machine(self) -> Usage | None:
        sizes = _words(f"{self._proc}/meminfo")
        total, available = sizes.get("MemTotal:"), sizes.get("MemAvailable:")
        if not total or available is None:
            return None
        return Usage((total - available) * 1024, total * 1024, "this machine")


def _of_cgroup(directory: str) -> Usage | None:
    """What a control group uses; None when it has no limit."""
    limit = _number(f"{directory}/memory.max")
    used_file = "memory.current"
    reclaimable: tuple[str, ...] = _RECLAIMABLE_V2
    if limit is None:
        limit = _number(f"{directory}/memory.limit_in_bytes")
        used_file, reclaimable = "memory.usage_in_bytes", _RECLAIMABLE_V1
    if not limit or limit >= 1 << 60:  # version 1 says "no limit" with a very large number
        return None
    used = _number(f"{directory}/{used_file}")
    if used is None:
        return None
    stat = _words(f"{directory}/memory.stat")
    used -= sum(stat.get(name, 0) for name in reclaimable)
    return Usage(max(0, used), limit, f"the control group {directory}")


def tell_largest(processes: Iterable[Process], names: dict[int, str], count: int = 5) -> str:
    """The largest processes, one line each.

    Args:
        processes: the largest first.
        names: better names than the kernel's, by pid.
        count: how many lines.
    """
    lines = [
        f"  {process.pid:>8}  {gib(process.rss_bytes):>10}  {names.get(process.pid, process.name)}"
        for process, _ in zip(processes, range(count), strict=False)
    ]
    return "\n".join(lines)


def gib(size_bytes: int) -> str:
    """A size as people read it."""
    if size_bytes < 1 << 30:
        return f"{size_bytes / (1 << 20):.0f} MiB"
    return f"{size_bytes / (1 << 30):.2f} GiB"


def _words(path: str) -> dict[str, int]:
    """The lines "name number" of a file."""
    found: dict[str, int] = {}
    for line in _read(path).splitlines():
        name, _, rest = line.partition(" ")
        number = rest.split(maxsplit=1)
        if number and number[0].isdigit():
            found[name] = int(number[0])
    return found


def _number(path: str) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
