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
program's: ``CUDA_VISIBLE_DEVICES`` and the like are not set.

An object lives as long as something refers to its record, which is what Python's own reference
counts say: refs hold their record, and a record holds those of the refs inside its value.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, Final
from weakref import WeakValueDictionary

from taskloom import _ids, _waiting
from taskloom._config import Config
from taskloom._core.resources import Allocation, Ledger, describe
from taskloom._spec import TaskSpec
from taskloom._wire import serialization
from taskloom._wire.calls import Holes, decode_call, encode_call
from taskloom._wire.remote_errors import Failure, capture, system_failure
from taskloom._wire.returns import split_returns
from taskloom._wire.serialization import Payload
from taskloom.backends.base import ExecutionContext
from taskloom.exceptions import ObjectLostError, SessionClosedError, TaskUnschedulableError
from taskloom.ref import ObjectRef

_DRIVER: Final = ExecutionContext()
# Both belong to the running task: its code runs in a context of its own.
_context: ContextVar[ExecutionContext] = ContextVar("taskloom-inline-context", default=_DRIVER)
_allocation: ContextVar[Allocation | None] = ContextVar("taskloom-inline-allocation", default=None)


def start(config: Config) -> InlineBackend:
    """A session in the calling process."""
    return InlineBackend(config)


class _Object:
    """The record of an object: its payload or failure, and the records of the refs inside."""

    __slots__ = ("__weakref__", "_unheard", "contained", "outcome")

    def __init__(
        self,
        outcome: Payload | Failure,
        contained: tuple[_Object, ...] = (),
        unheard: deque[Failure] | None = None,
    ) -> None:
        self.outcome = outcome
        self.contained = contained
        # Where to leave the failure when nobody has asked for it; None: somebody has.
        self._unheard = unheard

    def open(self) -> object:
        """The value, unpickled anew; raises the error."""
        outcome = self.outcome
        if isinstance(outcome, Failure):
            self._unheard = None
            raise outcome.revive()
        return serialization.unpack(outcome)

    def inherit(self) -> Failure | None:
        """The failure as a dependent has it, or None when there is a value."""
        outcome = self.outcome
        if not isinstance(outcome, Failure):
            return None
        self._unheard = None  # the dependent tells of it
        return outcome.inherit()

    def __del__(self) -> None:
        # No user code here, where anybody's code may be running: only leave a note.
        if self._unheard is not None and isinstance(self.outcome, Failure):
            self._unheard.append(self.outcome)


