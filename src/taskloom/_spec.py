"""TaskSpec: the facts that all calls of one remote function with one set of options share."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NewType

from taskloom.exceptions import TaskTimeoutError

FunctionKey = NewType("FunctionKey", bytes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Function:
    """A function as it travels: pickled once, then known by the hash of that pickle."""

    key: FunctionKey
    blob: bytes = field(repr=False)
    name: str
    module: str
    is_coroutine: bool


class Pace(NamedTuple):
    """How long an attempt may take, and how long the next one waits; seconds.

    ``timeout_s`` None is no limit, ``retry_delay_s`` None the usual pause (``_core.retries``).
    ``retries_timeouts`` says that TaskTimeoutError is among what ``retry_exceptions`` names.
    """

    timeout_s: float | None = None
    retry_delay_s: float | None = None
    retry_backoff: float = 1.0
    retry_jitter: float = 0.0
    retries_timeouts: bool = False

    @classmethod
    def of(
        cls, options: Mapping[str, Any], retry_exceptions: bool | tuple[type[BaseException], ...]
    ) -> Pace | None:
        """What these options say of time; None if they say nothing."""
        timeout_s, delay_s = options.get("timeout"), options.get("retry_delay")
        if timeout_s is None and delay_s is None:
            return None
        if isinstance(retry_exceptions, bool):
            retries_timeouts = retry_exceptions
        else:
            retries_timeouts = issubclass(TaskTimeoutError, retry_exceptions)
        return cls(
            timeout_s=None if timeout_s is None else float(timeout_s),
            retry_delay_s=None if delay_s is None else float(delay_s),
            retry_backoff=float(options.get("retry_backoff") or 1.0),
            retry_jitter=float(options.get("retry_jitter") or 0.0),
            retries_timeouts=retries_timeouts,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActorSpec:
    """What is asked for an actor, beside the call of its constructor.

    ``placement`` is what must be free to create it, as in ``TaskSpec.request``, which is what it
    holds while it lives.  ``groups`` are (name, how many calls at once); the first is "", the
    default.  ``manifest`` is what handles are made of, opaque to the engine.
    """

    class_name: str
    name: str
    namespace: str
    detached: bool
    get_if_exists: bool
    placement: tuple[tuple[str, int], ...]
    max_restarts: int
    is_async: bool
    is_ordered: bool
    """Calls of one caller run in the order of their submission, one at a time."""
    groups: tuple[tuple[str, int], ...]
    manifest: bytes = field(repr=False)
    max_task_retries: int = 0
    """Of calls that say nothing else; the spec of each call has its own number, too."""

    @property
    def is_serial(self) -> bool:
        """One call at a time."""
        return not self.is_async and self.groups == (("", 1),)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskSpec:
    """What is asked for each call: made when a wrapper is first called, never edited.

    ``request`` holds (resource name, units) pairs, sorted, without zeros, in units of
    ``_options.UNITS_PER_RESOURCE``.  ``retry_exceptions`` is True, False or the classes to retry;
    ``retry_blob`` is those classes pickled.  For what workers submit the driver has the pickle
    only: the engine never loads it.  ``pace`` is None where no time was asked for.
    """

    function: Function
    name: str
    num_returns: int
    request: tuple[tuple[str, int], ...]
    max_retries: int
    retry_exceptions: bool | tuple[type[BaseException], ...] | bytes
    priority: int
    retry_blob: bytes | None = field(default=None, repr=False)
    pace: Pace | None = None
    actor: ActorSpec | None = None
    """Set for the constructor of an actor."""
    group: str = ""
    """Of a call to an actor: the concurrency group it belongs to."""
    stream: int | None = None
    """Of a generator whose items are streamed: how many may wait to be taken; 0: any number."""
    number: int = field(default_factory=itertools.count(1).__next__)
    """Names the spec on the wire; unique in the process that made it."""
    is_plain: bool = field(init=False, repr=False)
    """A call of it may do without a node (``_core.node.PlainCall``)."""

    asks_only_for_cpus: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        only_cpus = all(name == "CPU" for name, _ in self.request)
        object.__setattr__(self, "asks_only_for_cpus", only_cpus)
        is_plain = (
            self.num_returns == 1
            and self.pace is None
            and self.stream is None
            and self.actor is None
            and not self.function.is_coroutine
        )
        object.__setattr__(self, "is_plain", is_plain)

    @property
    def is_coroutine(self) -> bool:
        return self.function.is_coroutine
