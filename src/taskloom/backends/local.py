"""The embedded engine as a backend: what the driver's API talks to."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from taskloom import _current, _ids
from taskloom._config import Config
from taskloom._core.node import Node, ObjectRecord
from taskloom._engine.engine import Engine
from taskloom._engine.portal import Portal, new_event_loop
from taskloom._engine.printer import Printer
from taskloom._engine.waiters import ThreadWaiter
from taskloom._pool.zygote_handle import Surroundings
from taskloom._spec import TaskSpec
from taskloom._wire.calls import encode_call
from taskloom._wire.context_vars import ContextPacker
from taskloom._wire.serialization import (
    ForeignRefError,
    dumps,
    explain,
    loads,
    pack,
    unpack,
)
from taskloom.backends.base import ExecutionContext
from taskloom.exceptions import GetTimeoutError, InternalError, ObjectLostError
from taskloom.ref import ObjectRef

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_LOOK_EVERY: Final = 1023 << _ids.INDEX_BITS  # one task key in 1,024 has none of these bits
_CLOSED: Final = "the taskloom session is closed: call taskloom.init() to start another one"


class LocalBackend:
    """A session of the embedded engine, which runs on a thread of its own.

    Args:
        config: of the session.
    """

    is_worker: Final = False

    def __init__(self, config: Config) -> None:
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
        surroundings = Surroundings.of_this_process()
        self._engine = Engine(config, self.session_id, facts, surroundings, self._printer)
        self._portal = Portal(self._engine.settle)
        self._engine.count_inbox = self._portal.__len__
        self._post = self._portal.post
        self._post_if_open = self._portal.post_if_open
        self._submit = self._engine.submit
        self._release = self._engine.release
        self._next_task = _ids.Mint(0).next_task
        self._contexts = ContextPacker(dumps, loads)
        self._loop: AbstractEventLoop | None = None
        self._stopping = False
        self._forked = False
        self._thread = threading.Thread(target=self._run, name="taskloom-engine", daemon=True)
        _sessions.add(self)
        self._thread.start()

    def _run(self) -> None:
        """The engine's thread, from start to end."""
        engine, portal = self._engine, self._portal
        portal.thread_id = threading.get_ident()
        try:
            # First of all: the zygote starts on another core while this one loads uvloop.
            engine.start_processes()
            self._loop = loop = new_event_loop()
            loop.set_exception_handler(self._on_loop_error)
            engine.attach(loop)
            portal.attach(loop)
        except BaseException as error:
            # Nobody may wait for ever: every call of this session gets the reason.
            engine.fail_everything(f"the engine could not start: {error!r}")
            portal.serve_until(lambda: self._stopping)
            engine.close()
            portal.finish()
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

    def submit(
        self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> ObjectRef[object] | list[ObjectRef[object]] | None:
        payload, holes, refs, nested = encode_call(args, kwargs, spec.name)
        task = self._next_task()
        count = spec.num_returns
        record = ObjectRecord(task + 1)
        outputs: tuple[ObjectRecord, ...] = (record,)
        if count != 1:
            outputs = tuple([ObjectRecord(task + 1 + index) for index in range(count)])
        deps = tuple([self._check(ref)._record for ref in refs]) if refs else ()
        node = Node(task, spec, payload, holes, deps, outputs)
        node.nested = nested  # type: ignore[assignment]  # keys; the engine looks them up
        node.context = self._contexts.pack()
        self._post(self._submit, node)
        if not task & _LOOK_EVERY:
            self._engine.note_backlog()
        if count == 1:
            return ObjectRef(task + 1, self, record)
        return [ObjectRef(output.key, self, output) for output in outputs] or None

    def put(self, value: object) -> ObjectRef[object]:
        try:
            payload, contained = pack(value)
        except ForeignRefError:
            raise
        except Exception as error:
            raise explain(error, value, "the value given to put()", "value") from error
        record = ObjectRecord(self._next_task() + 1)
        self._post(self._engine.put, (record, payload, contained))
        record.outcome = payload  # a get() that comes at once need not wait for the engine
        return ObjectRef(record.key, self, record)

    # -- get and wait -------------------------------------------------------------------------

    def get(self, refs: Sequence[ObjectRef[object]], timeout_s: float | None) -> list[object]:
        records = [self._check(ref)._record for ref in refs]
        pending = [record for record in records if record.outcome is None]
        if pending and timeout_s != 0 and not any(record.failed for record in records):
            if len(pending) > 1:
                pending = list(dict.fromkeys(pending))
            wakeups = self._engine.wakeups
            waiter = ThreadWaiter(pending, len(pending), stop_at_failure=True, wakeups=wakeups)
            self._wait_for(waiter, timeout_s)
        if self._printer.backlog:
            self._printer.flush()
        for record in records:
            if record.failed:
                record.seen = True
                raise record.outcome.revive()
        done = sum(record.outcome is not None for record in records)
        if done < len(records):
            raise GetTimeoutError(
                f"Get timed out: {len(records) - done} of {len(records)} objects are not there "
                f"after {timeout_s} s."
            )
        return [unpack(record.outcome) for record in records]

    def wait(
        self, refs: Sequence[ObjectRef[object]], num_returns: int, timeout_s: float | None
    ) -> tuple[list[ObjectRef[object]], list[ObjectRef[object]]]:
        pending = [r._record for r in refs if self._check(r)._record.outcome is None]
        missing = num_returns - (len(refs) - len(pending))
        if missing > 0 and timeout_s != 0:
            wakeups = self._engine.wakeups
            waiter = ThreadWaiter(pending, missing, stop_at_failure=False, wakeups=wakeups)
            self._wait_for(waiter, timeout_s)
        if self._printer.backlog:
            self._printer.flush()
        ready: list[ObjectRef[object]] = []
        rest: list[ObjectRef[object]] = []
        for ref in refs:
            done = ref._record.outcome is not None
            (ready if done and len(ready) < num_returns else rest).append(ref)
        return ready, rest

    def _wait_for(self, waiter: ThreadWaiter, timeout_s: float | None) -> None:
        if threading.get_ident() == self._portal.thread_id:
            raise InternalError("the engine's own thread must not wait")
        self._post(self._engine.watch, waiter)
        try:
            done = waiter.wait(timeout_s)
        except BaseException:  # Ctrl-C: the session goes on without this waiter
            self._post_if_open(self._engine.unwatch, waiter)
            raise
        if not done or waiter.has_records_left():
            self._post_if_open(self._engine.unwatch, waiter)

    def is_done(self, ref: ObjectRef[object]) -> bool:
        return ref._record.outcome is not None

    def result(self, ref: ObjectRef[object]) -> object:
        record = ref._record
        if self._forked or ref._home is not self:
            self._check(ref)
        if self._printer.backlog:
            self._printer.flush()
        if record.failed:
            record.seen = True
            raise record.outcome.revive()
        return unpack(record.outcome)

    def subscribe(
        self,
        refs: Sequence[ObjectRef[object]],
        callback: Callable[[int], None],
        loop: AbstractEventLoop | None = None,
    ) -> Callable[[], None]:
        records = list(dict.fromkeys(self._check(ref)._record for ref in refs))
        subscriber = self._engine.subscriber(records, callback, loop)
        self._post(self._engine.watch, subscriber)

        def stop() -> None:
            subscriber.stopped = True
            self._post_if_open(self._engine.unwatch, subscriber)

        return stop

    # -- the rest -----------------------------------------------------------------------------

    def cancel(self, ref: ObjectRef[object], *, force: bool, recursive: bool) -> None:
        self._post(self._engine.cancel, (self._check(ref)._key, force, recursive))

    def abandon(self, ref: ObjectRef[object]) -> None:
        self._post_if_open(self._engine.abandon, ref._record)

    def withdraw(self, ref: ObjectRef[object]) -> bool:
        key = self._check(ref)._key
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
        self._post_if_open(self._release, ref._record)

    def pin(self, ref: ObjectRef[object]) -> None:
        self._post(self._engine.borrow, ref._record)

    def cluster_resources(self) -> dict[str, float]:
        ledger = self._engine.loom.ledger
        resources: dict[str, float] = self._portal.call(ledger.describe_total)
        return resources

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


def start(config: Config) -> LocalBackend:
    """Start a session; returns at once, workers are started in the background."""
    return LocalBackend(config)


# Sessions of this process, for the child of a fork.  Hooks cannot be taken back, so there is one.
_sessions: weakref.WeakSet[LocalBackend] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for session in list(_sessions):
        session._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
