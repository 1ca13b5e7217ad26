"""TaskSpec: the facts that all calls of one remote function with one set of options share."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NewType

FunctionKey = NewType("FunctionKey", bytes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Function:
    """A function as it travels: pickled once, then known by the hash of that pickle."""

    key: FunctionKey
    blob: bytes = field(repr=False)
    name: str
    module: str
    is_coroutine: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskSpec:
    """What is asked for each call: made when a wrapper is first called, never edited.

    ``request`` holds (resource name, units) pairs, sorted, without zeros, in units of
    ``_options.UNITS_PER_RESOURCE``.  ``retry_exceptions`` is True, False, the classes to retry,
    or (in the driver, for what workers submit) those classes pickled: the engine never loads
    them.
    """

    function: Function
    name: str
    num_returns: int
    request: tuple[tuple[str, int], ...]
    max_retries: int
    retry_exceptions: bool | tuple[type[BaseException], ...] | bytes
    priority: int
    number: int = field(default_factory=itertools.count(1).__next__)
    """Names the spec on the wire; unique in the process that made it."""

    @property
    def is_coroutine(self) -> bool:
        return self.function.is_coroutine
