"""What Ray and Dask must do for us: the contract below :mod:`taskloom.backends.cluster`.

The layer above knows refs, groups, streams and waiters; a *driver* knows one cluster's library.
There is one in each process that uses the API: in the program, and in every worker that runs our
tasks, where it is made around the library's own connection of that worker.

Three kinds of things travel between them:

- A *handle* is the library's own name of a value (``ray.ObjectRef``, ``distributed.Future``).  We
  never look inside; whoever holds one keeps the value alive, and the library counts.
- An *outcome* is a value as it lies in the cluster: pickled by us, or a ``Failure``.
- A *receipt* says how a call has ended, without its large values, so that the one who waits for
  the end of a call does not fetch what he may never look at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from taskloom._spec import TaskSpec
from taskloom._wire.calls import Holes
from taskloom._wire.remote_errors import Failure
from taskloom._wire.serialization import Payload
from taskloom.backends.cluster_values import Carried

if TYPE_CHECKING:
    from taskloom.backends.base import FoundActor

Handle = Any
Outcome = bytes | Carried | Failure
SMALL_BYTES: Final = 16 * 1024
"""An outcome of up to so many bytes travels with the receipt, and as an argument by value."""


class Receipt(NamedTuple):
    """How a call has ended: one entry for each output; None: a large value, at the cluster."""

    outcomes: tuple[Outcome | None, ...]
    seconds: float = 0.0
    """How long the last attempt took."""
    alone: bool = False
    """It used nothing of the session and gave nothing large: it can run in a row with others."""


class Place(NamedTuple):
    """Where an object is, as it travels with a ref to another process.

    Either ``outcome`` is the object itself, or ``value`` is the handle of it.  ``receipt`` is the
    handle of the receipt whose entry ``output`` it is; None: it is there already (``put``).
    """

    receipt: Handle = None
    output: int = 0
    value: Handle = None
    outcome: Outcome | None = None


Places = Mapping[int, Place]


class Launched(NamedTuple):
    """A call that the cluster has: the handle of its receipt, and those of its outputs."""

    receipt: Handle
    values: Sequence[Handle]


class Job(NamedTuple):
    """One call on its way to a worker; its dependencies travel beside it."""

    task: int
    payload: Payload
    holes: Holes | None
    places: Places
    context: bytes | None
    registered: tuple[tuple[str, bytes], ...] = ()
    """What ``register_serializer`` was told in the program."""
    attempts: int = 0
    """How many attempts it has lost already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFacts:
    """What a worker must know of the session whose tasks it runs; plain values only."""

    session_id: bytes
    job_id: str
    namespace: str
    address: str
    """As it was given to ``init``."""
    module: str
    """The module whose ``join(facts)`` makes the driver of a worker."""
    await_cancels: bool
    cancel_grace: float | None
    ignore_unheard: bool
    batches: bool
    """Short calls may go together (``TASKLOOM_BATCH_SHORT_CALLS``)."""
    path: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    worker_setup: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the driver's own kind wants to be told."""


class Stream(Protocol):
    """A generator that runs on the cluster."""

    @property
    def launched(self) -> Launched:
        """The call: its receipt is done when the generator has ended."""

    def next(self, callback: Callable[[Handle | Failure | None], None]) -> None:
        """Have ``callback`` called, on any thread, with the handle of the next item once it is
        there; with None at the end, with a failure when the worker is lost.  One at a time."""

    def close(self) -> None:
        """Nothing more is wanted: end the generator."""


@dataclass(frozen=True, slots=True)
class ActorHome:
    """An actor as the driver knows it; the cluster's library can pickle it.

    Attributes:
        handle: the library's own.
        key: of the actor.
        manifest: what handles are made of; empty where nobody has told.
        callers: what the driver keeps to call it with; stays in this process.
    """

    handle: Handle
    key: int
    manifest: bytes
    callers: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def __reduce__(self) -> tuple[type[ActorHome], tuple[Handle, int, bytes]]:
        return ActorHome, (self.handle, self.key, self.manifest)


