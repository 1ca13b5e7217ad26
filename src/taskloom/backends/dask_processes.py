"""A Dask cluster of this program's own: a scheduler in a thread, and worker processes.

Not Dask's ``LocalCluster``: its processes import the program's main module again, so that one
without ``if __name__ == "__main__"`` starts itself over and over, and they run tasks in a thread,
which nobody can wake from a sleep.  Ours begin empty, and run tasks in their main thread
(``dask_program``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from time import monotonic
from typing import Any, Final

import distributed
from distributed.utils import LoopRunner, sync

_PROGRAM: Final = (
    "import json, sys; facts = json.loads(sys.argv[1]); sys.path[:] = facts.pop('path'); "
    "from taskloom.backends.dask_program import main; main(**facts)"
)
_PATIENCE_S: Final = 3.0
"""How long a process has to end by itself."""
_TOO_SHORT_S: Final = 1.0
"""A process that has lived less has not even started: the next one waits for so long."""


class WorkerProcess:
    """One worker of Dask's in a process of its own, started again when it dies.

    Args:
        scheduler: its address.
        resources: that the worker has.
        shows_output: whether what tasks print is seen.
    """

    def __init__(
        self, scheduler: str, resources: Mapping[str, float], *, shows_output: bool
    ) -> None:
        self._facts = json.dumps(
            {
                "scheduler": scheduler,
                "resources": dict(resources),
                "path": [os.path.abspath(entry) for entry in sys.path],
            }
        )
        self._output = None if shows_output else subprocess.DEVNULL
        self._is_over = threading.Event()
        self._process = self._spawn()
        self._watcher = threading.Thread(target=self._watch, name="taskloom-worker", daemon=True)
        self._watcher.start()

    def _spawn(self) -> subprocess.Popen[bytes]:
        # The pipe says that we are here: the process ends when nobody holds the other end.
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, self._facts],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
        )

    def _watch(self) -> None:
        while True:
            began = monotonic()
            self._process.wait()
            self._hang_up()
            pause_s = _TOO_SHORT_S if monotonic() - began < _TOO_SHORT_S else 0.0
            if self._is_over.wait(pause_s):
                return
            self._process = self._spawn()

    def _hang_up(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def end(self) -> None:
        """Ask the process to end."""
        self._is_over.set()
        self._hang_up()

    def reap(self) -> None:
        """Wait until it is gone."""
        self._watcher.join(_PATIENCE_S)
        if self._watcher.is_alive():
            self._process.kill()
            self._watcher.join()
        self._process.kill()  # one that was started while the end came; else nothing happens
        self._process.wait()
        self._hang_up()


class OwnCluster:
    """A scheduler in this process, and one worker process for each CPU.

    Dask gives resources to worker processes.  All that was asked for goes to the first one, so
    that whatever fits into the whole fits into a worker.
    """

    def __init__(
        self,
        *,
        num_cpus: int,
        num_gpus: float,
        resources: Mapping[str, float],
        shows_output: bool,
    ) -> None:
        special = dict(resources)
        if num_gpus:
            special["GPU"] = num_gpus
        self._runner = LoopRunner()
        self._runner.start()
        self._workers: list[WorkerProcess] = []
        self._scheduler: Any = None
        try:
            self._call(self._start)
            for number in range(num_cpus):
                own = {} if number else special
                self._workers.append(WorkerProcess(self.address, own, shows_output=shows_output))
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return str(self._scheduler.address)

    @property
    def size(self) -> int:
        """How many workers there are to be."""
        return len(self._workers)

    async def _start(self) -> None:
        self._scheduler = await distributed.Scheduler(
            host="127.0.0.1", dashboard=False, dashboard_address="127.0.0.1:0"
        )

    def _call(self, function: Any) -> None:
        sync(self._runner.loop, function)

    def close(self) -> None:
        """End all processes, and wait until they are gone."""
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.reap()
        self._workers.clear()
        if self._scheduler is not None:
            self._call(self._scheduler.close)
            self._scheduler = None
        self._runner.stop()
