"""What is said when an actor will not do what its options or its class seem to promise."""

from __future__ import annotations

import warnings

from taskloom._caller import level_of_caller
from taskloom._spec import ActorSpec

_COROUTINE = 0x80 | 0x100


def warn_of_coroutine_hook(cls: type) -> None:
    """``__ray_shutdown__`` is called, not awaited, as in Ray."""
    code = getattr(getattr(cls, "__ray_shutdown__", None), "__code__", None)
    if code is not None and code.co_flags & _COROUTINE:
        warnings.warn(
            f"{cls.__name__}.__ray_shutdown__ is a coroutine function and will not run: only a "
            "plain def is called when an actor ends",
            RuntimeWarning,
            stacklevel=level_of_caller(),
        )


def warn_of_detached(actor: ActorSpec) -> None:
    """It cannot outlive the driver, whose machine and session are all there is."""
    warnings.warn(
        f"the detached actor {actor.name or actor.class_name!r} lives until kill() or "
        "shutdown(): it does not outlive this program",
        UserWarning,
        stacklevel=level_of_caller(),
    )
