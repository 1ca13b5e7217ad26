"""The embedded engine as a backend: what the driver's API talks to."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from taskloom import _current, _ids
from taskloom._config import Config
from taskloom._core.node import ObjectRecord, PlainCall
from taskloom._engine.backlog import LOOK_EVERY, YIELD_EVERY
from taskloom._engine.engine import Engine
from taskloom._engine.engine_thread import EngineThread
from taskloom._engine.large_arguments import LargeArguments
from taskloom._engine.portal import Portal, new_event_loop
from taskloom._engine.printer import Printer
from taskloom._engine.verdicts import no_engine
from taskloom._engine.waiters import Subscriber
from taskloom._spec import TaskSpec
from taskloom._store.stored import Block, Parts
from taskloom._wire.calls import pack_plain_arguments
from taskloom._wire.context_vars import ContextPacker
from taskloom._wire.custom_serializers import serializers
from taskloom._wire.serialization import (
    blame,
    dumps,
    loads,
    pack,
    pack_registrations,
    refuse,
    unpack,
    unpack_all,
)
from taskloom.backends import local_actors as actor_calls
from taskloom.backends import local_calls as calls
from taskloom.backends.base import FORCE_ON_ACTOR, ExecutionContext, FoundActor, Made
from taskloom.backends.local_group import LocalGroup
from taskloom.backends.local_waits import Waits
from taskloom.exceptions import (
    ActorHandleNotFoundError,
    GetTimeoutError,
    ObjectLostError,
    RayError,
)
from taskloom.ref import ObjectRef

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from taskloom._memory import MemoryReport

_CLOSED: Final = "the taskloom session is closed: call taskloom.init() to start another one"


class LocalBackend:
    """A session of the embedded engine, which runs on a thread of its own.

    Args:
        config: of the session.
        thread: for the engine; it has the process from which workers are forked.
    """

    is_worker: Final = False
    may_outlive: Final = False

    def __init__(self, config: Config, thread: EngineThread) -> None:
        registered = pack_registrations() if serializers.active else {}
        self.session_id = os.urandom(_ids.SESSION_BYTES)
        self.node_id = os.urandom(28).hex()
        self.job_id = "01000000"
        self.worker_id = os.urandom(28).hex()
        self.namespace = config.namespace
        facts = {
            "session_id": self.session_id,
            "node_id": self.node_id,
            "job_id": self.job_id,
            "namespace": self.namespace,
            "preload": list(config.preload),
            "worker_setup": list(_current.worker_setup),
        }
        self._printer = Printer()
        self._engine = Engine(config, self.session_id, facts, thread.surroundings, self._printer)
        for name, blob in registered.items():
            self._engine.spread((name, blob, True))
        try:
            self._portal = Portal(self._engine.settle)
        except OSError:  # no descriptor is left: those that were opened go
            self._engine.close()
            raise
        self._engine.storage.call_engine = self._portal.post_if_open
        self._arguments = LargeArguments(self._keep, self._put)
        self._engine.count_inbox = self._portal.count
        self._short_cut = self._engine.short_cut
        self._short_cut.take_in = self._portal.take_in
        self._portal.before_drain = self._short_cut.hide
        self._post = self._portal.post
        self._post_if_open = self._portal.post_if_open
        self._post_bare = self._portal.post_bare
        self._post_along = self._portal.post_along
        self._submit = self._engine.submit
        self._portal.take_bare = self._engine.take_bare
        self._create_actor: Callable[[Any], Any] = self._engine.actors.create
        self._call_actor = self._engine.actors.call
        self._waits = Waits(self._portal, self._engine)
        self._sleepers = self._engine.sleepers
        self._release = self._engine.loom.graph.release
        self._next_task = _ids.Mint(0).next_task
        self._contexts = ContextPacker(dumps, loads)
        self._sites = self._engine.sites if config.record_ref_creation_sites else None
        self._open_groups: set[LocalGroup] = set()
        self._loop: AbstractEventLoop | None = None
        self._stopping = False
        self._forked = False
        self._thread = thread
        _sessions.add(self)
        thread.go_on(self._run)

    def _run(self) -> None:
        """The engine's thread, from start to end."""
        engine, portal = self._engine, self._portal
        portal.thread_id = threading.get_ident()
        loop: AbstractEventLoop | None = None
        try:
            # First of all: the workers start on another core while this one loads uvloop.
            engine.start_processes(self._thread.take_zygote())
            self._loop = loop = new_event_loop()
            loop.set_exception_handler(self._on_loop_error)
            engine.attach(loop)
            portal.attach(loop)
        except BaseException as error:
            # Nobody may wait for ever: every call of this session gets the reason.
            engine.fail_everything(no_engine(error))
            self._loop = None
            portal.serve_until(lambda: self._stopping)
            engine.close()
            portal.finish()
            if loop is not None:
                loop.close()
            return
        loop.run_forever()
        portal.detach(loop)
        engine.close()
        portal.finish()
        loop.set_exception_handler(None)
        loop.close()
        self._loop = None  # no cycle may keep descriptors until a garbage collection

    def _on_loop_error(self, _loop: AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        sys.stderr.write(f"taskloom: internal error, please report: {context.get('message')}\n")
        if error is not None:
            sys.excepthook(type(error), error, error.__traceback__)

    # -- submit and put -----------------------------------------------------------------------

    def submit(self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]) -> Made:
        task = self._next_task()
        key = task + 1  # of the first result: one number for its record and its ref
        context = self._contexts.pack() if copy_context() else None
        if (
            spec.is_plain
            and not kwargs
            and context is None
            and not self._open_groups
            and (data := pack_plain_arguments(args)) is not None
        ):
            # Fast path, see ``PlainCall``.  Plain twin: the rest of this method.
            ref = calls.plain_call(self, key, spec, data)
            call: PlainCall = ref._record
            if self._short_cut.shown is None or not self._short_cut.hand_over(call, self._portal):
                self._post_bare(call)
            if self._sites is not None:
                self._sites.note(call.key, self._engine.loom.graph.objects)
            if not task & YIELD_EVERY:
                self._portal.let_engine_in()
                if not task & LOOK_EVERY:
                    self._engine.note_backlog()
            return ref
        return calls.submit_node(self, task, context, spec, args, kwargs)

    def put(self, value: object) -> ObjectRef[object]:
        try:
            payload, contained = pack(value, self._keep)
        except BaseException as error:
            if self._portal.closed is not None and isinstance(error, Exception):
                raise RuntimeError(self._portal.closed) from None
            refuse(error, value, "the value given to put()", "value")
        return self._put(payload, contained)

    def _keep(self, parts: Parts) -> Block:
        """Write a large value to the store."""
        try:
            if self._portal.closed is None:
                return self._engine.storage.keep(parts)
        except (RayError, RuntimeError, ValueError):
            if self._portal.closed is None:
                raise
        raise RuntimeError(self._portal.closed)  # perhaps while it was written

    def _put(self, payload: Any, contained: tuple[int, ...]) -> ObjectRef[object]:
        record = ObjectRecord(self._next_task() + 1)
        if isinstance(payload, Block):
            payload.keys.append(record.key)
        if self._sites is not None:
            self._sites.note(record.key, self._engine.loom.graph.objects)
        record.outcome = payload  # a get() that comes at once need not wait for the engine
        # First: what Ctrl-C interrupts here is dropped.
        ref: ObjectRef[object] = ObjectRef(record.key, self, record)
        self._post(self._engine.put, (record, payload, contained))
        return ref

    # -- actors -------------------------------------------------------------------------------

    def create_actor(
        self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> FoundActor:
        return actor_calls.create(self, spec, args, kwargs)

    def call_actor(
        self, key: int, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Made:
        return actor_calls.call(self, key, spec, args, kwargs)

    def kill_actor(self, key: int, *, no_restart: bool) -> None:
        if not self.ask_about_actors("is_known", key):
            raise ActorHandleNotFoundError("the actor of this handle is not known any more")
        self._post(self._engine.actors.kill_actor, (key, no_restart))

    def ask_about_actors(self, name: str, content: object) -> Any:
        return self._portal.call(lambda: self._engine.actors.answer(name, content))

    # -- get and wait -------------------------------------------------------------------------

    def get(self, refs: Sequence[ObjectRef[object]], timeout_s: float | None) -> list[object]:
        self._short_cut.is_fetched = True
        if len(refs) == 1:
            return [self._get_one(refs[0], timeout_s)]
        closed = self._portal.closed is not None
        for ref in refs:
            if ref._home is not self or closed:
                self._check(ref)
        records = [ref._record for ref in refs]
        pending = [record for record in records if record.outcome is None]
        if pending and timeout_s != 0 and True not in [record.failed for record in records]:
            if len(pending) > 1:
                pending = list(dict.fromkeys(pending))
            self._waits.for_all(pending, timeout_s)
        if self._printer.backlog or self._printer.writing:
            self._printer.flush()
        if True in [record.failed for record in records]:
            record = next(record for record in records if record.failed)
            record.seen = True
            raise record.outcome.revive()
        outcomes = [record.outcome for record in records]
        if missing := outcomes.count(None):
            raise GetTimeoutError(
                f"Get timed out: {missing} of {len(records)} objects are not there "
                f"after {timeout_s} s."
            )
        values: list[object] = []
        try:
            unpack_all(outcomes, values)
        except BaseException as error:
            at = len(values)
            if at == len(refs):
                raise  # Ctrl-C, behind the last one
            self._check(refs[at])  # it may have been closed meanwhile
            blame(error, outcomes[at], f"the value of {refs[at]!r}")
        return values

    def _get_one(self, ref: ObjectRef[object], timeout_s: float | None) -> object:
        # Fast path, see ``Sleepers``.  Plain twin: the rest of :meth:`get`, for many.
        if ref._home is not self or self._portal.closed is not None:
            self._check(ref)
        record = ref._record
        if record.outcome is None and timeout_s != 0:
            self._waits.for_one(record, timeout_s)
        if self._printer.backlog or self._printer.writing:
            self._printer.flush()
        if record.failed:
            record.seen = True
            raise record.outcome.revive()
        if record.outcome is None:
            raise GetTimeoutError(
                f"Get timed out: 1 of 1 objects are not there after {timeout_s} s."
            )
        try:
            return unpack(record.outcome)
        except BaseException as error:
            self._check(ref)  # it may have been closed meanwhile
            blame(error, record.outcome, f"the value of {ref!r}")

    def wait(
        self, refs: Sequence[ObjectRef[object]], num_returns: int, timeout_s: float | None
    ) -> tuple[list[ObjectRef[object]], list[ObjectRef[object]]]:
        self._short_cut.is_fetched = True
        pending = [r._record for r in refs if self._check(r)._record.outcome is None]
        missing = num_returns - (len(refs) - len(pending))
        if missing > 0 and timeout_s != 0:
            self._waits.for_some(pending, missing, timeout_s)
        if self._printer.backlog or self._printer.writing:
            self._printer.flush()
        ready: list[ObjectRef[object]] = []
        rest: list[ObjectRef[object]] = []
        for ref in refs:
            done = ref._record.outcome is not None
            (ready if done and len(ready) < num_returns else rest).append(ref)
        return ready, rest

    def open_group(self) -> LocalGroup:
        return LocalGroup(self, cast("LocalGroup | None", _current.open_group(self)))

    def is_done(self, ref: ObjectRef[object]) -> bool:
        return ref._record.outcome is not None

    def result(self, ref: ObjectRef[object]) -> object:
        record = ref._record
        self._short_cut.is_fetched = True
        if self._forked or ref._home is not self:
            self._check(ref)
        if self._printer.backlog or self._printer.writing:
            self._printer.flush()
        if record.failed:
            record.seen = True
            raise record.outcome.revive()
        try:
            return unpack(record.outcome)
        except BaseException as error:
            self._check(ref)  # it may have been closed meanwhile
            blame(error, record.outcome, f"the value of {ref!r}")

    def subscribe(
        self,
        refs: Sequence[ObjectRef[object]],
        callback: Callable[[int], None],
        loop: AbstractEventLoop | None = None,
    ) -> Callable[[], None]:
        self._short_cut.is_fetched = True
        if len(refs) == 1:
            # Fast path: an ``await``.  Plain twin: the rest, for many.
            record = self._check(refs[0])._record
            subscriber = Subscriber((record,), callback, loop, self._engine.wakeups)
            if not self._sleepers.add(record, subscriber):
                self._post(self._sleepers.wake, record)
            return partial(self._stop_one, record, subscriber)
        records = list(dict.fromkeys(self._check(ref)._record for ref in refs))
        subscriber = Subscriber(records, callback, loop, self._engine.wakeups)
        self._post(self._engine.watch, subscriber)

        def stop() -> None:
            subscriber.stopped = True
            self._post_if_open(self._engine.unwatch, subscriber)

        return stop

    def _stop_one(self, record: ObjectRecord, subscriber: Subscriber) -> None:
        subscriber.stopped = True
        self._sleepers.remove(record, subscriber)

    # -- the rest -----------------------------------------------------------------------------

    def cancel(self, ref: ObjectRef[object], *, force: bool, recursive: bool) -> None:
        key = self._check(ref)._key
        if force and self.ask_about_actors("is_call", key):
            raise ValueError(FORCE_ON_ACTOR)
        self._post(self._engine.cancel, (key, force, recursive))

    def abandon(self, ref: ObjectRef[object]) -> None:
        self._post_if_open(self._engine.abandon, ref._record)

    def withdraw(self, ref: ObjectRef[object]) -> bool:
        key = self._check(ref)._key
        if self._portal.is_here():
            return False
        return bool(self._portal.call(lambda: self._engine.loom.on_withdraw(key)))

    def adopt(self, key: int) -> ObjectRef[object]:
        record = self._engine.loom.graph.objects.get(key)
        if record is not None:
            self._post(self._engine.borrow, record)
        else:  # it may still stand in the inbox: ask in the order of the inbox
            record = self._portal.call(lambda: self._engine.borrow_key(key))
            if record is None:
                raise ObjectLostError(f"the object {key:#x} is no longer kept")
        return ObjectRef(key, self, record)

    def drop(self, ref: ObjectRef[object]) -> None:
        record = ref._record
        # What is small and done, and so ends nothing but itself, need not go at once.
        small = type(record.outcome) is bytes and not record.contains
        if small and not record.is_actor:  # with a handle an actor may go
            self._post_along(record)
        else:
            self._post_if_open(self._release, record)

    def pin(self, ref: ObjectRef[object]) -> None:
        self._post(self._engine.borrow, ref._record)

    def spread(self, name: str, blob: bytes, *, keep: bool) -> None:
        self._post(self._engine.spread, (name, blob, keep))

    def why(self, ref: ObjectRef[object]) -> str:
        key = self._check(ref)._key
        why = partial(self._engine.why, key, is_settled=not self._portal.is_here())
        return str(self._portal.call(why))

    def cluster_resources(self) -> dict[str, float]:
        ledger = self._engine.loom.ledger
        resources: dict[str, float] = self._portal.call(ledger.describe_total)
        return resources

    def memory(self) -> MemoryReport:
        report: MemoryReport = self._portal.call(self._engine.memory)
        return report

    def nodes(self) -> None:
        """There is but this machine."""

    def available_resources(self) -> dict[str, float]:
        ledger = self._engine.loom.ledger
        resources: dict[str, float] = self._portal.call(ledger.describe_free)
        return resources

    def context(self) -> ExecutionContext:
        return ExecutionContext()

    def is_canceled(self) -> bool:
        return False

    def shutdown(self) -> None:
        if self._portal.closed is not None:
            return
        self._portal.close(_CLOSED, self._stop)
        self._thread.join()
        self._printer.close()
        _sessions.discard(self)

    def _check(self, ref: ObjectRef[Any]) -> ObjectRef[Any]:
        if ref._home is not self:
            raise ValueError(f"{ref!r} does not belong to this session")
        if self._portal.closed is not None:
            if self._forked:
                raise RuntimeError(self._portal.closed)
            raise ValueError(f"{ref!r}: {self._portal.closed}")
        return ref

    def _stop(self, _: Any) -> None:
        """In the engine's thread: leave the loop."""
        self._stopping = True
        if self._loop is not None:
            self._loop.stop()

    def _after_fork_in_child(self) -> None:
        self._forked = True
        self._portal.closed = (
            f"the taskloom session belongs to process {os.getppid()}: fork is not supported, "
            "start a session of your own with taskloom.shutdown() and taskloom.init()"
        )
        self._engine.close_fds_after_fork()


# Sessions of this process, for the child of a fork.  Hooks cannot be taken back, so there is one.
_sessions: weakref.WeakSet[LocalBackend] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for session in list(_sessions):
        session._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
