"""The driver of ``cluster_driver`` for Ray: our calls as Ray's tasks.

Each call is one Ray task.  Its return values are the outputs: they lie where they were made, and
dependents name them as top-level arguments, so that Ray itself resolves them, places the dependents
near them and makes lost ones again.

Before the outputs stands the receipt, which is small and stays with the one who has made the call.
But one object costs less than two: a call of a function that is known to give one small value
answers with value and receipt in one.  Until the first answer of a function is there, and for good
when one of its values was large, a receipt goes by itself: whoever learns that such a call is over
does not want all its values on his machine.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import ray
from ray.experimental import internal_kv

from taskloom._spec import TaskSpec
from taskloom._wire.remote_errors import Failure
from taskloom._wire.serialization import pack_plain
from taskloom.backends.base import FoundActor
from taskloom.backends.cluster_driver import (
    ActorHome,
    Handle,
    Job,
    Launched,
    Outcome,
    Place,
    Receipt,
    SessionFacts,
    Stream,
)
from taskloom.backends.cluster_objects import LOOK_S
from taskloom.backends.ray_actors import RayActors
from taskloom.backends.ray_cancel import ask_for_end
from taskloom.backends.ray_errors import failure_from_ray
from taskloom.backends.ray_options import options_of, pack_spec
from taskloom.backends.ray_streams import RayStream, refuse_through_client
from taskloom.backends.ray_wire import (
    PackedJob,
    is_bare,
    named_by,
    outcome_in,
    pack_for_one,
    pack_job,
    receipt_in,
)
from taskloom.backends.ray_worker import (
    LoopHost,
    make_bare_task,
    make_batch,
    make_generator,
    make_task,
)
from taskloom.exceptions import GetTimeoutError

_SPACE: Final = b"taskloom"
"""Our part of the table that Ray's head keeps."""
_LOOP_CALLS: Final = 1000
"""So many coroutines run at once in one process."""


