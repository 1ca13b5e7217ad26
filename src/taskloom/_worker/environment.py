"""Environment variables that depend on the task: threads of numeric libraries, visible GPUs."""

from __future__ import annotations

import os

Accelerators = dict[str, tuple[str, ...]]


class TaskEnvironment:
    """Sets them before each task that needs others than the one before.

    ``OMP_NUM_THREADS`` is left alone where the user has set it (REM-22).  GPUs are shown only
    to the task that holds them; every other one sees what the worker inherited (SCH-8).
    """

    def __init__(self) -> None:
        self._threads_are_ours = "OMP_NUM_THREADS" not in os.environ
        self._inherited_devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._show_devices = not os.environ.get("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES")
        self.threads = 0
        self.accelerators: Accelerators | None = None

    def enter(self, threads: int, accelerators: Accelerators | None) -> None:
        """Make the environment that of a task with these threads and devices."""
        if threads != self.threads:
            self.threads = threads
            if self._threads_are_ours:
                os.environ["OMP_NUM_THREADS"] = str(threads)
        if accelerators != self.accelerators:
            self.accelerators = accelerators
            if self._show_devices:
                self._set_devices(accelerators)

    def _set_devices(self, accelerators: Accelerators | None) -> None:
        if accelerators and "GPU" in accelerators:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(accelerators["GPU"])
        elif self._inherited_devices is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = self._inherited_devices
