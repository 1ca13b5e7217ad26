"""What runs in the workers of a cluster: one call, by our rules.

The cluster's library calls :func:`run_call` as its own task.  Here the user's function is
restored, gets its arguments and its context, is tried again and interrupted as its options say,
and what it returns, or raises, becomes outcomes.

The attempts after an exception follow in the same process: no cluster knows pauses between them.
The attempts after a crash are the cluster's.  Both draw on one budget (``Job.attempts``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from random import random
from time import perf_counter, sleep
from types import GeneratorType
from typing import Any, Final

from taskloom import _current
from taskloom._core.retries import pause_s
from taskloom._spec import TaskSpec
from taskloom._wire import serialization
from taskloom._wire.calls import decode_call
from taskloom._wire.context_vars import unpack_context
from taskloom._wire.remote_errors import Failure, capture, system_failure
from taskloom._wire.returns import split_returns
from taskloom.backends import cluster_context
from taskloom.backends.base import ActorExit, ExecutionContext
from taskloom.backends.cluster import ClusterBackend
from taskloom.backends.cluster_driver import SMALL_BYTES, Here, Job, Outcome, Receipt
from taskloom.backends.cluster_limits import Limit, OutOfTime
from taskloom.backends.cluster_values import Carried, carry, size_of
from taskloom.backends.inline_loop import run_coroutine
from taskloom.exceptions import AsyncioActorExit, TaskCancelledError

_NOTHING: Final = object()
_NO_DEVICES: Final = frozenset({"CPU", "memory"})
EXITS: Final = (ActorExit, AsyncioActorExit)

_functions: dict[bytes, Callable[..., Any]] = {}


def function_of(spec: TaskSpec) -> Callable[..., Any]:
    """The user's function, unpickled once per process."""
    function = _functions.get(spec.function.key)
    if function is None:
        function = _functions[spec.function.key] = serialization.unpack_function(spec.function.blob)
    return function


def take(fill: Any) -> Outcome:
    """A dependency as an outcome, however it has travelled."""
    outcome: Outcome = fill.outcome if type(fill) is Here else fill
    return outcome


def receipt_of(outcomes: Sequence[Outcome], seconds: float, *, alone: bool = False) -> Receipt:
    """The receipt of a call: small outcomes go along.

    ``alone`` says that it has used nothing of the session.
    """
    told = tuple(
        outcome if isinstance(outcome, Failure) or size_of(outcome) <= SMALL_BYTES else None
        for outcome in outcomes
    )
    return Receipt(told, seconds, alone and None not in told)


def run_call(
    home: ClusterBackend, spec: TaskSpec, job: Job, fills: Sequence[Any]
) -> tuple[Receipt, list[Outcome]]:
    """Run one call of a function to its end; never raises.

    Args:
        home: the session, in this worker.
        spec: of the call.
        job: the call.
        fills: its dependencies: outcomes, or :class:`Here`.

    Returns:
        The receipt, and one outcome for each output.
    """
    runner = Runner(home, spec, job, fills)
    uses = home.uses
    outcomes = runner.run()
    return receipt_of(outcomes, runner.seconds, alone=home.uses == uses), outcomes