class RayDriver:
    """See :class:`taskloom.backends.cluster_driver.Driver`.

    Args:
        facts: of the session.
        is_worker: this process is one of Ray's workers.
        end: ends the connection of the program.
    """

    title = "Ray"

    def __init__(
        self, facts: SessionFacts, *, is_worker: bool, end: Callable[[], None] = lambda: None
    ) -> None:
        context = ray.get_runtime_context()
        self.node_id: str = context.get_node_id()
        self.worker_id: str = context.get_worker_id()
        # Through the client each look is a message to the cluster.
        self.waits_at_cluster = self.waits_for_any = not ray.util.client.ray.is_connected()
        self.shows_waiting = is_worker
        self._packed_facts = pickle.dumps(facts, 5)
        self._session = facts.session_id.hex()
        self._end = end
        self._is_worker = is_worker
        self._tasks: dict[int, Any] = {}
        self._small: dict[int, Any] = {}
        """The same for calls that answer with one object."""
        self._bare: dict[int, Any] = {}
        """The same for those of them that go without arguments."""
        self._large: set[int] = set()
        self._exported: dict[tuple[bytes, bool], Any] = {}
        self._packed: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._loop_host: Any = None
        self._batch: Any = None
        self.actors = RayActors(self, self._session, self._packed_facts)

    # -- calls --------------------------------------------------------------------------------

    def check(self, spec: TaskSpec) -> None:
        """Refuse what Ray has not."""
        if spec.priority:
            raise NotImplementedError(
                f"{spec.name}(): priority={spec.priority} is not possible on Ray, which has no "
                "priorities: leave it out, or use the local backend"
            )

    def packed(self, spec: TaskSpec) -> bytes:
        """A spec as it travels, packed once."""
        found = self._packed.get(spec.number)
        if found is None:
            found = self._packed[spec.number] = pack_spec(spec)
        return found

    def submit(self, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> Launched:
        """One Ray task; see the top of the module."""
        small = self._small.get(spec.number)
        if small is not None and (packed := pack_for_one(job)) is not None:
            ref = small.remote(packed, *fills)
            return Launched(ref, (ref,))
        if spec.is_coroutine and not spec.request:
            run = self._host().run.options(
                num_returns=spec.num_returns + 1,
                max_task_retries=spec.max_retries,
                name=spec.name,
            )
            return launched(run.remote(*self._facts_of_call(spec, job), *fills), spec)
        task = self._tasks.get(spec.number) or self._make(spec, make_task)
        if job.attempts and spec.max_retries > 0:
            task = task.options(max_retries=max(spec.max_retries - job.attempts, 0))
        return launched(task.remote(pack_job(job), *fills), spec)

    def submit_unnamed(self, spec: TaskSpec, job: Job) -> tuple[int, Launched] | None:
        """One Ray task without arguments: they cost as much as all that we do for a call."""
        if self._small.get(spec.number) is None or not self.waits_at_cluster or not is_bare(job):
            return None
        task = self._bare.get(spec.number) or self._make(spec, make_bare_task, bare=True)
        ref = task.remote()
        return named_by(ref.binary()), Launched(ref, (ref,))

    def learn(self, spec: TaskSpec, *, is_small: bool) -> None:
        """Whether the values of a function are small."""
        number = spec.number
        if not is_small:
            self._large.add(number)
            self._small.pop(number, None)
        elif number not in self._large and spec.num_returns == 1 and spec.stream is None:
            task = self._tasks.get(number)
            self._small[number] = None if task is None else task.options(num_returns=1)

    def is_small(self, spec: TaskSpec) -> bool:
        """Whether calls answer with one object."""
        return spec.number in self._small

    def _make(
        self, spec: TaskSpec, make: Callable[[bytes, bytes, str], Any], *, bare: bool = False
    ) -> Any:
        """The remote function of Ray's for a spec: one for all equal ones."""
        packed = self.packed(spec)
        with self._lock:
            task = self._exported.get((packed, bare))
            if task is None:
                function = make(self._packed_facts, packed, spec.function.name)
                streams: dict[str, Any] = {"num_returns": 1 if bare else spec.num_returns + 1}
                if spec.stream is not None:
                    streams = {"num_returns": "streaming"}
                    if spec.stream:
                        streams["_generator_backpressure_num_objects"] = spec.stream
                task = ray.remote(
                    name=spec.name,
                    max_retries=spec.max_retries,
                    retry_exceptions=False,
                    **options_of(spec.request),
                    **streams,
                )(function)
                self._exported[packed, bare] = task
            (self._bare if bare else self._tasks)[spec.number] = task
        return task

    def _host(self) -> Any:
        """Where coroutines run: one process for all that this one submits."""
        with self._lock:
            if self._loop_host is None:
                self._loop_host = (
                    ray.remote(LoopHost)
                    .options(num_cpus=0, max_concurrency=_LOOP_CALLS, max_restarts=-1)
                    .remote()
                )
        return self._loop_host

    def _facts_of_call(self, spec: TaskSpec, job: Job) -> tuple[bytes, bytes, PackedJob]:
        return self._packed_facts, self.packed(spec), pack_job(job)

    def stream(self, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> Stream:
        """One streaming generator of Ray's."""
        refuse_through_client()
        if spec.is_coroutine and not spec.request:
            options: dict[str, Any] = {"num_returns": "streaming", "name": spec.name}
            if spec.stream:
                options["_generator_backpressure_num_objects"] = spec.stream
            run = self._host().stream.options(**options)
            return RayStream(run.remote(*self._facts_of_call(spec, job), *fills))
        task = self._tasks.get(spec.number) or self._make(spec, make_generator)
        return RayStream(task.remote(pack_job(job), *fills))

    def run_many(self, number: int, specs: Sequence[TaskSpec], batch: bytes) -> Handle:
        """One Ray task for many calls; Ray does not try it again, we do."""
        with self._lock:
            if self._batch is None:
                make = ray.remote(num_cpus=1, max_retries=0, retry_exceptions=False)
                self._batch = make(make_batch(self._packed_facts))
        return self._batch.remote(number, [self.packed(spec) for spec in specs], batch)

    # -- values -------------------------------------------------------------------------------

    def put(self, value: Outcome) -> Handle:
        """Keep a value in Ray's object store."""
        return ray.put(value)

    def on_done(self, handle: Handle, callback: Callable[[Any], None]) -> None:
        """Have Ray's thread call back."""
        handle._on_completed(partial(_told, callback))

    def fetch(self, handle: Handle, timeout_s: float | None) -> Outcome:
        """Bring a value here."""
        if isinstance(handle, ActorHome):
            return pack_plain(None)
        try:
            outcome: Outcome = ray.get(handle, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            raise GetTimeoutError(f"the value did not come within {timeout_s} s") from None
        except ray.exceptions.RayError as error:
            return failure_from_ray(error)
        return outcome_in(outcome)  # type: ignore[no-any-return]

    def collect(
        self, handles: Sequence[Handle], count: int, timeout_s: float | None
    ) -> Mapping[Handle, Receipt | Failure]:
        """Wait as Ray's own programs do: a task lends its CPUs meanwhile."""
        if count < len(handles):
            ready, _ = ray.wait(
                list(handles), num_returns=count, timeout=timeout_s, fetch_local=False
            )
            return self._receipts(ready)
        if self.shows_waiting and len(handles) > 1:
            # One of them may have failed, and nobody but us looks.
            timeout_s = LOOK_S if timeout_s is None else min(timeout_s, LOOK_S)
        if timeout_s != 0:
            try:
                values = ray.get(list(handles), timeout=timeout_s)
            except (ray.exceptions.GetTimeoutError, ray.exceptions.RayError):
                pass
            else:
                return dict(zip(handles, map(_opened, values), strict=True))
        ready, _ = ray.wait(list(handles), num_returns=len(handles), timeout=0, fetch_local=False)
        return self._receipts(ready)

    def _receipts(self, ready: list[Handle]) -> dict[Handle, Receipt | Failure]:
        """The receipts that are there."""
        if not ready:
            return {}
        try:
            return dict(zip(ready, map(_opened, ray.get(ready)), strict=True))
        except ray.exceptions.RayError:  # of one of them
            return {handle: self._receipt(handle) for handle in ready}

    def _receipt(self, handle: Handle) -> Receipt | Failure:
        try:
            return _opened(ray.get(handle))  # type: ignore[no-any-return]
        except ray.exceptions.RayError as error:
            return failure_from_ray(error)

    def cancel(self, launched: Launched, *, force: bool, recursive: bool) -> None:
        """Ask Ray to end a task."""
        ask_for_end(launched.receipt, force=force, recursive=recursive)

    # -- actors -------------------------------------------------------------------------------

    def create_actor(
        self, spec: TaskSpec, job: Job, fills: Sequence[Any]
    ) -> ActorHome | FoundActor:
        """An actor of Ray's."""
        return self.actors.create(spec, job, fills)

    def call_actor(
        self, actor: ActorHome, spec: TaskSpec, job: Job, fills: Sequence[Any]
    ) -> Launched:
        """A call of an actor of Ray's."""
        return launched(self.actors.call(actor, spec, job, fills), spec)

    def call_actor_unnamed(
        self, actor: ActorHome, spec: TaskSpec, job: Job
    ) -> tuple[int, Launched] | None:
        """A call of an actor without arguments: of what is known there by its name alone."""
        if spec.number not in self._small or not self.waits_at_cluster or not is_bare(job):
            return None
        ref = self.actors.call_bare(actor, spec)
        return None if ref is None else (named_by(ref.binary()), Launched(ref, (ref,)))

    def stream_actor(
        self, actor: ActorHome, spec: TaskSpec, job: Job, fills: Sequence[Any]
    ) -> Stream:
        """The same for a generator method."""
        refuse_through_client()
        return RayStream(self.actors.stream(actor, spec, job, fills))

    def kill_actor(self, actor: ActorHome, *, no_restart: bool) -> None:
        """End an actor's process."""
        ray.kill(actor.handle, no_restart=no_restart)

    def actor_of(self, key: int) -> ActorHome | None:
        """By its key."""
        return self.actors.by_key(key)

    def find_actor(self, namespace: str, name: str) -> ActorHome | None:
        """By its name."""
        return self.actors.find(namespace, name)

    def list_actors(self, namespace: str) -> list[tuple[str, str]]:
        """By name."""
        return self.actors.names(namespace)

    # -- what all processes of a session know ---------------------------------------------------

    def write(self, name: str, value: bytes) -> None:
        """Tell all processes."""
        internal_kv._internal_kv_put(name.encode(), value, overwrite=True, namespace=_SPACE)

    def read(self, name: str) -> bytes | None:
        """What was told; None: nothing."""
        found: bytes | None = internal_kv._internal_kv_get(name.encode(), namespace=_SPACE)
        return found

    def erase(self, name: str) -> None:
        """Forget what was told."""
        internal_kv._internal_kv_del(name.encode(), namespace=_SPACE)

    def publish(self, key: int, place: Place) -> None:
        """The place of an object goes to Ray's head, which every process can ask."""
        self.write(f"{self._session}/object/{key:x}", ray.cloudpickle.dumps(place))

    def look_up(self, key: int) -> Place | None:
        """What :meth:`publish` was told."""
        found = self.read(f"{self._session}/object/{key:x}")
        return None if found is None else ray.cloudpickle.loads(found)

    # -- facts --------------------------------------------------------------------------------

    def accelerator_ids(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The devices of the running task."""
        found = ray.get_runtime_context().get_accelerator_ids()
        return tuple((kind, tuple(map(str, ids))) for kind, ids in found.items() if ids)

    def total_resources(self) -> dict[str, float]:
        """All that Ray's nodes have."""
        return dict(ray.cluster_resources())

    def free_resources(self) -> dict[str, float]:
        """What Ray's nodes have left."""
        return dict(ray.available_resources())

    def nodes(self) -> list[dict[str, Any]]:
        """Ray's nodes."""
        return list(ray.nodes())

    def close(self) -> None:
        """Forget what was told to others, and leave Ray."""
        if self._is_worker:
            return
        prefix = f"{self._session}/".encode()
        for name in internal_kv._internal_kv_list(prefix, namespace=_SPACE):
            internal_kv._internal_kv_del(name, namespace=_SPACE)
        self._loop_host = None
        self._end()


def _told(callback: Callable[[Any], None], value: Any) -> None:
    callback(_opened(value))


def _opened(value: Any) -> Any:
    """What a small value stands for: a receipt, or the list of those of a batch."""
    if isinstance(value, BaseException):
        return failure_from_ray(value)
    if value is None:  # what a generator of Ray's gives at its end
        return Receipt((pack_plain(None),))
    if (receipt := receipt_in(value)) is not None:
        return receipt
    if type(value) is not bytes:
        return value
    told = pickle.loads(value)
    return Receipt(*told) if type(told) is tuple else told


def launched(refs: Any, spec: TaskSpec) -> Launched:
    """What Ray gives for a call: one ref, or a list of them."""
    if isinstance(refs, list):
        return Launched(refs[0], refs[1:])
    return Launched(refs, (refs,) if spec.num_returns else ())
