"""Cancelling on Ray: a task that has just ended must not be cancelled any more.

When a task's last word comes, Ray's library in the process that owns it takes the task out of the
list of those that run, stores what it gave, and strikes it off the list of those that are to be
completed.  A cancel between the first step and the last one strikes it off as well; then the last
step finds nothing, and ends the whole process (``Tried to complete task that was not pending``).
The middle step runs callbacks in Python, so it may take long, and whom it wakes may cancel.
"""

from __future__ import annotations

from typing import Any

import ray


def ask_for_end(receipt: Any, *, force: bool, recursive: bool) -> None:
    """Ask Ray to end a task, unless what it gives is there."""
    try:
        if ray.wait([receipt], timeout=0, fetch_local=False)[0]:
            return
        ray.cancel(receipt, force=force, recursive=recursive)
    except ValueError:
        if force:  # it runs in an actor, whose process is other people's, too
            ask_for_end(receipt, force=False, recursive=recursive)
    except (TypeError, ray.exceptions.RayError):
        pass  # it is over meanwhile
