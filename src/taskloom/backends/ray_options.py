"""What we ask for, in Ray's words."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from typing import Any

from taskloom._options import from_units
from taskloom._spec import ActorSpec, TaskSpec


def pack_spec(spec: TaskSpec) -> bytes:
    """A spec as it travels: equal for equal ones, and no class of the user's in it."""
    retried: Any = spec.retry_exceptions
    if not isinstance(retried, bool):
        retried = spec.retry_blob
    return pickle.dumps(dataclasses.replace(spec, retry_exceptions=retried, number=0), 5)


def options_of(request: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """A request of ours as Ray's options."""
    amounts = {name: from_units(units) for name, units in request}
    options: dict[str, Any] = {"num_cpus": amounts.pop("CPU", 0)}
    if gpus := amounts.pop("GPU", 0):
        options["num_gpus"] = gpus
    if memory := amounts.pop("memory", 0):
        options["memory"] = int(memory)
    if amounts:
        options["resources"] = amounts
    return options


def actor_options(spec: TaskSpec, facts: ActorSpec) -> dict[str, Any]:
    """The options of an actor."""
    options: dict[str, Any] = {"max_restarts": facts.max_restarts}
    if facts.max_restarts:
        # Each call has its own number as well.  But calls to an actor that is being restarted wait
        # only if the actor itself has one; else they fail at once, and use their retries up.
        options["max_task_retries"] = facts.max_task_retries
    if spec.request or not facts.placement:
        options.update(options_of(spec.request))
    # Else, as with Ray itself: one CPU to be made, and none to live.
    if facts.detached:
        options["lifetime"] = "detached"
    groups = dict(facts.groups)
    most = groups.pop("", 1)
    if facts.is_async:  # groups of coroutines are counted by the host: all share one loop
        most += sum(groups.values())
    elif groups:
        options["concurrency_groups"] = groups
    options["max_concurrency"] = most
    return options