class Driver(Protocol):
    """The library of one cluster, for one process.  Methods may be called from any thread."""

    title: str
    """``"Ray"``, ``"Dask"``: for texts."""
    node_id: str
    worker_id: str
    waits_at_cluster: bool
    """Threads that wait for all of some calls do so in :meth:`collect`, not for callbacks: it is
    cheaper, or see below."""
    waits_for_any: bool
    """Those that wait for fewer than all of them do so, too."""
    shows_waiting: bool
    """While a thread is in :meth:`collect`, the cluster gives what it holds to others, so it does
    not come back in between."""

    def check(self, spec: TaskSpec) -> None:
        """Refuse, when a spec is first used, what this cluster cannot do.

        Raises:
            NotImplementedError: the text says what it is, and which backend can.
        """

    def submit(self, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> Launched:
        """Send a call: run ``cluster_run.run_call(...)`` on a worker.

        Args:
            spec: of the call; ``spec.request`` becomes the cluster's own request.
            job: the call.
            fills: for each dependency its handle, or a :class:`Here` for a small one.
        """

    def submit_unnamed(self, spec: TaskSpec, job: Job) -> tuple[int, Launched] | None:
        """The same for a call without dependencies that the cluster may name, if that is cheaper.

        Returns:
            Its key, which the worker finds out, too, instead of ``job.task``; None: not so.
        """

    def learn(self, spec: TaskSpec, *, is_small: bool) -> None:
        """A call that was submitted has ended well; whether what it gave was small.  Told for the
        first, and when it was not as before."""

    def stream(self, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> Stream:
        """The same for a generator."""

    def run_many(self, number: int, specs: Sequence[TaskSpec], batch: bytes) -> Handle:
        """Send short calls in one task, which asks for one CPU: ``cluster_batch_run.run_many``.

        Args:
            number: names the batch, for notes (see :meth:`write`).
            specs: of the calls in it, each once.
            batch: the calls, packed.

        Returns:
            The handle of what ``run_many`` gives.
        """

    def write(self, name: str, value: bytes) -> None:
        """Tell all processes of the session."""

    def read(self, name: str) -> bytes | None:
        """What was told; None: nothing."""

    def erase(self, name: str) -> None:
        """Forget what was told."""

    def put(self, value: Outcome) -> Handle:
        """Keep a value at the cluster."""

    def on_done(self, handle: Handle, callback: Callable[[Any], None]) -> None:
        """Have ``callback`` called once with what a small handle (a receipt, what ``run_many``
        gives) stands for, or with a Failure; on any thread, also at once."""

    def fetch(self, handle: Handle, timeout_s: float | None) -> Outcome:
        """What a handle of a value stands for; blocks.  A loss is a Failure, too.

        Raises:
            GetTimeoutError: it has not come in time.
        """

    def collect(
        self, handles: Sequence[Handle], count: int, timeout_s: float | None
    ) -> Mapping[Handle, Receipt | Failure]:
        """Block until ``count`` calls are over, or time is up; may come back sooner.

        Args:
            handles: of receipts, each once.
            count: how many to wait for.
            timeout_s: seconds; 0: only look at all of them; None: for ever.

        Returns:
            The receipts that are there, by handle.  No large value is fetched.
        """

    def cancel(self, launched: Launched, *, force: bool, recursive: bool) -> None:
        """Ask for the end of a call."""

    def create_actor(
        self, spec: TaskSpec, job: Job, fills: Sequence[Any]
    ) -> ActorHome | FoundActor:
        """Make an actor, or find the one that has its name.  The constructor runs later."""

    def call_actor(
        self, actor: ActorHome, spec: TaskSpec, job: Job, fills: Sequence[Any]
    ) -> Launched:
        """Queue a call of an actor."""

    def call_actor_unnamed(
        self, actor: ActorHome, spec: TaskSpec, job: Job
    ) -> tuple[int, Launched] | None:
        """As :meth:`submit_unnamed`, for a call of an actor."""

    def stream_actor(
        self, actor: ActorHome, spec: TaskSpec, job: Job, fills: Sequence[Any]
    ) -> Stream:
        """The same for a generator method."""

    def kill_actor(self, actor: ActorHome, *, no_restart: bool) -> None:
        """End the process of an actor."""

    def actor_of(self, key: int) -> ActorHome | None:
        """An actor of this session by its key: made here or elsewhere; None: it is dead."""

    def find_actor(self, namespace: str, name: str) -> ActorHome | None:
        """The living actor of that name."""

    def list_actors(self, namespace: str) -> list[tuple[str, str]]:
        """(namespace, name) of the living ones; of all namespaces where it is empty."""

    def publish(self, key: int, place: Place) -> None:
        """Let every process of the session find the object ``key`` by its key alone."""

    def look_up(self, key: int) -> Place | None:
        """What :meth:`publish` was told; None: nothing."""

    def accelerator_ids(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The devices of the running task, by kind."""

    def total_resources(self) -> dict[str, float]:
        """All that there is."""

    def free_resources(self) -> dict[str, float]:
        """What is free now."""

    def nodes(self) -> list[dict[str, Any]]:
        """The machines, in Ray's form."""

    def close(self) -> None:
        """End the connection, and the cluster if it was started for this session."""


class Here(NamedTuple):
    """A dependency that travels by value."""

    outcome: Outcome
