"""Where the calling code runs, in a worker of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from taskloom.backends.base import ExecutionContext

DRIVER: Final = ExecutionContext()
here: Final[ContextVar[ExecutionContext]] = ContextVar("taskloom-cluster-here", default=DRIVER)
"""Set by the one who runs a task, in a context of the task's own."""
cancelled: Final[set[int]] = set()
"""The tasks of this process, by key, whose end was asked for."""


def _nobody_knows() -> bool:
    return False


ask_cluster: Callable[[], bool] = _nobody_knows
"""Whether the end of the running call was asked for: set where only the cluster knows, in actors,
which nobody interrupts."""
