"""The objects of the inline backend."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from taskloom._wire import serialization
from taskloom._wire.remote_errors import Failure
from taskloom._wire.serialization import Payload

if TYPE_CHECKING:
    from taskloom.backends.inline_actors import InlineActor
    from taskloom.backends.inline_streams import InlineSource


class Object:
    """The record of an object: its payload or failure, and the records of the refs inside."""

    __slots__ = ("__weakref__", "_unheard", "actor", "contained", "outcome", "stream")

    def __init__(
        self,
        outcome: Payload | Failure,
        contained: tuple[Object, ...] = (),
        unheard: deque[Failure] | None = None,
    ) -> None:
        self.outcome = outcome
        self.contained = contained
        self.actor: InlineActor | None = None  # whom a handle keeps alive
        self.stream: InlineSource | None = None  # whose end it is
        # Where to leave the failure when nobody has asked for it; None: somebody has.
        self._unheard = unheard

    def open(self) -> object:
        """The value, unpickled anew; raises the error."""
        outcome = self.outcome
        if isinstance(outcome, Failure):
            self._unheard = None
            raise outcome.revive()
        try:
            return serialization.unpack(outcome)
        except BaseException as error:
            serialization.blame(error, outcome, "the value")

    def inherit(self) -> Failure | None:
        """The failure as a dependent has it, or None when there is a value."""
        outcome = self.outcome
        if not isinstance(outcome, Failure):
            return None
        self._unheard = None  # the dependent tells of it
        return outcome.inherit()

    def __del__(self) -> None:
        # No user code here, where anybody's code may be running: only leave a note.
        if self._unheard is not None and isinstance(self.outcome, Failure):
            self._unheard.append(self.outcome)
