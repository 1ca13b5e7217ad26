"""What Dask raises, as what taskloom raises."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from distributed.scheduler import KilledWorker

from taskloom._wire.remote_errors import Failure, system_failure
from taskloom.exceptions import (
    ActorDiedError,
    ObjectLostError,
    RayError,
    RaySystemError,
    TaskCancelledError,
    WorkerCrashedError,
)

_GONE: Final = ("scheduler-connection-lost", "scheduler-restart", "client-closed")
"""Why Dask says that it has cancelled a future when nobody has asked for it."""
_LOST: Final = ("lost dependencies", "lost-dependencies")


def failure_of_future(future: Any) -> Failure:
    """The outcome of a call that has not ended well at Dask's hands."""
    status = future.status
    if status == "error":
        return failure_from_dask(future.exception(), future.key)
    if status == "lost":
        return system_failure(ObjectLostError(f"Dask has lost {future.key}"))
    state = getattr(future, "_state", None)
    return failure_from_dask(getattr(state, "exception", None) or asyncio.CancelledError())


def failure_from_dask(error: BaseException | None, key: str | None = None) -> Failure:
    """The outcome of what has failed at Dask's hands.

    Args:
        error: Dask's.
        key: of the task that has it; one that is about another task came from a dependency.
    """
    failure = system_failure(_translated(error))
    if isinstance(error, KilledWorker) and key is not None and error.task != key:
        return failure.inherit()
    return failure


def _translated(error: BaseException | None) -> RayError:
    if isinstance(error, KilledWorker):
        return WorkerCrashedError(
            f"The worker died unexpectedly while executing this task ({error.task}), and it may "
            f"not be tried again: {getattr(error.last_worker, 'address', error.last_worker)}"
        )
    reason = str(getattr(error, "reason", "") or "")
    if reason in _GONE:
        return RaySystemError(f"the connection to Dask's scheduler is gone ({reason})")
    if reason in _LOST:
        return ObjectLostError(f"Dask has lost what this needs: {error}")
    if isinstance(error, RuntimeError) and "holding Actor was lost" in str(error):
        return ActorDiedError("The actor is dead: its worker is gone.")
    if isinstance(error, asyncio.CancelledError):
        return TaskCancelledError()
    return RaySystemError(f"Dask could not run the task: {type(error).__name__}: {error}")
