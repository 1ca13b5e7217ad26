"""The calling process as a backend: ``init(local_mode=True)``.

A task runs in the thread that submits it, inside ``.remote()``, and is over when ``.remote()``
returns.  So every ref is done from birth, its dependencies are done before it, and nothing ever
waits.  ``breakpoint()``, profilers and coverage see tasks as the plain calls they are.

What a program can observe is otherwise the same as with worker processes:

- Arguments and results are snapshots: they are pickled and unpickled, so what does not pickle is
  a TypeError at the call, and what a task changes in its arguments its caller does not see.
- The function is the one that would travel, unpickled once per session.  It keeps file name and
  line numbers; of a function that travels by value the globals are a copy (REM-13).
- Errors go through the same door as those of a worker, and come out as the same classes.
- What can never fit is TaskUnschedulableError, and a task holds its resources while it runs.
  A nested task that asks for what its caller holds is run all the same: there is nobody who
  could give it back meanwhile.

Different by nature: tasks of one thread run one after another in the order of submission (those
of several threads side by side), nothing can be cancelled, and the environment is the host
program's: ``CUDA_VISIBLE_DEVICES`` and the like are not set.  A ``timeout=`` cancels a coroutine,
but a plain function runs to its end; it fails afterwards if that was too late.  Pauses between
attempts are slept in ``.remote()``.

An object lives as long as something refers to its record, which is what Python's own reference
counts say: refs hold their record, and a record holds those of the refs inside its value.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast
from weakref import WeakSet, WeakValueDictionary

from taskloom import _current, _ids
from taskloom._config import Config
from taskloom._core.resources import Ledger
from taskloom._memory import MemoryReport
from taskloom._spec import TaskSpec
from taskloom._wire import serialization
from taskloom._wire.calls import encode_call
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom.backends.base import ExecutionContext, FoundActor, Made
from taskloom.backends.inline_actors import InlineActors
from taskloom.backends.inline_calls import Calls, current_context
from taskloom.backends.inline_group import InlineGroup
from taskloom.backends.inline_object import Object
from taskloom.backends.inline_streams import InlineSource, open_actor_stream, open_stream
from taskloom.exceptions import (
    ActorHandleNotFoundError,
    ObjectLostError,
    SessionClosedError,
    TaskCancelledError,
)
from taskloom.generator import ObjectRefGenerator
from taskloom.ref import ObjectRef


def start(config: Config) -> InlineBackend:
    """A session in the calling process."""
    return InlineBackend(config)


class InlineBackend:
    """See :class:`taskloom.backends.base.Backend`."""

    is_worker = False
    may_outlive = False

    def __init__(self, config: Config) -> None:
        self.session_id = os.urandom(_ids.SESSION_BYTES)
        self.worker_id = os.urandom(_ids.OBJECT_BYTES).hex()
        self.node_id = os.urandom(_ids.OBJECT_BYTES).hex()
        self.job_id = self.session_id[:4].hex()
        self.namespace = config.namespace
        self._mint = _ids.Mint(0)
        self._objects: WeakValueDictionary[int, Object] = WeakValueDictionary()
        self._pinned: dict[int, Object] = {}
        self.unheard: deque[Failure] = deque()
        ledger = Ledger(_total_resources(config), config.gpu_ids)
        self._calls = Calls(ledger, self._keep, self.unheard)
        self._actors = InlineActors(self.session_id, ledger, self._calls, self.unheard)
        self._ignores_unheard = config.ignore_unhandled_errors
        self._open_groups: set[InlineGroup] = set()
        self._streams: WeakSet[InlineSource] = WeakSet()
        self.dropped_streams: deque[InlineSource] = deque()
        self._closed = False

    # -- tasks --------------------------------------------------------------------------------

    def submit(self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]) -> Made:
        """Run one call to its end."""
        self._check_open()
        payload, holes, refs, _nested = encode_call(args, kwargs, spec.function.name)
        records = [self._record(ref) for ref in refs]
        task = self._mint.next_task()
        group = _current.open_group(self) if self._open_groups else None
        if spec.stream is not None:
            return self._generator_of(
                open_stream(self, self._calls, spec, task, (payload, holes), records), group
            )
        run = partial(self._calls.run, spec, task, payload, holes, records)
        made = run() if group is None else _run_in(group, spec, run)
        return self._refs_of(spec, task, made)

    def _generator_of(self, source: InlineSource, group: object) -> ObjectRefGenerator[object]:
        self.report_unheard()
        self._streams.add(source)
        if group is not None:
            inline_group = cast("InlineGroup", group)
            source.on_failed = inline_group.on_failed
            inline_group.streams.append(source)
            if inline_group.cancelled:
                source.cancel()
        return ObjectRefGenerator(source)

    def _refs_of(self, spec: TaskSpec, task: _ids.TaskKey, made: Sequence[Object]) -> Made:
        self.report_unheard()
        found = [
            self._ref(_ids.object_of(task, index), record) for index, record in enumerate(made)
        ]
        if spec.num_returns == 1:
            return found[0]
        return found or None

    # -- actors -------------------------------------------------------------------------------

    def create_actor(
        self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> FoundActor:
        """Make an actor, or find the living one that has its name."""
        self._check_open()
        self._actors.sweep()
        facts = spec.actor
        assert facts is not None
        other = self._actors.find(facts.namespace, facts.name)
        if other is not None:
            return FoundActor(other.key, other.facts.manifest)
        payload, holes, refs, _nested = encode_call(args, kwargs, spec.name)
        inputs = [self._record(ref).outcome for ref in refs]
        key = _ids.object_of(self._mint.next_task(), 0)
        record = Object(b"")
        record.actor = self._actors.create(key, spec, payload, holes, inputs)
        return FoundActor(key, facts.manifest, self._ref(key, record))

    def call_actor(
        self, key: int, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Made:
        """Run one call of an actor to its end."""
        self._check_open()
        payload, holes, refs, _nested = encode_call(args, kwargs, spec.name)
        records = [self._record(ref) for ref in refs]
        task = self._mint.next_task()
        group = _current.open_group(self) if self._open_groups else None
        if spec.stream is not None:
            call = (payload, holes)
            return self._generator_of(
                open_actor_stream(self, self._actors, key, spec, task, call, records), group
            )
        run = partial(self._actors.call, key, spec, task, payload, holes, records)
        made = run() if group is None else _run_in(group, spec, run)
        return self._refs_of(spec, task, made)

    def kill_actor(self, key: int, *, no_restart: bool) -> None:
        """End an actor."""
        actor = self._actors.get(key)
        if actor is None:
            raise ActorHandleNotFoundError("the actor of this handle is not known any more")
        self._actors.kill(actor, no_restart=no_restart)

    def ask_about_actors(self, name: str, content: object) -> Any:
        """Facts about actors."""
        self._actors.sweep()
        return self._actors.answer(name, content)

    # -- what there is nothing to do for ------------------------------------------------------

    def cancel(self, ref: ObjectRef[object], *, force: bool, recursive: bool) -> None:
        """End a generator; there is nothing else to cancel, whatever has a ref is done."""
        stream = self._record(ref).stream
        if stream is not None:
            stream.cancel()

    def why(self, ref: ObjectRef[object]) -> str:
        """That it is done: whatever has a ref is."""
        failed = isinstance(self._record(ref).outcome, Failure)
        return "it is done: the task has failed" if failed else "it is done"

    def abandon(self, ref: ObjectRef[object]) -> None:
        """Nothing to do: whatever has a ref is done."""

    def withdraw(self, ref: ObjectRef[object]) -> bool:
        """Never: whatever has a ref is done."""
        self._record(ref)
        return False

    def is_canceled(self) -> bool:
        """Never: nobody has a ref to a running task."""
        return False

    # -- objects ------------------------------------------------------------------------------

    def put(self, value: object) -> ObjectRef[object]:
        """Keep a snapshot of ``value``."""
        self._check_open()
        self.report_unheard()
        record = self._keep(value, "the value of put()")
        return self._ref(_ids.object_of(self._mint.next_task(), 0), record)

    def _keep(self, value: object, what: str) -> Object:
        try:
            payload, keys = serialization.pack(value)
        except BaseException as error:
            serialization.refuse(error, value, what, "value")
        # The refs inside are alive now, and from now on their records are.
        return Object(payload, tuple(self._objects[key] for key in keys))

    def _ref(self, key: int, record: Object) -> ObjectRef[object]:
        self._objects[key] = record
        return ObjectRef(key, self, record)

    def _record(self, ref: ObjectRef[object]) -> Object:
        if ref._home is not self:
            raise ValueError(f"{ref!r} does not belong to the current session")
        record: Object = ref._record
        return record

    def adopt(self, key: int) -> ObjectRef[object]:
        """A ref to the object ``key``; to an error when it is no longer there."""
        record = self._objects.get(key)
        if record is None:
            name = _ids.object_bytes(self.session_id, key).hex()
            record = Object(system_failure(ObjectLostError(f"The object {name} is gone.")))
        return ObjectRef(key, self, record)

    def drop(self, ref: ObjectRef[object]) -> None:
        """Nothing to do: the ref was what kept the record alive."""

    def pin(self, ref: ObjectRef[object]) -> None:
        """Keep the object for the rest of the session."""
        self._pinned[ref._key] = self._record(ref)

    def spread(self, name: str, blob: bytes, *, keep: bool) -> None:
        """Nothing to do: this process knows."""

    # -- waiting: there is none ---------------------------------------------------------------

    def get(self, refs: Sequence[ObjectRef[object]], timeout_s: float | None) -> list[object]:
        """The values; raises the error of the first that failed."""
        self._check_open()
        self.report_unheard()
        return [self._record(ref).open() for ref in refs]

    def wait(
        self, refs: Sequence[ObjectRef[object]], num_returns: int, timeout_s: float | None
    ) -> tuple[list[ObjectRef[object]], list[ObjectRef[object]]]:
        """The first ``num_returns``, and the rest."""
        self._check_open()
        for ref in refs:
            self._record(ref)
        return list(refs[:num_returns]), list(refs[num_returns:])

    def open_group(self) -> InlineGroup:
        """A group of calls; all that they submit is over when they are."""
        self._check_open()
        group = InlineGroup(self, cast("InlineGroup | None", _current.open_group(self)))
        self._open_groups.add(group)
        group.on_close = self._open_groups.discard
        return group

    def is_done(self, ref: ObjectRef[object]) -> bool:
        """Always."""
        return True

    def result(self, ref: ObjectRef[object]) -> object:
        """The value; raises the error."""
        self._check_open()
        return self._record(ref).open()

    def subscribe(
        self,
        refs: Sequence[ObjectRef[object]],
        callback: Callable[[int], None],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Callable[[], None]:
        """Call ``callback`` for each ref: at once, or soon in ``loop``."""
        keys = [ref._key for ref in refs]
        if loop is None:
            for key in keys:
                callback(key)
            return _nothing_to_stop
        stopped = False

        def run() -> None:
            for key in keys:
                if not stopped:
                    callback(key)

        def stop() -> None:
            nonlocal stopped
            stopped = True

        try:
            loop.call_soon_threadsafe(run)
        except RuntimeError:
            pass  # the loop is closed: nobody is left to tell
        return stop

    # -- the session --------------------------------------------------------------------------

    def cluster_resources(self) -> dict[str, float]:
        """All that there is."""
        return self._calls.total_resources()

    def memory(self) -> MemoryReport:
        """Nothing: values are in the calling process, kept by the refs themselves."""
        return MemoryReport((), 0, 0, 0, 0, 0)

    def nodes(self) -> None:
        """There is but this machine."""

    def available_resources(self) -> dict[str, float]:
        """What the running tasks do not hold."""
        return self._calls.free_resources()

    def context(self) -> ExecutionContext:
        """Where the caller runs.  Threads that a task starts itself count as the driver."""
        return current_context()

    def shutdown(self) -> None:
        """End the session; refs of it are of no use afterwards."""
        for stream in list(self._streams):
            stream.close()
        self._actors.close()
        self._closed = True
        self._pinned.clear()
        self._calls.forget_functions()
        self.report_unheard()

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError

    def report_unheard(self) -> None:
        """Print the errors that went without anybody having asked for them (REM-20)."""
        while self.dropped_streams:
            self.dropped_streams.popleft().close()
        self._actors.sweep()
        while self.unheard:
            failure = self.unheard.popleft()
            # Who cancels, closes a stream or drops it knows of it, and is no error to be told.
            if not (failure.cancelled or self._ignores_unheard):
                print(
                    "Unhandled error (suppress with 'RAY_IGNORE_UNHANDLED_ERRORS=1'): "
                    f"{failure.revive()}",
                    file=sys.stderr,
                )


def _nothing_to_stop() -> None:
    pass


def _total_resources(config: Config) -> dict[str, float]:
    total = {
        "CPU": config.num_cpus,
        "GPU": config.num_gpus,
        "memory": config.memory,
        "object_store_memory": config.object_store_memory,
        "node:127.0.0.1": 1.0,
        "node:__internal_head__": 1.0,
        **config.resources,
    }
    return {name: float(amount) for name, amount in total.items() if amount}


def _run_in(group: object, spec: TaskSpec, run: Callable[[], Sequence[Object]]) -> Sequence[Object]:
    """Run a member of a group, unless it comes too late."""
    inline_group = cast("InlineGroup", group)
    if inline_group.cancelled:
        failure = system_failure(TaskCancelledError())
        return [Object(failure) for _ in range(spec.num_returns)]
    made = run()
    for record in made:
        if isinstance(record.outcome, Failure) and not record.outcome.cancelled:
            record._unheard = None  # the group tells of it
            inline_group.on_failed(record.outcome)
    return made
