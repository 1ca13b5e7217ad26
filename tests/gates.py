"""Meeting points of tests and tasks: files, so that they work between processes.

Workers import this module, so it imports little.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

LIMIT_S = 60.0
"""How long anything may take before a test gives up; machines are busy with other things."""


def eventually(condition: Callable[[], object], timeout: float = LIMIT_S) -> bool:
    """Wait until ``condition()`` is true; False when it is not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


class Gate:
    """Holds tasks until the test opens it, and tells the test who has come.

    ::

        gate = Gate(tmp_path)
        ref = f.remote(gate)            # f calls gate.enter("x")
        gate.wait_for("x")              # f is inside now
        gate.open()                     # and goes on

    Args:
        directory: one that exists and is empty.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = str(directory)

    def enter(self, name: str = "task", timeout: float = 60.0) -> None:
        """Come in as ``name`` and stay until the gate is open.

        Raises:
            TimeoutError: nobody opens it.
        """
        self.note(name)
        self.stay(timeout)

    def stay(self, timeout: float = 60.0) -> None:
        """Wait until the gate is open."""
        path = os.path.join(self._directory, "open")
        if not eventually(lambda: os.path.exists(path), timeout):
            raise TimeoutError(f"nobody opened the gate in {timeout} s")

    def note(self, name: str) -> None:
        """Leave one more mark under ``name``."""
        with open(os.path.join(self._directory, f"{name}.marks"), "a", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")

    def pids(self, name: str = "task") -> list[int]:
        """The processes of the marks under ``name``, in the order in which they came."""
        try:
            text = Path(self._directory, f"{name}.marks").read_text(encoding="ascii")
        except FileNotFoundError:
            return []
        return [int(line) for line in text.splitlines()]

    def count(self, name: str = "task") -> int:
        return len(self.pids(name))

    def wait_for(self, name: str = "task", count: int = 1) -> list[int]:
        """Wait until ``count`` marks are there; their processes."""
        assert eventually(lambda: self.count(name) >= count), (
            f"{self.count(name)} of {count} came to {name!r}"
        )
        return self.pids(name)

    def open(self) -> None:
        Path(self._directory, "open").touch()
