"""What a backend must do for the door: the contract between the API and whatever runs tasks.

Four kinds stand behind it: the embedded engine (``local``), the calling process itself
(``inline``), the client inside a worker, and real clusters.  The door never asks which one it
talks to.  All methods may be called from any thread unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Union

from taskloom._spec import ActorSpec, TaskSpec

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from taskloom._memory import MemoryReport
    from taskloom.generator import ObjectRefGenerator
    from taskloom.ref import ObjectRef


Made = Union["ObjectRef[object]", "list[ObjectRef[object]]", "ObjectRefGenerator[object]", None]
"""What a call gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionContext:
    """Where the calling code runs: in the driver (``task_key`` is None) or in a task."""

    task_key: int | None = None
    task_name: str | None = None
    function_name: str | None = None
    resources: tuple[tuple[str, int], ...] = ()
    accelerator_ids: tuple[tuple[str, tuple[str, ...]], ...] = ()
    attempt: int = 0
    actor_key: int | None = None
    actor_spec: ActorSpec | None = None
    actor_restarted: bool = False


class ActorExit(SystemExit):
    """Ends the actor: what ``exit_actor`` raises in a thread."""


FORCE_ON_ACTOR: Final = "force=True is not supported for actor tasks: use kill() on the actor."


@dataclass(frozen=True, slots=True)
class FoundActor:
    """An actor that is there: what a handle is made of.

    ``ref`` keeps it alive; None for one that was looked up by name.
    """

    key: int
    manifest: bytes
    ref: ObjectRef[object] | None = None


class Group(Protocol):
    """Tasks that end together: what stands behind ``taskloom.TaskGroup``.

    A call belongs to the group that ``_current.group`` names when it is made, and so does all
    that it submits in turn.  When a member fails, or the task in which the group was opened
    ends, everything in the group is cancelled.
    """

    @property
    def home(self) -> Backend:
        """Whose group it is."""

    @property
    def outer(self) -> Group | None:
        """The group that it was opened in, by the same program."""

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""

    @property
    def end(self) -> ObjectRef[Any]:
        """Asked for after :meth:`close`: done when nothing of the group runs any more.

        Its value is the list of the ``Failure`` of the members, those that dependents have
        inherited included.
        """

    def on_alarm(self, callback: Callable[[int], None], loop: AbstractEventLoop | None) -> None:
        """Have ``callback`` called when the group is cancelled; arguments as ``subscribe``."""

    def close(self) -> None:
        """No further calls; nothing is called back from now on."""

    def cancel(self) -> None:
        """Cancel all that is in the group."""

    def release(self, ref: ObjectRef[Any]) -> None:
        """Let the task that makes ``ref`` go, to the outer group if there is one."""


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

    @property
    def may_outlive(self) -> bool:
        """Whether an actor may outlive the program: the cluster goes on without it."""

    def submit(self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]) -> Made:
        """Queue one call and return at once.

        A ref, a list for num_returns > 1, None for 0, a generator of refs for a stream.

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

    def open_group(self) -> Group:
        """A new group, inside of the one that the calling context is in."""

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

    def spread(self, name: str, blob: bytes, *, keep: bool) -> None:
        """Have all workers take what ``register_serializer`` was told in the driver.

        Nothing happens in a worker: what is registered there stays there.

        Args:
            name: of the registration; a later one of the same name replaces it.
            blob: for ``Serializers.receive``.
            keep: tell it to workers that start later, too.
        """

    def why(self, ref: ObjectRef[object]) -> str:
        """One sentence: what ``ref`` waits for, or that it is done."""

    def create_actor(
        self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> FoundActor:
        """Make an actor (``spec.actor`` is set), or find the living one that has its name.

        Returns at once; the constructor runs later.  Whoever asked for a name that is taken
        gets the other actor, without a ref.

        Raises:
            TypeError: an argument cannot be pickled.
        """

    def call_actor(
        self, key: int, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Made:
        """Queue one call of the actor ``key``; as :meth:`submit`."""

    def kill_actor(self, key: int, *, no_restart: bool) -> None:
        """End the process of an actor at once.

        Raises:
            ActorHandleNotFoundError: there is no such actor in this session.
        """

    def ask_about_actors(self, name: str, content: object) -> Any:
        """Facts about actors; questions and answers are listed in ``_engine/actor_desk``."""

    def cluster_resources(self) -> dict[str, float]:
        """All that there is, by name."""

    def memory(self) -> MemoryReport:
        """All objects of the session."""

    def nodes(self) -> list[dict[str, Any]] | None:
        """The machines of the cluster, in Ray's form; None: there is but this one."""

    def available_resources(self) -> dict[str, float]:
        """What is free now; names of which nothing is free are left out (INIT-13)."""

    def context(self) -> ExecutionContext:
        """Where the caller runs."""

    def is_canceled(self) -> bool:
        """True inside a task whose cancellation was asked for."""

    def shutdown(self) -> None:
        """End the session; idempotent."""
