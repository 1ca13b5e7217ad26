"""Calls of the inline backend: run at once, by the thread that submits them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from random import random
from time import monotonic, sleep
from types import GeneratorType
from typing import Any, Final

from taskloom import _current
from taskloom._core.resources import Allocation, Ledger, describe
from taskloom._core.retries import pause_s
from taskloom._spec import TaskSpec
from taskloom._wire import serialization
from taskloom._wire.calls import Holes, decode_call
from taskloom._wire.remote_errors import Failure, capture, system_failure
from taskloom._wire.returns import split_returns
from taskloom._wire.serialization import Payload
from taskloom.backends.base import ExecutionContext
from taskloom.backends.inline_loop import run_coroutine
from taskloom.backends.inline_object import Object
from taskloom.exceptions import TaskTimeoutError, TaskUnschedulableError

_DRIVER: Final = ExecutionContext()
_NOTHING: Final = object()
# Both belong to the running task: its code runs in a context of its own.
_context: ContextVar[ExecutionContext] = ContextVar("taskloom-inline-context", default=_DRIVER)
_allocation: ContextVar[Allocation | None] = ContextVar("taskloom-inline-allocation", default=None)


def current_context() -> ExecutionContext:
    """Where the caller runs.  Threads that a task starts itself count as the driver."""
    return _context.get()


def enter(here: ExecutionContext, allocation: Allocation | None) -> None:
    """In a context of its own: the code that comes next is that of a task."""
    _context.set(here)
    _allocation.set(allocation)
    _current.group.set(None)  # what it submits is its own affair


class Calls:
    """Runs calls, within the resources that there are.

    Args:
        ledger: the books of the resources.
        keep: makes an object of a value; the text says what the value is.
        unheard: where failures are left that nobody asks for.
    """

    def __init__(
        self,
        ledger: Ledger,
        keep: Callable[[object, str], Object],
        unheard: deque[Failure],
    ) -> None:
        self._ledger = ledger
        self._lock = self.lock = threading.Lock()  # of the ledger
        self._keep = keep
        self._unheard = unheard
        self._functions: dict[bytes, Callable[..., Any]] = {}

    def total_resources(self) -> dict[str, float]:
        """All that there is."""
        return self._ledger.describe_total()

    def free_resources(self) -> dict[str, float]:
        """What the running calls do not hold."""
        with self._lock:
            return self._ledger.describe_free()

    def forget_functions(self) -> None:
        """The session is over."""
        self._functions.clear()

    def run(
        self,
        spec: TaskSpec,
        task: int,
        payload: Payload,
        holes: Holes | None,
        inputs: Sequence[Object],
    ) -> Sequence[Object]:
        """All attempts of a task; the records of what it returns."""
        failure = self.unschedulable(spec)
        for record in inputs:
            failure = failure or record.inherit()
        attempt = 0
        early: list[Object] = []
        while failure is None:
            with self.holding(spec) as allocation:
                here = ExecutionContext(
                    task_key=task,
                    task_name=spec.name,
                    function_name=spec.function.name,
                    resources=spec.request,
                    accelerator_ids=tuple(self._ledger.device_ids(allocation).items()),
                    attempt=attempt,
                )
                began = monotonic()
                made: Sequence[Object] = ()
                error: BaseException | None = None
                try:
                    made = self.attempt(spec, here, allocation, payload, holes, inputs, early)
                except KeyboardInterrupt:
                    raise  # Ctrl-C ends the program, of which the task is a part here
                except BaseException as raised:
                    error = raised
                took_s = monotonic() - began
            attempt += 1
            if error is None and not is_late(spec, took_s):
                return made
            failure = failure_or_pause(spec, error, attempt, took_s)
            del error  # its traceback holds this frame
        rest = range(spec.num_returns - len(early))
        return [*early, *(Object(failure, (), self._unheard) for _ in rest)]

    def attempt(
        self,
        spec: TaskSpec,
        here: ExecutionContext,
        allocation: Allocation | None,
        payload: Payload,
        holes: Holes | None,
        inputs: Sequence[Object],
        early: list[Object],
        method: Callable[..., Any] | None = None,
    ) -> list[Object]:
        """One attempt, which may raise.

        ``early`` are the results that a generator has yielded, in this attempt and before, so that
        they are what they are whatever comes after them.  ``method``: what to call instead of the
        function.
        """
        fills: list[Any] = [record.outcome for record in inputs]  # payloads: none has failed

        def call() -> list[Object]:
            enter(here, allocation)
            function = method or self.function(spec)
            args, kwargs = decode_call(payload, holes, fills)
            if spec.is_coroutine and method is None:
                most = spec.num_returns + 1
                value = run_coroutine(function, args, kwargs, limit_of(spec), most)
            else:
                value = function(*args, **kwargs)
            if type(value) is GeneratorType and spec.num_returns > 1:
                return self._fill(spec, value, early)
            values = split_returns(value, spec.num_returns, spec.name)
            return [self._keep(value, f"what {spec.name}() returned") for value in values]

        # A copy: the task reads the caller's context variables, and what it sets is its own.
        return copy_context().run(call)

    def _fill(self, spec: TaskSpec, items: Iterator[object], early: list[Object]) -> list[Object]:
        """The results of a generator with a number of returns."""
        last: object = None
        for index in range(spec.num_returns):
            last = next(items, _NOTHING)
            if last is _NOTHING:
                raise ValueError(
                    f"Task returned {index} objects, but num_returns={spec.num_returns}."
                )
            if len(early) <= index < spec.num_returns - 1:
                early.append(self._keep(last, f"item {index} of {spec.name}()"))
        for _ in items:
            raise ValueError(f"Task returned more than num_returns={spec.num_returns} objects.")
        return [*early, self._keep(last, f"item {spec.num_returns - 1} of {spec.name}()")]

    def function(self, spec: TaskSpec) -> Callable[..., Any]:
        key = spec.function.key
        function = self._functions.get(key)
        if function is None:
            function = serialization.unpack_function(spec.function.blob)
            self._functions[key] = function
        return function

    def unschedulable(self, spec: TaskSpec) -> Failure | None:
        if self._ledger.can_ever_fit(spec.request):
            return None
        return system_failure(
            TaskUnschedulableError(
                f"{spec.name}() asks for {describe(spec.request)}, and there is "
                f"{self._ledger.describe_total()}"
            )
        )

    @contextmanager
    def holding(self, spec: TaskSpec) -> Iterator[Allocation]:
        """Hold the resources of a task; its caller, if a task, lends its CPUs meanwhile."""
        ledger, lock = self._ledger, self._lock
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


def limit_of(spec: TaskSpec) -> float | None:
    """How many seconds an attempt may take."""
    return spec.pace.timeout_s if spec.pace is not None else None


def is_late(spec: TaskSpec, took_s: float) -> bool:
    """Whether an attempt has taken longer than it may."""
    limit_s = limit_of(spec)
    return limit_s is not None and took_s >= limit_s


def failure_or_pause(
    spec: TaskSpec, error: BaseException | None, attempts: int, took_s: float
) -> Failure | None:
    """The failure of a call after so many attempts; None, after a pause, if there is another.

    Args:
        spec: of the call.
        error: what the last attempt has raised.
        attempts: how many there were.
        took_s: how long the last one took.
    """
    late = None
    if is_late(spec, took_s):
        error = late = TaskTimeoutError.of(spec.name, limit_of(spec) or 0.0, attempts)
    assert error is not None
    if is_retried(spec, error, attempts):
        sleep(pause_s(attempts, spec.pace, random))
        return None
    return capture_failure(error, spec) if late is None else system_failure(late)


def capture_failure(error: BaseException, spec: TaskSpec) -> Failure:
    """What a call has raised, as it is kept."""
    return capture(
        error,
        function_name=spec.function.name,
        pid=os.getpid(),
        dumps=serialization.dumps,
        loads=serialization.loads,
    )


def is_retried(spec: TaskSpec, error: BaseException, attempts: int) -> bool:
    """Whether a call that has failed so often is tried again."""
    if not isinstance(error, Exception) or 0 <= spec.max_retries < attempts:
        return False
    wanted = spec.retry_exceptions
    if isinstance(wanted, tuple):
        return isinstance(error, wanted)
    return bool(wanted)  # never as bytes: nothing travels here
