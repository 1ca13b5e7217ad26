"""A session on a cluster: everything that Ray and Dask have in common.

What happens to a call is the cluster's: it queues, places, retries after crashes and moves values.
What a program sees of it is ours: refs, waiting, errors, groups, streams, and the rules by which a
worker runs a function (``cluster_run``).  Below is a ``cluster_driver.Driver``.

The same class serves the program and, with ``is_worker``, every worker process that runs one of
its tasks, so that tasks may submit, wait and put as the program does.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from taskloom import _current, _ids
from taskloom._memory import MemoryReport
from taskloom._spec import TaskSpec
from taskloom._store.stored import Parts
from taskloom._wire import serialization
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom.backends import cluster_context
from taskloom.backends.base import ExecutionContext, FoundActor, Made
from taskloom.backends.cluster_actors import ClusterActors
from taskloom.backends.cluster_batches import Batches
from taskloom.backends.cluster_calls import Calls
from taskloom.backends.cluster_driver import (
    SMALL_BYTES,
    Driver,
    Outcome,
    Place,
    Receipt,
    SessionFacts,
)
from taskloom.backends.cluster_group import ClusterGroup
from taskloom.backends.cluster_objects import Objects, Record, State
from taskloom.backends.cluster_values import Carried, carry, carry_parts, size_of
from taskloom.exceptions import GetTimeoutError, ObjectLostError, SessionClosedError
from taskloom.ref import ObjectRef

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_RANDOM_BITS: Final = 59  # of the number of a process: nobody hands them out (see ``_ids``)


class ClusterBackend:
    """See :class:`taskloom.backends.base.Backend`.

    Args:
        driver: the library of the cluster.
        facts: of the session.
        is_worker: this process runs its tasks.
    """

    may_outlive: Final = True

    def __init__(self, driver: Driver, facts: SessionFacts, *, is_worker: bool = False) -> None:
        self.is_worker = is_worker
        self.session_id = facts.session_id
        self.job_id = facts.job_id
        self.namespace = facts.namespace
        self.address = facts.address
        self.node_id = driver.node_id
        self.worker_id = driver.worker_id
        self.facts = facts
        self.driver = driver
        self.unheard: deque[Failure] = deque()
        self.objects = Objects(driver, self.unheard)
        self.next_task = _ids.Mint(
            int.from_bytes(os.urandom(8), "big") >> 64 - _RANDOM_BITS
        ).next_task
        self.group_lock = threading.RLock()
        self.open_groups: set[ClusterGroup] = set()
        self.calls = Calls(self)
        self._actors = ClusterActors(self)
        self.objects.arm = self._arm
        self.objects.tell = self._on_collected
        self.objects.let_go = self.calls.let_go
        self._batches = Batches(self) if facts.batches and not is_worker else None
        self._pinned: dict[int, Record] = {}
        self._arriving = threading.local()
        self.uses = 0
        """How often code has asked the session for something: short tasks do not."""
        self.closed = False

    # -- tasks --------------------------------------------------------------------------------

    def submit(self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]) -> Made:
        """Send one call."""
        return self.calls.send(spec, args, kwargs)

    def cancel(self, ref: ObjectRef[object], *, force: bool, recursive: bool) -> None:
        """Ask the cluster to end a task."""
        self.calls.cancel(ref, force=force, recursive=recursive)

    def abandon(self, ref: ObjectRef[object]) -> None:
        """Cancel the task when nobody else in this process wants it."""
        self.calls.abandon(ref)

    def withdraw(self, ref: ObjectRef[object]) -> bool:
        """Never: the cluster does not tell whether a call has begun."""
        self.record_of(ref)
        return False

    def is_canceled(self) -> bool:
        """True inside a task whose end was asked for."""
        told = self.context().task_key in cluster_context.cancelled
        return told or cluster_context.ask_cluster()

    # -- objects ------------------------------------------------------------------------------

    def put(self, value: object) -> ObjectRef[object]:
        """Keep a snapshot of ``value``; a small one stays here until it is asked for elsewhere."""
        self.check_open()
        self.report_unheard()
        try:
            outcome = carry(value, self.place_of)
        except BaseException as error:
            serialization.refuse(error, value, "the value given to put()", "value")
        return self._put(outcome)

    def _put(self, outcome: Outcome) -> ObjectRef[Any]:
        key = _ids.object_of(self.next_task(), 0)
        if isinstance(outcome, bytes) and len(outcome) <= SMALL_BYTES:
            return self.ref_of(self.objects.new_here(key, outcome))
        place = Place(value=self.driver.put(outcome))
        return self.ref_of(self.objects.new_there(key, place))

    def put_argument(
        self, _arg: object, _where: int | str, parts: Parts, nested: tuple[int, ...]
    ) -> ObjectRef[Any]:
        """Make an object of a large argument; see ``_wire.calls``."""
        return self._put(carry_parts(parts, {key: self.place_of(key) for key in nested}))

    def place_of(self, key: int) -> Place:
        """Where an object of this process is, for another one."""
        record = self.objects.by_key[key]
        self.give_place(record)
        assert record.place is not None
        return record.place

    def give_place(self, record: Record) -> None:
        """Make sure that others can find an object."""
        if record.place is not None:
            return
        if record.state == State.PENDING:
            # A call that waits for others goes alone now.  Else it is nothing that the cluster
            # knows of, a short call or the end of a group say: it comes soon.
            if self._batches is not None and self._batches.expedite(record):
                return
            self.objects.wait([record], 1, None, all_well=False)
        outcome = record.outcome
        assert outcome is not None, "what the cluster has, has a place"
        if size_of(outcome) <= SMALL_BYTES:
            record.place = Place(outcome=outcome)
        else:
            record.place = Place(value=self.driver.put(outcome))

    def ref_of(self, record: Record) -> ObjectRef[Any]:
        """One more ref to an object."""
        record.refs += 1
        return ObjectRef(record.key, self, record)

    def record_of(self, ref: ObjectRef[Any]) -> Record:
        """The record behind a ref.

        Raises:
            ValueError: it is of another session.
        """
        if ref._home is not self:
            raise ValueError(f"{ref!r} does not belong to the current session")
        record: Record = ref._record
        return record

    def adopt(self, key: int) -> ObjectRef[object]:
        """A ref to the object ``key``; to an error when nobody knows where it is."""
        record = self.objects.by_key.get(key)
        if record is None:
            place = getattr(self._arriving, "places", {}).get(key) or self.driver.look_up(key)
            if place is not None:
                record = self.objects.arrived(key, place)
            else:
                name = _ids.object_bytes(self.session_id, key).hex()
                lost = system_failure(ObjectLostError(f"The object {name} is gone."))
                record = self.objects.new_here(key, lost)
                record.heard = True
        return self.ref_of(record)

    def opening(self, places: Any, work: Callable[[], Any]) -> Any:
        """What ``work`` gives, which unpickles something that holds refs to ``places``."""
        before = getattr(self._arriving, "places", {})
        self._arriving.places = {**before, **places} if before else places
        try:
            return work()
        finally:
            self._arriving.places = before

    def open(self, outcome: Outcome) -> Any:
        """The value of an outcome, unpickled anew; raises the error."""
        if isinstance(outcome, Failure):
            raise outcome.revive()
        try:
            if isinstance(outcome, Carried) and outcome.places:
                return self.opening(outcome.places, partial(serialization.unpack, outcome))
            return serialization.unpack(outcome)
        except BaseException as error:
            serialization.blame(error, outcome, "the value")

    def drop(self, ref: ObjectRef[object]) -> None:
        """A ref object goes; its record goes with the last one."""
        record = ref._record
        if record is not None:
            record.refs -= 1

    def pin(self, ref: ObjectRef[object]) -> None:
        """Keep the object for the rest of the session, where all processes find it."""
        record = self.record_of(ref)
        if ref._key not in self._pinned:
            self._pinned[ref._key] = record
            self.driver.publish(ref._key, self.place_of(ref._key))

    def spread(self, name: str, blob: bytes, *, keep: bool) -> None:
        """Workers are told with the next call."""
        if not self.is_worker:
            self.calls.registered[name] = blob

    # -- waiting ------------------------------------------------------------------------------

    def _armed(self, refs: Sequence[ObjectRef[Any]]) -> list[Record]:
        """The records of refs; the end of each will be told."""
        records = [self.record_of(ref) for ref in refs]
        for record in records:
            if record.state == State.PENDING and not record.is_armed:
                self._arm(record)
        return records

    def _arm(self, record: Record) -> None:
        call = self.calls.of(record.key)
        if call is not None:
            self.calls.arm(call)
            return
        record.is_armed = True
        place = record.place
        if place is None or place.receipt is None:
            return  # somebody in this process settles it
        output, key = place.output, record.key

        self.driver.on_done(place.receipt, partial(self.objects.on_told, key, output))

    def _on_collected(self, record: Record, told: Receipt | Failure) -> None:
        """The end of a record, told to a thread that has waited for it at the cluster."""
        call = self.calls.of(record.key)
        if call is not None:
            self.calls.on_receipt(call, told)
        elif record.place is not None:
            self.objects.on_told(record.key, record.place.output, told)

    def get(self, refs: Sequence[ObjectRef[object]], timeout_s: float | None) -> list[object]:
        """The values; raises the error of the first that fails."""
        self.check_open()
        records = [self.record_of(ref) for ref in refs]
        distinct = list(dict.fromkeys(records))
        if not self.objects.wait(distinct, len(distinct), timeout_s, all_well=True):
            raise GetTimeoutError(
                f"Get timed out: some object(s) not ready after {timeout_s:g} s"
                if timeout_s
                else "Get timed out: some object(s) not ready"
            )
        for record in distinct:
            if record.failure is not None:
                self._value(record)
        self.report_unheard()
        return [self._value(record) for record in records]

    def wait(
        self, refs: Sequence[ObjectRef[object]], num_returns: int, timeout_s: float | None
    ) -> tuple[list[ObjectRef[object]], list[ObjectRef[object]]]:
        """Those that are done, at most ``num_returns``, and the rest."""
        self.check_open()
        records = [self.record_of(ref) for ref in refs]
        self.objects.wait(records, num_returns, timeout_s, all_well=False)
        ready: list[ObjectRef[object]] = []
        rest: list[ObjectRef[object]] = []
        for ref, record in zip(refs, records, strict=True):
            is_ready = record.state != State.PENDING and len(ready) < num_returns
            (ready if is_ready else rest).append(ref)
        return ready, rest

    def is_done(self, ref: ObjectRef[object]) -> bool:
        """Whether it is known here that it is done."""
        return self._armed((ref,))[0].state != State.PENDING

    def result(self, ref: ObjectRef[object]) -> object:
        """The value; raises the error."""
        self.check_open()
        return self._value(self.record_of(ref))

    def _value(self, record: Record) -> Any:
        outcome = record.outcome
        if outcome is None:
            assert record.place is not None
            outcome = self.driver.fetch(record.place.value, None)
        record.heard = True
        return self.open(outcome)

    def subscribe(
        self,
        refs: Sequence[ObjectRef[object]],
        callback: Callable[[int], None],
        loop: AbstractEventLoop | None = None,
    ) -> Callable[[], None]:
        """Call ``callback`` for each ref that is done."""
        return self.objects.subscribe(self._armed(refs), callback, loop)

    def why(self, ref: ObjectRef[object]) -> str:
        """What is known here: the cluster has its own tools for more."""
        record = self._armed((ref,))[0]
        if record.failure is not None:
            return "it is done: the task has failed"
        if record.state != State.PENDING:
            return "it is done"
        call = self.calls.of(ref._key)
        name = call.spec.name if call is not None else "a call of another process"
        return f"{name} is with {self.driver.title}, which queues or runs it"

    # -- groups -------------------------------------------------------------------------------

    def open_group(self) -> ClusterGroup:
        """A group of calls of this process."""
        self.check_open()
        return ClusterGroup(self, self.open_group_of_caller())

    def open_group_of_caller(self) -> ClusterGroup | None:
        """The group that a call made now belongs to."""
        if not self.open_groups:
            return None
        return cast("ClusterGroup | None", _current.open_group(self))

    # -- actors -------------------------------------------------------------------------------

    def create_actor(
        self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> FoundActor:
        """Make an actor, or find the living one that has its name."""
        return self._actors.create(spec, args, kwargs)

    def call_actor(
        self, key: int, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Made:
        """Queue one call of an actor."""
        return self._actors.call(key, spec, args, kwargs)

    def kill_actor(self, key: int, *, no_restart: bool) -> None:
        """End the process of an actor."""
        self._actors.kill(key, no_restart=no_restart)

    def ask_about_actors(self, name: str, content: object) -> Any:
        """Facts about actors."""
        return self._actors.answer(name, content)

    # -- the session --------------------------------------------------------------------------

    def cluster_resources(self) -> dict[str, float]:
        """All that there is."""
        return self.driver.total_resources()

    def nodes(self) -> list[dict[str, Any]]:
        """The machines of the cluster."""
        return self.driver.nodes()

    def available_resources(self) -> dict[str, float]:
        """What is free now."""
        return self.driver.free_resources()

    def memory(self) -> MemoryReport:
        """Refused: the objects are the cluster's.

        Raises:
            NotImplementedError: always.
        """
        self.not_here("memory()", "the cluster's own tools show its objects")

    def not_here(self, what: str, instead: str) -> NoReturn:
        """Refuse what this cluster cannot do."""
        raise NotImplementedError(f"{what} is not possible on {self.driver.title}: {instead}")

    def context(self) -> ExecutionContext:
        """Where the caller runs."""
        return cluster_context.here.get()

    def check_open(self) -> None:
        """Raise unless the session is open; it is used, whatever for."""
        self.uses += 1
        if self.closed:
            raise SessionClosedError

    def shutdown(self) -> None:
        """End the session; refs of it are of no use afterwards."""
        if self.closed:
            return
        self.closed = True
        if self._batches is not None:
            self._batches.close()
        self.calls.close(system_failure(SessionClosedError()))
        self._pinned.clear()
        self.report_unheard()
        self._actors.close()
        self.driver.close()

    def report_unheard(self) -> None:
        """Print the errors that went without anybody having asked for them (REM-20)."""
        while self.unheard:
            try:
                failure = self.unheard.popleft()
            except IndexError:
                return  # another thread was faster
            if not self.facts.ignore_unheard and not failure.cancelled:
                print(
                    "Unhandled error (suppress with 'RAY_IGNORE_UNHANDLED_ERRORS=1'): "
                    f"{failure.revive()}",
                    file=sys.stderr,
                )