class InlineBackend:
    """See :class:`taskloom.backends.base.Backend`."""

    is_worker = False

    def __init__(self, config: Config) -> None:
        self.session_id = os.urandom(_ids.SESSION_BYTES)
        self.worker_id = os.urandom(_ids.OBJECT_BYTES).hex()
        self.node_id = os.urandom(_ids.OBJECT_BYTES).hex()
        self.job_id = self.session_id[:4].hex()
        self.namespace = config.namespace
        self._mint = _ids.Mint(0)
        self._objects: WeakValueDictionary[int, _Object] = WeakValueDictionary()
        self._pinned: dict[int, _Object] = {}
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self._ledger = Ledger(_total_resources(config), config.gpu_ids)
        self._ledger_lock = threading.Lock()
        self._unheard: deque[Failure] = deque()
        self._ignores_unheard = config.ignore_unhandled_errors
        self._closed = False

    # -- tasks --------------------------------------------------------------------------------

    def submit(
        self, spec: TaskSpec, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> ObjectRef[object] | list[ObjectRef[object]] | None:
        """Run one call to its end."""
        self._check_open()
        payload, holes, refs, _nested = encode_call(args, kwargs, spec.function.name)
        records = [self._record(ref) for ref in refs]
        task = self._mint.next_task()
        made = self._run(spec, task, payload, holes, records)
        self._report_unheard()
        found = [
            self._ref(_ids.object_of(task, index), record) for index, record in enumerate(made)
        ]
        if spec.num_returns == 1:
            return found[0]
        return found or None

    def _run(
        self,
        spec: TaskSpec,
        task: int,
        payload: Payload,
        holes: Holes | None,
        inputs: Sequence[_Object],
    ) -> Sequence[_Object]:
        """All attempts of a task; the records of what it returns."""
        failure = self._unschedulable(spec)
        for record in inputs:
            failure = failure or record.inherit()
        attempt = 0
        while failure is None:
            with self._holding(spec) as allocation:
                here = ExecutionContext(
                    task_key=task,
                    task_name=spec.name,
                    function_name=spec.function.name,
                    resources=spec.request,
                    accelerator_ids=tuple(self._ledger.device_ids(allocation).items()),
                    attempt=attempt,
                )
                try:
                    return self._attempt(spec, here, allocation, payload, holes, inputs)
                except KeyboardInterrupt:
                    raise  # Ctrl-C ends the program, of which the task is a part here
                except BaseException as error:
                    if _is_retried(spec, error, attempt):
                        attempt += 1
                    else:
                        failure = capture(
                            error,
                            function_name=spec.function.name,
                            pid=os.getpid(),
                            dumps=serialization.dumps,
                            loads=serialization.loads,
                        )
        return [_Object(failure, (), self._unheard) for _ in range(spec.num_returns)]

    def _attempt(
        self,
        spec: TaskSpec,
        here: ExecutionContext,
        allocation: Allocation,
        payload: Payload,
        holes: Holes | None,
        inputs: Sequence[_Object],
    ) -> list[_Object]:
        fills: list[Any] = [record.outcome for record in inputs]  # payloads: none has failed

        def call() -> list[_Object]:
            _context.set(here)
            _allocation.set(allocation)
            function = self._function(spec)
            args, kwargs = decode_call(payload, holes, fills)
            if spec.is_coroutine:
                value = _run_coroutine(function, args, kwargs)
            else:
                value = function(*args, **kwargs)
            values = split_returns(value, spec.num_returns, spec.name)
            return [self._keep(value, f"what {spec.name}() returned") for value in values]

        # A copy: the task reads the caller's context variables, and what it sets is its own.
        return copy_context().run(call)

    def _function(self, spec: TaskSpec) -> Callable[..., Any]:
        key = spec.function.key
        function = self._functions.get(key)
        if function is None:
            function = serialization.unpack_function(spec.function.blob)
            self._functions[key] = function
        return function

    def _unschedulable(self, spec: TaskSpec) -> Failure | None:
        if self._ledger.can_ever_fit(spec.request):
            return None
        return system_failure(
            TaskUnschedulableError(
                f"{spec.name}() asks for {describe(spec.request)}, and there is "
                f"{self._ledger.describe_total()}"
            )
        )

    @contextmanager
    def _holding(self, spec: TaskSpec) -> Iterator[Allocation]:
        """Hold the resources of a task; its caller, if a task, lends its CPUs meanwhile."""
        ledger, lock = self._ledger, self._ledger_lock
        caller = _allocation.get()
        with lock:
            if caller is not None:
                ledger.lend_cpus(caller)
            request = spec.request if ledger.fits(spec.request) else ()
            allocation = ledger.acquire(request)
        try:
            yield allocation
        finally:
            with lock:
                ledger.release(allocation)
                if caller is not None:
                    ledger.reclaim_cpus(caller)

    def cancel(self, ref: ObjectRef[object], *, force: bool, recursive: bool) -> None:
        """Nothing to do: whatever has a ref is done."""
        self._record(ref)

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
        self._report_unheard()
        record = self._keep(value, "the value of put()")
        return self._ref(_ids.object_of(self._mint.next_task(), 0), record)

    def _keep(self, value: object, what: str) -> _Object:
        try:
            payload, keys = serialization.pack(value)
        except Exception as error:
            raise serialization.explain(error, value, what, "value") from error
        # The refs inside are alive now, and from now on their records are.
        return _Object(payload, tuple(self._objects[key] for key in keys))

    def _ref(self, key: int, record: _Object) -> ObjectRef[object]:
        self._objects[key] = record
        return ObjectRef(key, self, record)

    def _record(self, ref: ObjectRef[object]) -> _Object:
        if ref._home is not self:
            raise ValueError(f"{ref!r} does not belong to the current session")
        record: _Object = ref._record
        return record

    def adopt(self, key: int) -> ObjectRef[object]:
        """A ref to the object ``key``; to an error when it is no longer there."""
        record = self._objects.get(key)
        if record is None:
            name = _ids.object_bytes(self.session_id, key).hex()
            record = _Object(system_failure(ObjectLostError(f"The object {name} is gone.")))
        return ObjectRef(key, self, record)

    def drop(self, ref: ObjectRef[object]) -> None:
        """Nothing to do: the ref was what kept the record alive."""

    def pin(self, ref: ObjectRef[object]) -> None:
        """Keep the object for the rest of the session."""
        self._pinned[ref._key] = self._record(ref)

    # -- waiting: there is none ---------------------------------------------------------------

    def get(self, refs: Sequence[ObjectRef[object]], timeout_s: float | None) -> list[object]:
        """The values; raises the error of the first that failed."""
        self._check_open()
        self._report_unheard()
        return [self._record(ref).open() for ref in refs]

    def wait(
        self, refs: Sequence[ObjectRef[object]], num_returns: int, timeout_s: float | None
    ) -> tuple[list[ObjectRef[object]], list[ObjectRef[object]]]:
        """The first ``num_returns``, and the rest."""
        self._check_open()
        for ref in refs:
            self._record(ref)
        return list(refs[:num_returns]), list(refs[num_returns:])

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
        return self._ledger.describe_total()

    def available_resources(self) -> dict[str, float]:
        """What the running tasks do not hold."""
        with self._ledger_lock:
            return self._ledger.describe_free()

    def context(self) -> ExecutionContext:
        """Where the caller runs.  Threads that a task starts itself count as the driver."""
        return _context.get()

    def shutdown(self) -> None:
        """End the session; refs of it are of no use afterwards."""
        self._closed = True
        self._pinned.clear()
        self._functions.clear()
        self._report_unheard()

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosedError

    def _report_unheard(self) -> None:
        """Print the errors that went without anybody having asked for them (REM-20)."""
        while self._unheard:
            failure = self._unheard.popleft()
            if not self._ignores_unheard:
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


def _is_retried(spec: TaskSpec, error: BaseException, attempt: int) -> bool:
    if not isinstance(error, Exception) or 0 <= spec.max_retries <= attempt:
        return False
    wanted = spec.retry_exceptions
    if isinstance(wanted, tuple):
        return isinstance(error, wanted)
    return bool(wanted)  # never as bytes: nothing travels here


def _run_coroutine(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> object:
    """The result of a coroutine function, in a loop of its own.

    Where a loop is running already there cannot be another one in the same thread; then a
    helper thread runs it, and the caller's loop stands still meanwhile, as for any task here.
    """

    async def main() -> object:
        return await function(*args, **kwargs)

    def run() -> object:
        # With a factory the runner leaves the thread's current event loop as it was.
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            return runner.run(main())

    if not _waiting.has_running_loop():
        return run()
    return _in_thread(run)


def _in_thread(work: Callable[[], object]) -> object:
    results: list[object] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(
        target=copy_context().run, args=(run,), name="taskloom-coroutine", daemon=True
    )
    thread.start()
    thread.join()
    if errors:
        raise errors.pop()
    return results[0]
