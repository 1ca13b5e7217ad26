"""Which processes belong to a measured program, and how much memory they hold together.

A program is started with a mark in its environment, which all its processes inherit, also those
that have left its process group or have lost their parent.  A process that gives itself a new
title may write over the mark: so the descendants of those who carry it count, too.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

MARK = "BENCHMARK_PROGRAM"
"""The environment variable that carries the mark."""

_PROC = Path("/proc")


def marked(mark: str, *, variable: str = MARK) -> list[int]:
    """The pids of all processes that were started with ``variable=mark``, and their descendants."""
    needle = f"\0{variable}={mark}\0".encode()
    found: list[int] = []
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        pid = int(entry.name)
        try:
            children.setdefault(int(_stat(pid)[1]), []).append(pid)
            environ = b"\0" + (entry / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or it is somebody else's
        if needle in environ:
            found.append(pid)
    for pid in found:  # grows while it is walked
        found.extend(child for child in children.get(pid, ()) if child not in found)
    return found


def pss_bytes(pid: int) -> int:
    """The proportional set size: shared pages are divided among those who share them."""
    try:
        rollup = (_PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0  # it has ended meanwhile, or it is a zombie, which holds no memory
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def anonymous_bytes(pid: int) -> int:
    """Resident memory that is a process's own: heap and stacks, no files, nothing shared."""
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"the kernel does not tell the anonymous memory of process {pid}")


def voluntary_switches(pids: Iterable[int]) -> dict[str, int]:
    """How often each thread of some processes has gone to sleep: as often as it was woken."""
    switches = {}
    for pid in pids:
        for thread in (_PROC / str(pid) / "task").glob("*"):
            try:
                status = (thread / "status").read_text()
            except OSError:
                continue  # it has ended
            for line in status.splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    switches[thread.name] = int(line.split()[1])
    return switches


def children_pss_bytes(root: int) -> int:
    """The proportional set sizes of all descendants of a process together."""
    return sum(pss_bytes(pid) for pid in descendants(root))


def descendants(root: int) -> list[int]:
    """The children of a process, their children, and so on."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            try:
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
            except OSError:
                continue  # it has ended
    below = list(children.get(root, ()))
    for pid in below:  # grows while it is walked
        below.extend(children.get(pid, ()))
    return below


class CpuMeter:
    """Processor time that this process and its descendants use in a ``with`` block.

    What other programs do on the machine hardly changes it, which cannot be said of the clock.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._before: dict[int, int] = {}

    def __enter__(self) -> Self:
        pids = [os.getpid(), *descendants(os.getpid())]
        self._before = {pid: _cpu_ns(pid) for pid in pids}
        return self

    def __exit__(self, *_: object) -> None:
        used_ns = sum(_cpu_ns(pid) - before for pid, before in self._before.items())
        new = set(descendants(os.getpid())) - self._before.keys()
        self.seconds = (used_ns + sum(map(_cpu_ns, new))) / 1e9


def _cpu_ns(pid: int) -> int:
    total = 0
    for thread in (_PROC / str(pid) / "task").glob("*"):
        try:
            total += int((thread / "schedstat").read_text().split()[0])
        except OSError:
            continue  # it has ended
    return total


def wait_for_end(mark: str, *, variable: str = MARK, timeout_s: float) -> list[int]:
    """Wait until no process carries the mark; the pids of those that still do after that time."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.01
    while left := [pid for pid in marked(mark, variable=variable) if not _is_zombie(pid)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(pause_s)  # strangers' ends send no signal: there is nothing to wait on
        pause_s = min(pause_s * 2, 0.2)
    return []


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _is_zombie(pid: int) -> bool:
    try:
        return _stat(pid)[0] == "Z"
    except OSError:
        return True


def _stat(pid: int) -> list[str]:
    """State, parent, ... of a process: what follows its name, which may contain anything."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
