"""The calls that one process makes: how they are sent, how they end, how they are cancelled."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from taskloom import _ids
from taskloom._spec import TaskSpec
from taskloom._wire import serialization
from taskloom._wire.calls import encode_call
from taskloom._wire.context_vars import ContextPacker
from taskloom._wire.custom_serializers import serializers
from taskloom._wire.remote_errors import Failure, cancelled_failure, system_failure
from taskloom.backends.base import FORCE_ON_ACTOR, Made
from taskloom.backends.cluster_driver import (
    SMALL_BYTES,
    ActorHome,
    Here,
    Job,
    Launched,
    Outcome,
    Place,
    Receipt,
)
from taskloom.backends.cluster_objects import Record, State
from taskloom.backends.cluster_streams import open_stream
from taskloom.backends.cluster_values import size_of
from taskloom.exceptions import RaySystemError
from taskloom.generator import ObjectRefGenerator

if TYPE_CHECKING:
    from taskloom.backends.cluster import ClusterBackend
    from taskloom.backends.cluster_batches import Batches
    from taskloom.backends.cluster_group import ClusterGroup
    from taskloom.ref import ObjectRef

ARM_S: Final = 0.1
"""So long the end of a call may be unknown while nobody asks for it, when nothing is sent."""
LATEST_S: Final = 1.0
"""The same while the program sends more."""


class Call:
    """A call that this process has made and that is not over.

    Attributes:
        task: its key.
        spec: what is called.
        launched: the cluster's names of it; None: it is not with the cluster by itself.
        job, inputs: of one that waits for others to go with it.
        group: which it belongs to.
        actor: the key of the actor that it calls; 0: none.
        keeps: what lives until it is over.
        outputs: the keys of what it gives.
        cancelled: its end was asked for.
        is_armed: its end will be told.
        is_heard: others tell of its error, also when its records are gone.
        timer: ends its process when it does not end by itself.
    """

    __slots__ = (
        "actor", "cancelled", "group", "inputs", "is_armed", "is_heard", "job", "keeps",
        "launched", "missing", "outputs", "spec", "task", "timer",
    )  # fmt: skip

    def __init__(self, task: int, spec: TaskSpec) -> None:
        self.task = task
        self.spec = spec
        self.launched: Launched | None = None
        self.job: Job | None = None
        self.inputs: Sequence[Record] = ()
        self.missing = 0
        self.group: ClusterGroup | None = None
        self.actor = 0
        self.keeps: Any = None
        self.cancelled = False
        self.is_armed = False
        self.is_heard = False
        self.timer: threading.Timer | None = None
        first = _ids.object_of(_ids.TaskKey(task), 0)
        self.outputs = range(first, first + spec.num_returns)


class Calls:
    """See above.

    Args:
        home: whose they are.
    """

    def __init__(self, home: ClusterBackend) -> None:
        self._home = home
        self._driver = home.driver
        self._objects = home.objects
        self.running: dict[int, Call] = {}
        self._contexts = ContextPacker(serialization.dumps, serialization.loads)
        self.registered: dict[str, bytes] = {}
        if serializers.active:
            self.registered.update(serialization.pack_registrations())
        self._checked: set[int] = set()
        self.batches: Batches | None = None
        """Takes calls that may go together with others."""
        self._sizes: dict[int, bool] = {}
        """Whether what calls of a spec gave was small, by its number."""
        self.on_single: Callable[[Call, Receipt], None] = lambda call, receipt: None
        """Told of each call that has ended well by itself."""
        self.wants_to_know: Callable[[Call], bool] = lambda call: False
        """Whether the end of a call is to be told as soon as possible."""
        self._unarmed: deque[Call] = deque()
        self._sent = 0
        self._timer: threading.Timer | None = None

    # -- sending ------------------------------------------------------------------------------

    def send(
        self,
        spec: TaskSpec,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        actor: ActorHome | None = None,
        keeps: Any = None,
        failure: Failure | None = None,
    ) -> Made:
        """Send one call to a task or an actor.

        Args:
            spec, args, kwargs: as for ``Backend.submit``.
            actor: whom it calls.
            keeps: what lives until it is over.
            failure: it has failed before it was sent.
        """
        home = self._home
        home.check_open()
        if spec.number not in self._checked:
            self._driver.check(spec)
            self._checked.add(spec.number)
        job, inputs = self.encode(spec, args, kwargs)
        for record in inputs:
            record.heard = True  # the dependent tells of an error
            if (maker := self.of(record.key)) is not None:
                maker.is_heard = True  # its end may be told after that of the dependent
            if failure is None and (inner := record.failure) is not None:
                failure = inner.inherit()
        group = home.open_group_of_caller()
        together, early = False, None
        if group is None and failure is None and spec.stream is None:
            if actor is not None:
                if not inputs:
                    early = self._driver.call_actor_unnamed(actor, spec, job)
            elif self.batches is not None and self.batches.wants(spec, job, inputs):
                together = True
            elif not inputs:
                early = self._driver.submit_unnamed(spec, job)
        call = Call(job.task if early is None else early[0], spec)
        if actor is not None:
            call.actor, call.keeps = actor.key, keeps
        call.inputs = inputs
        call.is_heard = group is not None or spec.stream is not None
        records = [self._objects.new(key) for key in call.outputs]
        if group is not None:
            for record in records:
                record.heard = True  # the group tells of it
            if failure is None and group.cancelled:
                failure = self.cancelled(call)
        if spec.stream is not None:
            return self._send_stream(call, job, inputs, actor, group, failure)
        refs = [home.ref_of(record) for record in records]
        if failure is not None:
            self._fail_unsent(call, group, failure)
        elif early is not None:
            self.launch(call, early[1])
        elif together and self.batches is not None:
            self.batches.take(call, job, inputs)
        else:
            with self._membership(call, group):
                fills = [self.fill(record) for record in inputs]
                if actor is None:
                    launched = self._driver.submit(spec, job, fills)
                else:
                    launched = self._driver.call_actor(actor, spec, job, fills)
                self.launch(call, launched)
        home.report_unheard()
        if spec.num_returns == 1:
            return refs[0]
        return refs or None

    @contextmanager
    def _membership(self, call: Call, group: ClusterGroup | None) -> Iterator[None]:
        """A call joins its group before it is sent: it may be over before that returns."""
        if group is None:
            yield
            return
        group.enter(call)
        try:
            yield
        except BaseException:
            group.on_ended(call, None)
            raise
        if group.cancelled:
            self.cancel_call(call)

    def _fail_unsent(self, call: Call, group: ClusterGroup | None, failure: Failure) -> None:
        self._objects.settle((key, failure) for key in call.outputs)
        if group is not None:
            group.on_ended(call, failure)

    def launch(self, call: Call, launched: Launched) -> None:
        """The cluster has a call."""
        call.launched = launched
        for output, key in enumerate(call.outputs):
            record = self._objects.by_key.get(key)
            if record is not None:
                record.place = Place(launched.receipt, output, launched.values[output])
        self.running[call.task] = call
        spec = call.spec
        is_new = spec.number not in self._sizes or self.wants_to_know(call)
        if is_new or call.group is not None or spec.stream is not None:
            self.arm(call)
            return
        self._sent += 1
        self._note_unarmed(call)

    def arm(self, call: Call) -> None:
        """Have the end of a call told to this process.

        Not at once for all: the library calls back for each on a thread that handles the answers
        of workers, and that thread waits for the interpreter while the program submits more.
        """
        if call.launched is not None and not call.is_armed:
            call.is_armed = True
            self._driver.on_done(call.launched.receipt, partial(self.on_receipt, call))

    def _note_unarmed(self, call: Call) -> None:
        self._unarmed.append(call)
        if self._timer is None:
            self._start_timer(self._sent, LATEST_S - ARM_S)

    def _start_timer(self, sent: int, patience_s: float) -> None:
        timer = threading.Timer(ARM_S, self._on_timer, (sent, patience_s))
        timer.name = "taskloom-receipts"
        timer.daemon = True
        self._timer = timer
        timer.start()

    def _on_timer(self, sent: int, patience_s: float) -> None:
        """In a thread: learn the end of what nobody has asked for yet.

        While the program sends calls one after another it mostly asks for them itself in the end,
        and what is done until then is collected in one go.
        """
        if self._home.closed:
            return
        is_busy = self._sent != sent
        if is_busy and patience_s > 0:
            self._start_timer(self._sent, patience_s - ARM_S)
            return
        self._timer = None
        calls: list[Call] = []
        while self._unarmed:
            call = self._unarmed.popleft()
            if call.task in self.running and not self._is_collected(call):
                calls.append(call)
        if self._driver.waits_at_cluster:
            self.look_at(calls)
        for call in calls:
            if call.task not in self.running:
                continue
            if is_busy:
                self._note_unarmed(call)
            else:
                self.arm(call)

    def _is_collected(self, call: Call) -> bool:
        """Whether some thread waits for the end of a call, and tells of it."""
        by_key = self._objects.by_key
        return any(
            (record := by_key.get(key)) is not None and record.is_collected for key in call.outputs
        )

    def let_go(self, records: Sequence[Record]) -> None:
        """The threads that have waited for these do so no longer."""
        for record in records:
            call = self.of(record.key)
            if call is not None and not call.is_armed and call.launched is not None:
                self._note_unarmed(call)

    def look_at(self, calls: Sequence[Call]) -> None:
        """Learn which of these are over, without waiting."""
        receipts = {call.launched.receipt: call for call in calls if call.launched is not None}
        if not receipts:
            return
        told = self._driver.collect(list(receipts), len(receipts), 0.0)
        for handle, one in told.items():
            self.on_receipt(receipts[handle], one)

    def _send_stream(
        self,
        call: Call,
        job: Job,
        inputs: list[Record],
        actor: ActorHome | None,
        group: ClusterGroup | None,
        failure: Failure | None,
    ) -> ObjectRefGenerator[object]:
        if failure is not None:
            source = open_stream(self._home, call, None, failure)
            self._fail_unsent(call, group, failure)
            return ObjectRefGenerator(source)
        with self._membership(call, group):
            fills = [self.fill(record) for record in inputs]
            if actor is None:
                made = self._driver.stream(call.spec, job, fills)
            else:
                made = self._driver.stream_actor(actor, call.spec, job, fills)
            source = open_stream(self._home, call, made, None)
            self.launch(call, made.launched)
        return ObjectRefGenerator(source)

    def encode(
        self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[Job, list[Record]]:
        """A call on its way, and the records of its dependencies."""
        home = self._home
        payload, holes, refs, nested = encode_call(args, kwargs, spec.name, home.put_argument)
        inputs = [home.record_of(ref) for ref in refs]
        job = Job(
            home.next_task(),
            payload,
            holes,
            {key: home.place_of(key) for key in nested} if nested else {},
            self._contexts.pack(),
            tuple(self.registered.items()) if self.registered else (),
        )
        return job, inputs

    def fill(self, record: Record) -> Any:
        """A dependency, as it is given to the driver."""
        outcome = record.outcome
        if outcome is not None and size_of(outcome) <= SMALL_BYTES:
            return Here(outcome)
        self._home.give_place(record)
        place = record.place
        assert place is not None
        return place.value if place.outcome is None else Here(place.outcome)

    # -- the end ------------------------------------------------------------------------------

    def on_receipt(self, call: Call, told: Receipt | Failure) -> None:
        """A call is over."""
        if self.running.pop(call.task, None) is None:
            return
        outcomes: Sequence[Outcome | None]
        if isinstance(told, Failure):
            if call.cancelled and not told.cancelled:
                told = self.cancelled(call)
            failure: Failure | None = told
            outcomes = [told] * call.spec.num_returns
        else:
            outcomes = told.outcomes
            failure = next((one for one in outcomes if isinstance(one, Failure)), None)
            if failure is None:
                if call.launched is not None:
                    self._learn(call.spec, is_small=None not in outcomes)
                self.on_single(call, told)
        timer, call.timer = call.timer, None
        if timer is not None:
            timer.cancel()
        group = call.group
        self._objects.settle(zip(call.outputs, outcomes, strict=False), is_heard=call.is_heard)
        call.keeps, call.job, call.inputs = None, None, ()
        if group is not None:
            group.on_ended(call, failure)

    def _learn(self, spec: TaskSpec, *, is_small: bool) -> None:
        if self._sizes.get(spec.number) is not is_small:
            self._sizes[spec.number] = is_small
            self._driver.learn(spec, is_small=is_small)

    def cancelled(self, call: Call | Job) -> Failure:
        """The outcome of a call that was cancelled."""
        return cancelled_failure(_ids.task_bytes(self._home.session_id, call.task).hex())

    def broken(self, error: BaseException, spec: TaskSpec) -> Failure:
        """The outcome of a call that could not be sent."""
        text = f"{spec.name}() could not be given to {self._driver.title}: {error!r}"
        return system_failure(RaySystemError(text))

    def of(self, key: int) -> Call | None:
        """The call of this process that makes an object, if it is not over."""
        return self.running.get(_ids.task_of(key))

    def cancel(self, ref: ObjectRef[object], *, force: bool, recursive: bool) -> None:
        """Ask the cluster to end a task; after ``cancel_grace`` seconds its process is ended."""
        record = self._home.record_of(ref)
        if record.state != State.PENDING:
            return
        call = self.of(ref._key)
        if call is not None:
            if force and call.actor:
                raise ValueError(FORCE_ON_ACTOR)
            self.cancel_call(call, force=force, recursive=recursive)
        elif record.place is not None and record.place.receipt is not None:
            launched = Launched(record.place.receipt, (record.place.value,))
            self._driver.cancel(launched, force=force, recursive=recursive)

    def cancel_call(self, call: Call, *, force: bool = False, recursive: bool = True) -> None:
        """Ask for the end of a call of this process."""
        if call.task not in self.running:
            return
        call.cancelled = True
        launched = call.launched
        if launched is None:
            # It waits for others, or goes with others: it is short, and nobody hears of it again.
            self.on_receipt(call, self.cancelled(call))
            return
        self._driver.cancel(launched, force=force, recursive=recursive)
        if call.timer is None and not call.actor:
            # Not for actors: their processes are other people's, too.
            self._have_patience(call, recursive)

    def _have_patience(self, call: Call, recursive: bool) -> None:
        grace_s = self._home.facts.cancel_grace
        if grace_s is not None:
            call.timer = threading.Timer(grace_s, self._lose_patience, (call, recursive))
            call.timer.name = "taskloom-cancel"
            call.timer.daemon = True
            call.timer.start()

    def _lose_patience(self, call: Call, recursive: bool) -> None:
        call.timer = None
        if call.task in self.running and call.launched is not None:
            self._driver.cancel(call.launched, force=True, recursive=recursive)
            self._have_patience(call, recursive)  # a request may be lost on the way

    def abandon(self, ref: ObjectRef[object]) -> None:
        """Cancel the task when this process has no other ref, and nobody else waits for it."""
        record = self._home.record_of(ref)
        call = self.of(ref._key)
        if call is None or call.actor or not self._home.facts.await_cancels:
            return
        if record.refs <= 1 and not record.waiters:
            self.cancel_call(call)

    def close(self, why: Failure) -> None:
        """The session ends: what is not over fails."""
        self._unarmed.clear()
        for call in list(self.running.values()):
            timer, call.timer = call.timer, None
            if timer is not None:
                timer.cancel()
            # Only those that somebody still has a ref of: the others would count as unheard.
            records = [r for key in call.outputs if (r := self._objects.by_key.get(key))]
            for record in records:
                record.heard = True
            self._objects.settle((record.key, why) for record in records)
        self.running.clear()
