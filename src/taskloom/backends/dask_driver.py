"""The driver of ``cluster_driver`` for Dask: our calls as Dask's tasks.

Each call is one task of Dask's, whose value is an ``Answer`` (see ``dask_handles``).  Dependents
name that task, so that Dask resolves them, places them near it and makes lost values again.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, Final

import dask
import distributed

from taskloom._options import from_units
from taskloom._spec import TaskSpec
from taskloom._wire.remote_errors import Failure
from taskloom._wire.serialization import pack_plain
from taskloom.backends import cluster_context, dask_head
from taskloom.backends.base import FoundActor
from taskloom.backends.cluster_driver import (
    ActorHome,
    Handle,
    Here,
    Job,
    Launched,
    Outcome,
    Place,
    Receipt,
    SessionFacts,
    Stream,
)
from taskloom.backends.cluster_values import Carried
from taskloom.backends.dask_actors import DaskActors
from taskloom.backends.dask_arrivals import Arrivals
from taskloom.backends.dask_cancel import Canceller
from taskloom.backends.dask_errors import failure_from_dask
from taskloom.backends.dask_handles import (
    Kept,
    Output,
    Promise,
    Stored,
    bind,
    clients,
    futures_in,
    put_away,
    snapshot,
)
from taskloom.backends.dask_program import FREE
from taskloom.backends.dask_streams import DaskStream
from taskloom.backends.dask_waits import is_connected, wait_for, wait_for_any
from taskloom.backends.dask_worker import (
    outcome_of,
    pack_call,
    pick,
    run,
    run_batch,
    run_free,
    run_free_stream,
    run_stream,
)
from taskloom.exceptions import GetTimeoutError, RaySystemError

CONNECT_S: Final = 10.0
"""How long the connection to the scheduler may be away."""
_FIRST: Final = 1_000_000
"""The priority of calls that need no slot: they hold nobody up."""


class DaskDriver:
    """See :class:`taskloom.backends.cluster_driver.Driver`.

    Args:
        facts: of the session.
        client: of Dask's.
        is_worker: this process is one of Dask's workers.
        end: ends the connection of the program.
    """

    title = "Dask"

    def __init__(
        self,
        facts: SessionFacts,
        client: Any,
        *,
        is_worker: bool,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        worker = distributed.get_worker() if is_worker else None
        self.client = client
        clients[:] = [client]
        # What Dask's own functions find out about the worker they are in: the context of a call
        # of ours begins empty.
        self._context = copy_context()
        self.node_id: str = worker.address if worker is not None else f"{client.id}"
        self.worker_id: str = worker.id if worker is not None else f"{client.id}"
        self.waits_at_cluster = True
        self.waits_for_any = self.shows_waiting = is_worker
        self.session = facts.session_id.hex()
        self._ours = {dask_head.OURS: dask_head.plugin_name(self.session)}
        self._is_worker = is_worker
        self._end = end
        self._packed: dict[int, bytes] = {}
        self._resources: dict[int, dict[str, float]] = {}
        self._declared: frozenset[str] = frozenset(facts.extra.get("declared", ()))
        self._numbers = itertools.count(1)
        self._prefix = f"{self.session[:12]}-{os.urandom(4).hex()}"
        self._arrivals = Arrivals(self)
        self._actors = DaskActors(self)
        self.canceller = Canceller(client, self.session)

    # -- calls --------------------------------------------------------------------------------

    def check(self, spec: TaskSpec) -> None:
        """Refuse what Dask has not."""
        if spec.actor is not None:
            self._actors.check(spec)

    def packed(self, spec: TaskSpec) -> bytes:
        """A spec as it travels, packed once."""
        found = self._packed.get(spec.number)
        if found is None:
            retried: Any = spec.retry_exceptions
            if not isinstance(retried, bool):
                retried = spec.retry_blob
            plain = dataclasses.replace(spec, retry_exceptions=retried, number=0)
            found = self._packed[spec.number] = pickle.dumps(plain, 5)
        return found

    def submit(self, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> Launched:
        """One task of Dask's."""
        promise = self.send(spec, job, fills, run if _asks_for_cpu(spec) else run_free)
        return Launched(promise, [Output(promise, index) for index in range(spec.num_returns)])

    def submit_unnamed(self, spec: TaskSpec, job: Job) -> tuple[int, Launched] | None:
        """Never: Dask is told the name."""
        return None

    def learn(self, spec: TaskSpec, *, is_small: bool) -> None:
        """Nothing follows from it: an answer is one value of Dask's in any case."""

    def send(
        self,
        spec: TaskSpec,
        job: Job,
        fills: Sequence[Any],
        function: Callable[..., Any],
        *,
        key: str = "",
        free: bool = False,
        before: Sequence[Any] = (),
        actor: bool = False,
    ) -> Promise:
        """Have Dask run ``function(key, session, spec, call, *before, *values)``.

        Args:
            spec, job, fills: as for :meth:`submit`.
            function: what to run.
            key: Dask's name of it; empty: made here.
            free: it holds no slot, whatever ``spec`` asks for.
            before: arguments that come before the dependencies.
            actor: it makes an actor of Dask's.
        """
        self._check_connection()
        here = [_at_hand(fill) for fill in fills]
        values = [self._value(fill) for fill, at in zip(fills, here, strict=True) if at is None]
        keeps = futures_in(job.places.values()) if job.places else []
        key = key or f"{spec.name}-{self.session[:12]}{job.task:016x}"
        if job.attempts:
            key += f"-{job.attempts}"
        options = self._options(spec)
        marks = _marks(spec, job)
        if free:
            options, marks = self.free_options(), {}
        with dask.annotate(**self._ours, **marks):
            future = self.client.submit(
                function,
                key.encode(),
                self.session,
                self.packed(spec),
                pack_call(job, here),
                *before,
                *values,
                key=key,
                actor=actor,
                fifo_timeout=0,  # in the order of submission
                **options,
            )
        promise = Promise(key, spec.num_returns, job.task, future, keeps)
        parent = cluster_context.here.get().task_key if self._is_worker else None
        if parent is not None:
            self.canceller.note_child(parent, promise)
        return promise

    def _value(self, fill: Any) -> Any:
        """What Dask is to resolve."""
        if not isinstance(fill, Output):
            return fill.future
        promise = fill.promise
        if promise.outputs == 1:
            return promise.future
        if fill.picked is None:
            key = f"{promise.key}-{fill.index}"
            fill.picked = self.client.submit(pick, promise.future, fill.index, key=key)
        return fill.picked

    def _request(self, spec: TaskSpec) -> dict[str, float] | None:
        """What a task asks for, in Dask's words: CPUs only where workers say how many they have."""
        found = self._resources.get(spec.number)
        if found is None:
            found = self._resources[spec.number] = {
                name: from_units(units)
                for name, units in spec.request
                if name not in ("CPU", "memory") or name in self._declared
            }
            if FREE in self._declared and not _asks_for_cpu(spec):
                found[FREE] = 1
        return found or None

    def _options(self, spec: TaskSpec) -> dict[str, Any]:
        priority = spec.priority if _asks_for_cpu(spec) else spec.priority + _FIRST
        return {"priority": priority, "resources": self._request(spec)}

    def free_options(self) -> dict[str, Any]:
        """Of what holds no slot."""
        return {"priority": _FIRST, "resources": {FREE: 1} if FREE in self._declared else None}

    def stream(self, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> Stream:
        """One task of Dask's, and a queue between it and the consumer."""
        run_it = run_stream if _asks_for_cpu(spec) else run_free_stream
        promise = self.send(spec, job, fills, run_it)
        return DaskStream(self, spec, job.task, promise)

    def run_many(self, number: int, specs: Sequence[TaskSpec], batch: bytes) -> Handle:
        """One task of Dask's for many calls; Dask does not try it again, we do."""
        key = f"taskloom_batch-{self._prefix}{number:08x}"
        packed = [self.packed(spec) for spec in specs]
        with dask.annotate(**self._ours):
            future = self.client.submit(
                run_batch,
                key.encode(),
                self.session,
                number,
                packed,
                batch,
                key=key,
                fifo_timeout=0,
                resources=self._request(specs[0]),
            )
        return Promise(key, 1, 0, future)

    def _check_connection(self) -> None:
        """It is there, or comes back."""
        if not is_connected(self.client, CONNECT_S):
            raise RaySystemError("the connection to Dask's scheduler is gone")

    # -- values -------------------------------------------------------------------------------

    def put(self, value: Outcome) -> Handle:
        """Keep a value with a worker; in a worker: with this one."""
        return self.put_as(f"value-{self._prefix}{next(self._numbers):08x}", value)

    def put_as(self, key: str, value: Outcome) -> Stored:
        """Keep a value under a name of its own."""
        if self._is_worker:
            value = snapshot(value)
        scatter = partial(self.client.scatter, {key: put_away(value)})
        future = self._context.copy().run(scatter)[key]
        # The worker that has it keeps what is inside, too, but it may not have said so yet.
        inside = futures_in(value.places.values()) if isinstance(value, Carried) else None
        return Stored(key, 1, 0, future, inside)

    def on_done(self, handle: Handle, callback: Callable[[Any], None]) -> None:
        """Have the thread of arrivals call back."""
        self._arrivals.watch(handle, callback)

    def fetch(self, handle: Handle, timeout_s: float | None) -> Outcome:
        """Bring a value here."""
        if isinstance(handle, ActorHome):
            return pack_plain(None)
        outcome: Outcome | None
        if isinstance(handle, Kept | Output) and (outcome := handle.outcome) is not None:
            return outcome
        future = self._value(handle)
        try:
            value = future.result(timeout_s)
        except (TimeoutError, distributed.TimeoutError):
            raise GetTimeoutError(f"the value did not come within {timeout_s} s") from None
        except BaseException as error:
            if future.status == "pending" and not isinstance(error, Exception):
                raise  # Ctrl-C, or the end of the task that waits
            return failure_from_dask(error, future.key)
        outcome = outcome_of(value)
        bind(outcome)
        return outcome

    def receipt(self, handle: Handle) -> Receipt | Failure:
        """A receipt that is there."""
        return self._arrivals.receipt(handle)

    def collect(
        self, handles: Sequence[Handle], count: int, timeout_s: float | None
    ) -> Mapping[Handle, Receipt | Failure]:
        """Wait as Dask's own programs do: a task lends its thread meanwhile."""
        pending = [handle for handle in handles if not handle.is_done]
        if pending and timeout_s != 0 and len(handles) - len(pending) < count:
            if self.shows_waiting:
                wait_for_any(pending, timeout_s)
            else:  # to wait for each costs as much as to send it: the others will be done, too
                wait_for(pending[-1], timeout_s)
        return self._arrivals.collect([handle for handle in handles if handle.is_done])

    def cancel(self, launched: Launched, *, force: bool, recursive: bool) -> None:
        """Ask for the end of a task."""
        self.canceller.cancel(launched.receipt, force=force, recursive=recursive)

    # -- actors -------------------------------------------------------------------------------

    def create_actor(
        self, spec: TaskSpec, job: Job, fills: Sequence[Any]
    ) -> ActorHome | FoundActor:
        """An actor of Dask's."""
        return self._actors.create(spec, job, fills)

    def call_actor(
        self, actor: ActorHome, spec: TaskSpec, job: Job, fills: Sequence[Any]
    ) -> Launched:
        """A task of Dask's that calls one."""
        promise = self._actors.call(actor, spec, job, fills)
        return Launched(promise, [Output(promise, index) for index in range(spec.num_returns)])

    def call_actor_unnamed(
        self, actor: ActorHome, spec: TaskSpec, job: Job
    ) -> tuple[int, Launched] | None:
        """Never, as above."""
        return None

    def stream_actor(
        self, actor: ActorHome, spec: TaskSpec, job: Job, fills: Sequence[Any]
    ) -> Stream:
        """The same for a generator method."""
        return DaskStream(self, spec, job.task, self._actors.call(actor, spec, job, fills))

    def kill_actor(self, actor: ActorHome, *, no_restart: bool) -> None:
        """End an actor; it does not come back."""
        if not no_restart:
            raise NotImplementedError("kill(no_restart=False): actors are not restarted on Dask")
        self._actors.kill(actor)

    def actor_of(self, key: int) -> ActorHome | None:
        """By its key."""
        return self._actors.by_key(key)

    def find_actor(self, namespace: str, name: str) -> ActorHome | None:
        """By its name."""
        return self._actors.find(namespace, name)

    def list_actors(self, namespace: str) -> list[tuple[str, str]]:
        """By name."""
        return self._actors.names(namespace)

    # -- what all processes of a session know ---------------------------------------------------

    def write(self, name: str, value: bytes) -> None:
        """Tell all processes."""
        self.client.run_on_scheduler(dask_head.write, self.session, name, value, fresh=False)

    def write_fresh(self, name: str, value: bytes) -> bool:
        """The same, unless something was told under that name; whether nothing was."""
        written: bool = self.client.run_on_scheduler(
            dask_head.write, self.session, name, value, fresh=True
        )
        return written

    def names(self, prefix: str) -> list[str]:
        """The names that begin so under which something was told."""
        found: list[str] = self.client.run_on_scheduler(dask_head.names, self.session, prefix)
        return found

    def read(self, name: str) -> bytes | None:
        """What was told; None: nothing."""
        found: bytes | None = self.client.run_on_scheduler(dask_head.read, self.session, name)
        return found

    def erase(self, name: str) -> None:
        """Forget what was told."""
        self.client.run_on_scheduler(dask_head.erase, self.session, name)

    def publish(self, key: int, place: Place) -> None:
        """The place of an object goes to the scheduler, which every process can ask."""
        self.write(f"object/{key:x}", pickle.dumps(place, 5))

    def look_up(self, key: int) -> Place | None:
        """What :meth:`publish` was told."""
        found = self.read(f"object/{key:x}")
        if found is None:
            return None
        place: Place = pickle.loads(found)
        bind(place)
        return place

    # -- facts --------------------------------------------------------------------------------

    def accelerator_ids(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Dask hands out amounts, not devices."""
        return ()

    def total_resources(self) -> dict[str, float]:
        """All that Dask's workers have."""
        return _sum_up(self.client.run_on_scheduler(dask_head.inventory), 0)

    def free_resources(self) -> dict[str, float]:
        """What Dask's workers have left."""
        return _sum_up(self.client.run_on_scheduler(dask_head.inventory), 1)

    def nodes(self) -> list[dict[str, Any]]:
        """Dask's workers, in the form of Ray's nodes."""
        found = self.client.run_on_scheduler(dask_head.inventory)
        return [
            {
                "NodeID": address,
                "Alive": True,
                "NodeManagerAddress": host,
                "NodeManagerHostname": host,
                "NodeName": str(name),
                "Resources": total,
                "Labels": {},
            }
            for address, host, name, total, _free in found
        ]

    def close(self) -> None:
        """Forget the session at the scheduler and the workers, and leave Dask."""
        if self._is_worker:
            return
        self.canceller.close()
        self._arrivals.close()
        clients.clear()
        self._end()


def _asks_for_cpu(spec: TaskSpec) -> bool:
    return any(name == "CPU" for name, _ in spec.request)


def _marks(spec: TaskSpec, job: Job) -> dict[str, bool]:
    """What the head is to know of a task."""
    return {
        mark: True
        for mark, holds in (
            (dask_head.ONCE, spec.max_retries == 0),
            (dask_head.CAREFUL, 0 <= spec.max_retries <= job.attempts),
        )
        if holds
    }


def _at_hand(fill: Any) -> Here | None:
    """A dependency that need not be resolved by Dask; None: another one."""
    if isinstance(fill, Here):
        return fill
    outcome = fill.outcome if isinstance(fill, Kept | Output) else None
    return None if outcome is None else Here(outcome)


def _sum_up(found: Sequence[Any], which: int) -> dict[str, float]:
    total: dict[str, float] = {}
    for entry in found:
        for name, amount in entry[3 + which].items():
            if name == FREE:
                continue
            total[name] = total.get(name, 0.0) + amount
    return total
