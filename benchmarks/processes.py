"""Which processes belong to a measured program, and how much memory they hold together.

A program is started with a mark in its environment, which all its processes inherit, also those
that have left its process group or have lost their parent.  A process that gives itself a new
title may write over the mark: so the descendants of those who carry it count, too.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

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
