"""What Ray raises, as what taskloom raises.

taskloom's own errors carry Ray's names, so most are the class of the same name with Ray's text.
What our runner raises on purpose carries our failure along.
"""

from __future__ import annotations

from typing import Any

import ray.exceptions as rays

from taskloom import exceptions as ours
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom.backends.cluster_replay import StreamFailed


def failure_from_ray(error: BaseException) -> Failure:
    """The outcome of what has failed at Ray's hands."""
    inherited = False
    if isinstance(error, rays.RayTaskError):
        # Raised around our runner: by our stream, or because an argument could not be had.
        cause: Any = error.cause
        if isinstance(cause, StreamFailed):
            return cause.failure
        if isinstance(cause, rays.RayError):
            error, inherited = cause, True
    failure = system_failure(_translated(error))
    return failure.inherit() if inherited else failure


def _translated(error: BaseException) -> ours.RayError:
    text = str(error)
    if isinstance(error, rays.TaskCancelledError):
        return ours.TaskCancelledError()
    if isinstance(error, rays.RayActorError):
        kind = (
            ours.ActorUnavailableError
            if isinstance(error, rays.ActorUnavailableError)
            else ours.ActorDiedError
        )
        return kind(
            text,
            actor_id=getattr(error, "actor_id", None),
            actor_init_failed=bool(getattr(error, "_actor_init_failed", False)),
        )
    if isinstance(error, rays.RayTaskError):
        return ours.RaySystemError(f"Ray could not run the task: {text}")
    if isinstance(error, rays.ObjectLostError):
        kind_of_loss = getattr(ours, type(error).__name__, ours.ObjectLostError)
        try:
            found: ours.RayError = kind_of_loss(text)
        except TypeError:
            found = ours.ObjectLostError(text)
        return found
    named: Any = getattr(ours, type(error).__name__, None)
    if isinstance(named, type) and issubclass(named, ours.RayError):
        try:
            same: ours.RayError = named(text)
        except TypeError:
            pass
        else:
            return same
    return ours.RaySystemError(f"{type(error).__name__}: {text}")
