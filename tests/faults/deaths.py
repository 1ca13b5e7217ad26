"""Ways to die, and objects that die when something is done to them.

Programs of the tests import this (as ``tests.faults.deaths``) and so do their workers: the
objects are pickled by reference, and it imports little.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PATH: Final = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
"""PYTHONPATH for programs that import this module."""


def segfault() -> None:
    faulthandler._sigsegv()  # type: ignore[attr-defined]  # exists to crash


def exit_with_0() -> None:
    os._exit(0)


def exit_with_1() -> None:
    os._exit(1)


def raise_system_exit() -> None:
    sys.exit(3)


def kill_hard() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    while True:
        signal.pause()


def exit_in_c() -> None:
    ctypes.CDLL(None).exit(7)


@dataclass(frozen=True, slots=True)
class Death:
    """A way to die and how the driver tells of it; "" where nobody dies of it."""

    die: Callable[[], None]
    told_as: str


DEATHS: Final = {
    "segfault": Death(segfault, "was killed by SIGSEGV"),
    "exit with 0": Death(exit_with_0, "exited with code 0"),
    "exit with 1": Death(exit_with_1, "exited with code 1"),
    "sys.exit": Death(raise_system_exit, ""),
    "SIGKILL": Death(kill_hard, "was killed by SIGKILL"),
    "exit in C": Death(exit_in_c, "exited with code 7"),
}


def die(name: str, marks: str) -> None:
    """Leave this process's number in a file and last words on stderr, and die."""
    with open(marks, "a", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    sys.stderr.write(f"last words: {name}\n")
    sys.stderr.flush()
    DEATHS[name].die()


class DiesWhenPickled:
    def __init__(self, name: str, marks: str) -> None:
        self.name, self.marks = name, marks

    def __reduce__(self) -> tuple[object, ...]:
        die(self.name, self.marks)
        raise AssertionError("not reached")


class DiesWhenUnpickled:
    def __init__(self, name: str, marks: str) -> None:
        self.name, self.marks = name, marks

    def __reduce__(self) -> tuple[object, ...]:
        return die, (self.name, self.marks)


class DiesWhenCollected:
    """Once it is armed; its copy in another process is."""

    def __init__(self, name: str, marks: str, *, armed: bool = False) -> None:
        self.name, self.marks, self.armed = name, marks, armed

    def __reduce__(self) -> tuple[object, ...]:
        return _armed, (self.name, self.marks)

    def __del__(self) -> None:
        if self.armed:
            die(self.name, self.marks)


def _armed(name: str, marks: str) -> DiesWhenCollected:
    return DiesWhenCollected(name, marks, armed=True)
