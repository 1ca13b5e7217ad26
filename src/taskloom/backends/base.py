"""What a backend must do for the door: the contract between the API and whatever runs tasks.

Four kinds stand behind it: the embedded engine (``local``), the calling process itself
(``inline``), the client inside a worker, and real clusters.  The door never asks which one it
talks to.  All methods may be called from any thread unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from taskloom._spec import TaskSpec

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from taskloom.ref import ObjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionContext:
    """Where the calling code runs: in the driver (``task_key`` is None) or in a task."""

    task_key: int | None = None
    task_name: str | None = None
    function_name: str | None = None
    resources: tuple[tuple[str, int], ...] = ()
    accelerator_ids: tuple[tuple[str, tuple[str, ...]], ...] = ()
    attempt: int = 0


class Backend(Protocol):
    """Runs tasks and keeps objects for one process that calls the API."""

    session_id: bytes
    """12 random bytes, the same in the driver and in all its workers."""
    worker_id: str
    node_id: str
    job_id: str
    namespace: str

    @property
    def is_worker(self) -> bool:
        """True inside a task, False in the driver."""

    def submit(
        self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> ObjectRef[object] | list[ObjectRef[object]] | None:
        """Queue one call and return at once: a ref, a list for num_returns > 1, None for 0.

        The arguments have been checked against the function's signature.  Refs among them at
        the top level become dependencies.

        Raises:
            TypeError: an argument cannot be pickled; the text names the path to the member.
            ValueError: a ref belongs to another session.
        """

    def put(self, value: object) -> ObjectRef[object]:
        """Keep a snapshot of ``value``."""

    def get(self, refs: Sequence[ObjectRef[object]], timeout_s: float | None) -> list[object]:
        """Block until all are done; the values in the order of ``refs``.

        Raises as soon as one has failed.  ``timeout_s=None`` waits for ever, 0 polls.

        Raises:
            GetTimeoutError: not all were done in time.
        """

    def wait(
        self, refs: Sequence[ObjectRef[object]], num_returns: int, timeout_s: float | None
    ) -> tuple[list[ObjectRef[object]], list[ObjectRef[object]]]:
        """Block until ``num_returns`` are done or time is up; (at most that many done, rest)."""

    def cancel(self, ref: ObjectRef[object], *, force: bool, recursive: bool) -> None:
        """Cancel the task that makes ``ref``; nothing happens when it is done."""

    def abandon(self, ref: ObjectRef[object]) -> None:
        """An ``await`` of the ref was cancelled: cancel the task when nobody else wants it.

        Live refs, dependent tasks and other waiters are who else; see ``await_cancels``.
        """

    def withdraw(self, ref: ObjectRef[object]) -> bool:
        """Cancel the task if no worker has it yet; whether that was so."""

    def is_done(self, ref: ObjectRef[object]) -> bool:
        """True when :meth:`result` answers without waiting.  Never blocks."""

    def result(self, ref: ObjectRef[object]) -> object:
        """The value of a ref that is done, unpickled in the calling thread; raises its error."""

    def subscribe(
        self,
        refs: Sequence[ObjectRef[object]],
        callback: Callable[[int], None],
        loop: AbstractEventLoop | None = None,
    ) -> Callable[[], None]:
        """Call ``callback(key)`` once for each of ``refs`` when it is done (also if it is now).

        With ``loop`` the calls happen in that loop, those of one engine tick together; a loop
        that has closed is passed over.  Without, they happen on an engine thread and must
        neither block nor run user code.  The function returned ends the subscription.
        """

    def adopt(self, key: int) -> ObjectRef[object]:
        """A ref to the object ``key`` of this session (used when a ref is unpickled)."""

    def drop(self, ref: ObjectRef[object]) -> None:
        """A ref object is being collected.  Takes no lock and calls no user code."""

    def pin(self, ref: ObjectRef[object]) -> None:
        """Keep the object for the rest of the session: its ref was pickled by a stranger."""

    def cluster_resources(self) -> dict[str, float]:
        """All that there is, by name."""

    def available_resources(self) -> dict[str, float]:
        """What is free now; names of which nothing is free are left out (INIT-13)."""

    def context(self) -> ExecutionContext:
        """Where the caller runs."""

    def is_canceled(self) -> bool:
        """True inside a task whose cancellation was asked for."""

    def shutdown(self) -> None:
        """End the session; idempotent."""