class Runner:
    """One call with all its attempts; arguments as for :func:`run_call`.

    ``method`` is what to call instead of the function, ``here`` what else its code is told of
    where it runs.
    """

    def __init__(
        self,
        home: ClusterBackend,
        spec: TaskSpec,
        job: Job,
        fills: Sequence[Any],
        method: Callable[..., Any] | None = None,
        here: dict[str, Any] | None = None,
    ) -> None:
        self.home = home
        self.spec = spec
        self.job = job
        self.fills = [take(fill) for fill in fills]
        self.seconds = 0.0
        self.early: list[Outcome] = []
        """What a generator has yielded, in any attempt: it stays what it is."""
        self._method = method
        self._here = here or {}

    def run(self) -> list[Outcome]:
        """All attempts."""
        failure = inherited(self.fills)
        attempts = self.job.attempts
        while failure is None:
            began = perf_counter()
            error: BaseException | None = None
            try:
                return self.attempt(attempts)
            except EXITS:
                if self._method is not None:
                    raise  # the actor ends
                failure = system_failure(TaskCancelledError())
            except BaseException as raised:
                error = raised
            finally:
                self.seconds = perf_counter() - began
            attempts += 1
            if error is not None:
                failure = self.verdict(error, attempts)
                del error  # its traceback holds this frame
        rest = self.spec.num_returns - len(self.early)
        return [*self.early, *[failure] * rest]

    def verdict(self, error: BaseException, attempts: int) -> Failure | None:
        """The failure of a call after so many attempts; None, after a pause: there is another."""
        if isinstance(error, KeyboardInterrupt):
            # Nobody else interrupts a worker: the task was cancelled.
            return self.home.calls.cancelled(self.job)
        if is_retried(self.spec, error, attempts):
            pause = pause_s(attempts, self.spec.pace, random)
            if pause:
                sleep(pause)
            return None
        if isinstance(error, OutOfTime):
            return system_failure(error.plain())
        return failure_of(error, self.spec)

    def context(self, attempt: int) -> Context:
        """A context of the call's own: the caller's variables, and where it runs."""
        blob, spec = self.job.context, self.spec
        context = unpack_context(blob, serialization.loads) if blob else Context()
        here = ExecutionContext(
            task_key=self.job.task,
            task_name=spec.name,
            function_name=spec.function.name,
            **{
                "resources": spec.request,
                "accelerator_ids": self._devices(),
                "attempt": attempt,
                **self._here,
            },
        )
        context.run(cluster_context.here.set, here)
        context.run(_current.group.set, None)  # what it submits is its own affair
        return context

    def _devices(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        if all(name in _NO_DEVICES for name, _ in self.spec.request):
            return ()  # to ask costs as much as a short task
        return self.home.driver.accelerator_ids()

    def arguments(self) -> tuple[Any, dict[str, Any]]:
        """The arguments, unpickled anew."""
        job = self.job
        places = dict(job.places)
        for fill in self.fills:
            if isinstance(fill, Carried):
                places.update(fill.places)
        fills: Any = self.fills

        def decode() -> Any:
            return decode_call(job.payload, job.holes, fills)

        found: tuple[Any, dict[str, Any]] = (
            self.home.opening(places, decode) if places else decode()
        )
        return found

    def attempt(self, attempt: int) -> list[Outcome]:
        """One attempt; raises what it raises."""
        try:
            return self.context(attempt).run(self._attempt, attempt)
        finally:
            cluster_context.cancelled.discard(self.job.task)

    def _attempt(self, attempt: int) -> list[Outcome]:
        spec = self.spec
        limit_s = spec.pace.timeout_s if spec.pace is not None else None
        function = self._method or function_of(spec)
        with Limit(spec.name, limit_s, attempt + 1):
            args, kwargs = self.arguments()
            if spec.is_coroutine and self._method is None:
                value = run_coroutine(function, args, kwargs, None, spec.num_returns + 1)
            else:
                value = function(*args, **kwargs)
            if type(value) is GeneratorType and spec.num_returns > 1:
                return self._fill(value)
            values = split_returns(value, spec.num_returns, spec.name)
        return [self.keep(value, f"what {spec.name}() returned") for value in values]

    def keep(self, value: object, what: str) -> Outcome:
        """A result as an outcome; raises a TypeError that says what does not pickle."""
        try:
            return carry(value, self.home.place_of)
        except BaseException as error:
            serialization.refuse(error, value, what, "value")

    def _fill(self, items: Iterator[object]) -> list[Outcome]:
        """The results of a generator with a number of returns."""
        early, count, name = self.early, self.spec.num_returns, self.spec.name
        last: object = None
        for index in range(count):
            last = next(items, _NOTHING)
            if last is _NOTHING:
                raise ValueError(f"Task returned {index} objects, but num_returns={count}.")
            if len(early) <= index < count - 1:
                early.append(self.keep(last, f"item {index} of {name}()"))
        for _ in items:
            raise ValueError(f"Task returned more than num_returns={count} objects.")
        return [*early, self.keep(last, f"item {count - 1} of {name}()")]


def inherited(fills: Sequence[Outcome]) -> Failure | None:
    """The failure of a call one of whose dependencies has failed."""
    for fill in fills:
        if isinstance(fill, Failure):
            return fill.inherit()
    return None


def failure_of(error: BaseException, spec: TaskSpec) -> Failure:
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
    if isinstance(error, OutOfTime):
        return spec.pace is not None and spec.pace.retries_timeouts
    wanted: Any = spec.retry_exceptions
    if isinstance(wanted, bytes):
        wanted = retried_classes(wanted)
    return isinstance(error, wanted) if isinstance(wanted, tuple) else bool(wanted)


_retried: dict[bytes, Any] = {}


def retried_classes(blob: bytes) -> tuple[type[BaseException], ...]:
    """What ``retry_exceptions`` names, unpickled once per process."""
    classes = _retried.get(blob)
    if classes is None:
        classes = _retried[blob] = serialization.loads(blob)
    return classes  # type: ignore[no-any-return]
