"""The worker processes of a Dask cluster of this program's own.

Not Dask's ``LocalCluster``: its processes import the program's main module again, so that one
without ``if __name__ == "__main__"`` starts itself over and over, and they run tasks in a thread,
which nobody can wake from a sleep.  Ours begin empty, and run tasks in their main thread
(``dask_program``).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

import distributed
from distributed.deploy.spec import ProcessInterface, SpecCluster

_PROGRAM: Final = (
    "import json, sys; facts = json.loads(sys.argv[1]); sys.path[:] = facts.pop('path'); "
    "from taskloom.backends.dask_program import main; main(**facts)"
)
_PATIENCE_S: Final = 3.0
"""How long a process has to end by itself."""
_AGAIN_S: Final = 0.5
"""When to start a process again that has died, seconds; later ones twice as long each, up to:"""
_LAST_S: Final = 10.0


class WorkerProcess(ProcessInterface):  # type: ignore[misc]  # distributed is untyped
    """One worker of Dask's in a process of its own, started again when it dies.

    Args:
        scheduler: its address.
        name: of the worker.
        resources: that it has.
        shows_output: whether what tasks print is seen.
    """

    def __init__(
        self,
        scheduler: str,
        name: Any = None,
        resources: Mapping[str, float] | None = None,
        shows_output: bool = True,
    ) -> None:
        self._facts = {
            "scheduler": scheduler,
            "name": name,
            "resources": dict(resources or {}),
            "path": [os.path.abspath(entry) for entry in sys.path],
        }
        self._shows_output = shows_output
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: asyncio.Task[None] | None = None
        super().__init__()

    def _spawn(self) -> subprocess.Popen[bytes]:
        output = None if self._shows_output else subprocess.DEVNULL
        # The pipe says that we are here: the process ends when nobody holds the other end.
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(self._facts)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        )

    async def start(self) -> None:
        """Start the process; Dask waits for the worker itself."""
        self._process = self._spawn()
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self._facts['name']}")
        await super().start()

    async def _watch(self) -> None:
        pause_s = _AGAIN_S
        while True:
            assert self._process is not None
            await asyncio.to_thread(self._process.wait)
            _close_pipe(self._process)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LAST_S)
            self._process = self._spawn()

    async def close(self) -> None:
        """End the process, and wait until it is gone."""
        watcher, process = self._watcher, self._process
        if watcher is not None:
            watcher.cancel()
        if process is not None:
            _close_pipe(process)
            await asyncio.to_thread(_reap, process)
        await super().close()


def _close_pipe(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start_cluster(
    *, num_cpus: int, num_gpus: float, resources: Mapping[str, float], shows_output: bool
) -> Any:
    """A scheduler in this process, and one worker process for each CPU.

    Dask gives resources to worker processes.  All that was asked for goes to the first one, so
    that whatever fits into the whole fits into a worker.
    """
    special = dict(resources)
    if num_gpus:
        special["GPU"] = num_gpus
    workers = {
        number: {
            "cls": WorkerProcess,
            "options": {"resources": {} if number else special, "shows_output": shows_output},
        }
        for number in range(num_cpus)
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"},
    }
    return SpecCluster(
        workers=workers, scheduler=scheduler, name="taskloom", silence_logs=logging.CRITICAL
    )
