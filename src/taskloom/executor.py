"""``Executor``: tasks behind the interface of ``concurrent.futures``.

::

    with taskloom.Executor() as executor:
        future = executor.submit(pow, 2, 10)
        squares = list(executor.map(square, range(10)))
        await loop.run_in_executor(executor, square, 4)

A call is in one of three places: held back in the executor (``max_workers`` calls are in the
engine already), in the engine, or settled.  It is *outstanding* until its future is settled.
The lock guards the table of these and is never held while anything of the user's runs: neither
his callbacks nor the pickling of his arguments.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import concurrent.futures.thread  # it cannot be imported any more at exit
import functools
import operator
import os
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, copy_context
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

from taskloom import _current
from taskloom._callee import Callee
from taskloom._waiting import RefFuture, callback_thread
from taskloom.backends.base import Backend
from taskloom.exceptions import SessionClosedError, TaskCancelledError
from taskloom.ref import ObjectRef
from taskloom.remote_function import RemoteFunction, remote

P = ParamSpec("P")
R = TypeVar("R")

REMEMBERED_FUNCTIONS: Final = 128
"""How many functions an executor knows again, so that each is pickled once."""


@runtime_checkable
class Withdraws(Protocol):
    """A backend that can tell whether a task has begun."""

    def withdraw(self, ref: ObjectRef[Any]) -> bool:
        """Cancel the task unless it has begun; True when it will never run."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """What was submitted: held until there is room for it."""

    future: TaskFuture
    fn: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    home: Backend
    context: Context


class Executor(concurrent.futures.Executor):
    """Runs calls as tasks of the session, which is started when there is none.

    Args:
        max_workers: how many calls may be in the engine at once; the others are held back
            here.  None: all are there at once, and the engine decides how many run.
        task_options: options of the tasks, such as ``num_cpus`` or ``max_retries``.

    Raises:
        ValueError, TypeError: an option is wrong, as for ``remote``.
    """

    def __init__(self, max_workers: int | None = None, **task_options: Any) -> None:
        if max_workers is not None:
            if isinstance(max_workers, bool) or not isinstance(max_workers, int):
                raise TypeError(f"max_workers must be an int or None, got {max_workers!r}")
            if max_workers <= 0:
                raise ValueError(f"max_workers must be greater than 0, got {max_workers}")
        if task_options.get("num_returns") not in (None, 1):
            raise ValueError("a call of an Executor has one result: num_returns must be 1")
        self._options = task_options
        self._make_remote: Callable[[Any], Any] = remote(**task_options)
        # Not weak: a remote function holds its function, so a weak table would keep both for ever.
        self._remembered = functools.lru_cache(REMEMBERED_FUNCTIONS)(self._remote_of)
        self._max_workers = max_workers
        # Guards what follows; notified when a call has been attached to its task or settled.
        # Invariant: there are held calls only while `_in_engine` is `max_workers`.
        self._changed = threading.Condition()
        self._held: deque[_Call] = deque()
        self._in_engine = 0
        self._outstanding: set[TaskFuture] = set()
        self._is_shut_down = False

    # -- the interface ------------------------------------------------------------------------

    def submit(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[R]:
        """Call ``fn(*args, **kwargs)`` in a task.

        Args:
            fn: anything that can be called, ``async def`` functions included, or a remote
                function, of whose options those of the executor override some.
            args, kwargs: refs among them are replaced by their values.  They are pickled when
                the call goes to the engine: at once, unless it is held back.

        Returns:
            A future of the result.  Its ``cancel`` succeeds while the task has not begun (with
            a backend that cannot tell: while the call is held back).  Whatever is wrong with
            the call is the exception of the future.

        Raises:
            RuntimeError: the executor has been shut down.
        """
        future = TaskFuture(self)
        call = _Call(future, fn, args, kwargs, _current.require(), copy_context())
        with self._changed:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._outstanding.add(future)
            is_held = self._max_workers is not None and self._in_engine >= self._max_workers
            if is_held:
                self._held.append(call)
            else:
                future.begin()
                self._in_engine += 1
        _finish_before_exit(self)
        if is_held:
            callback_thread.start()  # it will hand the call over, perhaps when the program ends
        else:
            self._start(call)
        return cast("concurrent.futures.Future[R]", future)

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """``map(fn, *iterables)``, one task for each ``chunksize`` calls.

        Args:
            fn: what to call.
            iterables: read to their end at once, unless there is a ``buffersize``.
            timeout: seconds from now in which all values must be there.
            chunksize: how many calls make one task.
            buffersize: how many tasks may be submitted whose values are not yet taken.

        Returns:
            The values, in order.  An error is raised in its place.  After an error, or when
            the iterator is closed, calls that have not begun are cancelled.

        Raises:
            TypeError, ValueError: a number is none, or less than 1.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        deadline = None if timeout is None else time.monotonic() + timeout
        rows = zip(*iterables, strict=False)
        if chunksize == 1:
            futures = (self.submit(fn, *row) for row in rows)
            return _results(futures, buffersize, deadline)
        run = self._chunk_runner(fn)
        futures = (self.submit(run, chunk) for chunk in _chunked(rows, chunksize))
        return chain.from_iterable(_results(futures, buffersize, deadline))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; those that were submitted still run.

        Args:
            wait: return when all of them have ended.
            cancel_futures: cancel those that have not begun.
        """
        with self._changed:
            self._is_shut_down = True
            outstanding = list(self._outstanding)
        if cancel_futures:
            for future in outstanding:
                future.cancel()
        if wait:
            for future in outstanding:
                future.wait()

    # -- from here to the engine --------------------------------------------------------------

    def _start(self, call: _Call) -> None:
        """Hand ``call`` to the engine, where it is counted already."""
        future = call.future
        try:
            if _current.peek() is not call.home:
                raise SessionClosedError  # do not go to the next session, much less start one
            future.attach(call.context.run(self._submit, call), call.home)
        except BaseException as error:
            future.fail(error)
            if not isinstance(error, Exception):
                raise
        with self._changed:
            self._changed.notify_all()

    def _submit(self, call: _Call) -> ObjectRef[Any]:
        fn = call.fn
        if _is_stateless(fn):
            ref = self._remembered(fn).remote(*call.args, **call.kwargs)
        elif (callee := Callee(fn)).is_coroutine:
            ref = self._remote_of(fn).remote(*call.args, **call.kwargs)
        else:
            # A bound method, a partial, a class: it has a state that may change between two
            # calls, so it travels as an argument, each time anew.
            run = self._remembered(operator.call)
            if "name" not in self._options:
                run = run.options(name=callee.name)
            ref = run.remote(fn, *call.args, **call.kwargs)
        if not isinstance(ref, ObjectRef):
            raise TypeError(f"a call of an Executor has one result, that of {fn!r} has not")
        return ref

    def _remote_of(self, fn: Any) -> RemoteFunction[..., Any]:
        if isinstance(fn, RemoteFunction):
            return cast("RemoteFunction[..., Any]", fn.options(**self._options))
        return cast("RemoteFunction[..., Any]", self._make_remote(fn))

    def _chunk_runner(self, fn: Any) -> RemoteFunction[..., Any]:
        """A remote function that calls ``fn`` for each row of a chunk."""
        options: dict[str, Any] = {}
        if isinstance(fn, RemoteFunction):
            options, fn = fn._options, fn.func
        callee = Callee(fn)

        # Local functions travel by value: a worker need not import this module for them.
        async def run_async(chunk: list[tuple[Any, ...]]) -> list[Any]:
            return [await fn(*row) for row in chunk]

        def run(chunk: list[tuple[Any, ...]]) -> list[Any]:
            return [fn(*row) for row in chunk]

        named = {"name": callee.name, **options, **self._options}
        return RemoteFunction(
            run_async if callee.is_coroutine else run,
            {**self._make_remote(run)._options, **named},
        )

    def pass_on(self) -> None:
        """A call leaves the engine: the next one that is held back may go there."""
        with self._changed:
            call = self._held.popleft() if self._held else None
            while call is not None and not call.future.begin():  # cancelled while it was held
                call = self._held.popleft() if self._held else None
            if call is None:
                self._in_engine -= 1
                return
        # Not here: this may be the user's own thread, and calls that end at once must not
        # start each other ever deeper.
        callback_thread.run(functools.partial(self._start, call))

    def forget(self, future: TaskFuture) -> None:
        """``future`` is settled."""
        with self._changed:
            self._outstanding.discard(future)
            self._changed.notify_all()

    def wait_until_attached(self, future: TaskFuture, deadline: float | None) -> None:
        """In a task: wait until a call that is held back has gone to the engine.

        What it waits for are the calls that are there, and it does so where the engine sees
        it: it lends the task's CPUs meanwhile (REM-12).
        """
        with self._changed:  # asked under the lock that changes are announced under: none is missed
            while not (future.is_attached or future.done()):
                busy = next((f for f in self._outstanding if f.is_attached), None)
                if busy is None:
                    # One is on its way to the engine: that takes no longer than its pickling.
                    if not self._changed.wait(_remaining(deadline)):
                        return
                    continue
                self._changed.release()
                try:
                    busy.wait_in_engine(_remaining(deadline))
                finally:
                    self._changed.acquire()
                while busy.is_attached:
                    if not self._changed.wait(_remaining(deadline)):
                        return


class TaskFuture(RefFuture):
    """The future of a call, whose task can be withdrawn as long as it has not begun."""

    def __init__(self, executor: Executor) -> None:
        super().__init__()
        self._executor = executor
        # Each is popped by whoever comes first, and does what it stands for.
        self._to_begin = [True]
        self._to_release: list[bool] = []
        self._is_withdrawn = False

    def begin(self) -> bool:
        """Leave for the engine; False when it has been cancelled before."""
        if not _pop(self._to_begin):
            return False
        self._to_release.append(True)
        return True

    @property
    def is_attached(self) -> bool:
        """True while it is the future of a ref."""
        return self._attached is not None

    def cancel(self) -> bool:
        """Cancel the call unless its task has begun; True when it will never run."""
        if self.done():
            return self.cancelled()
        attached = self._attached
        if not _pop(self._to_begin):  # not held back any more
            if attached is None:
                return self.cancelled()
            ref, home = attached
            self._is_withdrawn = True
            if not isinstance(home, Withdraws) or not home.withdraw(ref):
                self._is_withdrawn = False
                return False
        self._leave_engine()
        is_cancelled = super().cancel()
        self._executor.forget(self)
        return is_cancelled

    def fail(self, error: BaseException) -> None:
        """Settle with ``error``."""
        self._finish(None, error)

    def wait(self) -> None:
        """Block until it is settled."""
        try:
            self.exception()
        except concurrent.futures.CancelledError:
            pass

    def wait_in_engine(self, timeout: float | None) -> None:
        """In a task: block until the ref is done."""
        super()._yield_cpus(timeout)

    def _yield_cpus(self, timeout: float | None) -> float | None:
        if not self._executor_is_in_task():
            return timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        self._executor.wait_until_attached(self, deadline)
        return super()._yield_cpus(_remaining(deadline))

    def _executor_is_in_task(self) -> bool:
        backend = _current.peek()
        return backend is not None and backend.is_worker

    def _finish(self, value: object, failure: BaseException | None) -> None:
        # Release before resolving: who is woken may submit at once, and should find room.
        self._leave_engine()
        try:
            if self._is_withdrawn and isinstance(failure, TaskCancelledError):
                super().cancel()
            else:
                super()._finish(value, failure)
        finally:
            self._executor.forget(self)

    def _leave_engine(self) -> None:
        if _pop(self._to_release):
            self._executor.pass_on()


def _pop(ticket: list[bool]) -> bool:
    """True for the first who asks (one step: ``list.pop`` cannot be interrupted)."""
    try:
        return ticket.pop()
    except IndexError:
        return False


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _is_stateless(fn: object) -> bool:
    """True for what is the same at each call, so that it need be pickled only once."""
    if isinstance(fn, types.BuiltinFunctionType):
        return isinstance(fn.__self__, types.ModuleType)  # else a bound method: [].append
    return isinstance(fn, types.FunctionType | RemoteFunction)


# -- map --------------------------------------------------------------------------------------


def _chunked(rows: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(islice(rows, size)):
        yield chunk


def _results(
    futures: Iterator[concurrent.futures.Future[Any]],
    buffersize: int | None,
    deadline: float | None,
) -> Iterator[Any]:
    """The results in order; ``futures`` submits when it is advanced."""
    submitted = deque(islice(futures, buffersize))  # now, not when the first result is asked for

    def iterate() -> Iterator[Any]:
        try:
            while submitted:
                if buffersize is not None:
                    submitted.extend(islice(futures, 1))
                yield _result_or_cancel(submitted.popleft(), deadline)
        finally:
            for future in submitted:
                future.cancel()

    return iterate()


def _result_or_cancel(future: concurrent.futures.Future[Any], deadline: float | None) -> Any:
    try:
        return future.result(_remaining(deadline))
    finally:
        future.cancel()
        del future  # its exception's traceback holds this frame: a circle


# -- the end of the program -------------------------------------------------------------------
# As with the executors of the standard library, what was submitted is finished first.  The hook is
# registered after that of the session (submit has started one), so it runs before it.

_live: weakref.WeakSet[Executor] = weakref.WeakSet()
_registered_in: int | None = None


def _finish_before_exit(executor: Executor) -> None:
    global _registered_in
    if _registered_in != os.getpid():
        if _registered_in is None:
            atexit.register(_at_exit)
        else:
            _live.clear()  # a fork: those are the parent's
        _registered_in = os.getpid()
    _live.add(executor)


def _at_exit() -> None:
    if _registered_in == os.getpid():
        for executor in list(_live):
            executor.shutdown()
