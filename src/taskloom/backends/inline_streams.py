"""Streams in the calling process: a generator is advanced when its consumer asks.

So an endless generator works, and nothing is made that nobody has asked for: whatever the limit
is, the producer is never further ahead than one item.  ``completed()`` runs it to its end, because
a ref is always done here.
"""

from __future__ import annotations

import asyncio
import sys
import types
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import Context, copy_context
from random import random
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from taskloom import _ids
from taskloom._core.resources import Allocation
from taskloom._core.retries import pause_s
from taskloom._spec import TaskSpec
from taskloom._wire.calls import Holes, decode_call
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom._wire.serialization import Payload, pack
from taskloom.backends.base import ActorExit, ExecutionContext
from taskloom.backends.inline_actors import turn
from taskloom.backends.inline_calls import Calls, capture_failure, enter, is_retried, limit_of
from taskloom.backends.inline_loop import outside_of_loops
from taskloom.backends.inline_object import Object
from taskloom.exceptions import (
    AsyncioActorExit,
    StreamingGeneratorReplayInconsistentError,
    TaskCancelledError,
    TaskTimeoutError,
)
from taskloom.generator import END
from taskloom.ref import ObjectRef

if TYPE_CHECKING:
    from taskloom.backends.inline import InlineBackend
    from taskloom.backends.inline_actors import InlineActors

_ENDED: Final = object()
Started = Callable[[], object]
"""Calls the function with its arguments; what it returns is iterated over."""


class Steps:
    """One attempt of a generator.

    Args:
        start: begins it.
        here: what its code is told of where it runs.
        context: it reads the caller's context variables, and what it sets is its own.
        in_loop: runs what a call gives, and awaits it, in the loop of an async actor.
    """

    def __init__(
        self,
        start: Started,
        here: ExecutionContext,
        context: Context,
        in_loop: Callable[[Callable[[], Any]], Any] | None = None,
    ) -> None:
        self._start: Started | None = start
        self._here = here
        self._in_loop = in_loop or self._in_own_loop
        self._runner: asyncio.Runner | None = None
        self._items: Iterator[object] | None = None
        self._async_items: AsyncIterator[object] | None = None
        self._context = context.copy()

    def advance(self, allocation: Allocation | None, limit_s: float | None) -> object:
        """The next item, or _ENDED; raises what the generator raises."""
        return self._context.run(self._advance, allocation, limit_s)

    def _advance(self, allocation: Allocation | None, limit_s: float | None) -> object:
        enter(self._here, allocation)
        if self._start is not None:
            start, self._start = self._start, None
            value: Any = start()
            if isinstance(value, types.AsyncGeneratorType):
                self._async_items = value
            else:
                self._items = iter(value)
        if self._items is not None:
            return next(self._items, _ENDED)
        return self._in_loop(lambda: self._anext(limit_s))

    async def _anext(self, limit_s: float | None) -> object:
        assert self._async_items is not None
        async with asyncio.timeout(limit_s):
            return await anext(self._async_items, _ENDED)

    def _in_own_loop(self, call: Callable[[], Any]) -> Any:
        if self._runner is None:
            # With a factory the runner leaves the thread's current event loop as it was.
            self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        runner = self._runner
        return outside_of_loops(lambda: runner.run(call(), context=copy_context()))

    def close(self) -> None:
        """End it where it stands: its ``finally`` blocks run."""
        self._start = None
        items, self._items = self._items, None
        if isinstance(items, types.GeneratorType):
            self._context.run(items.close)
        async_items, self._async_items = self._async_items, None
        if isinstance(async_items, types.AsyncGeneratorType):
            closing = async_items

            async def aclose() -> None:
                await closing.aclose()

            self._context.run(self._in_loop, aclose)
        runner, self._runner = self._runner, None
        if runner is not None:
            outside_of_loops(runner.close)


class InlineSource:
    """A stream for its consumer; see :class:`taskloom.generator.Source`.

    Args:
        home: whose it is.
        spec: of the call.
        task: its key.
        begin: makes the steps of an attempt; raises when there cannot be any.
        hold: holds what a step needs while it runs.
        obstacle: why it cannot go on, asked before each step.
    """

    __slots__ = (
        "__weakref__", "_attempts", "_begin", "_count", "_ended", "_hold", "_items", "_obstacle",
        "_ran_s", "_spec", "_steps", "_task", "_yielded", "completed", "home", "on_exit",
        "on_failed",
    )  # fmt: skip

    def __init__(
        self,
        home: InlineBackend,
        spec: TaskSpec,
        task: _ids.TaskKey,
        begin: Callable[[int], Steps],
        hold: Callable[[], AbstractContextManager[Allocation | None]],
        obstacle: Callable[[], Failure | None],
    ) -> None:
        self.home: InlineBackend = home
        self._spec = spec
        self._task = task
        self._begin = begin
        self._hold = hold
        self._items: deque[Object] = deque()  # made, and not claimed
        self._count = 0  # how many were made
        self._steps: Steps | None = None
        self._attempts = 0
        self._yielded = 0  # by this attempt
        self._ran_s = 0.0
        self._ended = False
        self._obstacle = obstacle
        self.on_failed: Callable[[Failure], None] = lambda failure: None
        self.on_exit: Callable[[], Failure | None] = lambda: None  # an actor: why it is no more
        record = Object(pack(None)[0])
        record.stream = self
        self.completed: ObjectRef[Any] = home._ref(_ids.object_of(task, 0), record)

    # -- the consumer -------------------------------------------------------------------------

    def claim(self) -> ObjectRef[Any]:
        self.home._check_open()
        index = self._count - len(self._items)
        if not self._items:
            self._produce()
        return self.home._ref(_ids.item_of(self._task, index), self._items.popleft())

    def is_done(self, ref: ObjectRef[Any]) -> bool:
        return True

    def is_end(self, ref: ObjectRef[Any]) -> bool:
        return bool(ref._record.outcome == END)

    def wait(self, ref: ObjectRef[Any], timeout_s: float | None) -> None:
        """Nothing to do: what is claimed is done."""

    def on_taken(self) -> None:
        """Nobody counts."""

    def share(self) -> ObjectRef[None]:
        self.run_to_end()
        ref: ObjectRef[Any] = self.home._ref(self.completed._key, self.home._record(self.completed))
        return ref

    def drop(self, *, for_good: bool) -> None:
        # No user code here, where anybody's code may be running: only leave a note.
        self.home.dropped_streams.append(self)

    # -- the producer -------------------------------------------------------------------------

    def run_to_end(self) -> None:
        """Make all items that are left."""
        while not self._ended:
            self._produce()

    def cancel(self) -> None:
        """Nothing more is to be made."""
        if not self._ended:
            self._finish(system_failure(TaskCancelledError()))

    def close(self) -> None:
        """Nobody wants anything more."""
        self.cancel()
        self._items.clear()
        self.home._record(self.completed).stream = None

    def _produce(self) -> None:
        """Make the next item, or come to the end."""
        while not self._ended:
            obstacle = self._obstacle()
            if obstacle is not None:
                self._finish(obstacle)
                return
            began, limit_s = monotonic(), limit_of(self._spec)
            error: BaseException | None = None
            item: object = _ENDED
            try:
                with self._hold() as allocation:
                    if self._steps is None:
                        self._steps = self._begin(self._attempts)
                    left_s = None if limit_s is None else limit_s - self._ran_s
                    item = self._steps.advance(allocation, left_s)
            except KeyboardInterrupt:
                raise  # Ctrl-C ends the program, of which the task is a part here
            except BaseException as raised:
                error = raised
            self._ran_s += monotonic() - began
            if limit_s is not None and self._ran_s >= limit_s:
                late = TaskTimeoutError.of(self._spec.name, limit_s, self._attempts + 1)
                self._on_error(late, system_failure(late))
            elif error is not None:
                self._on_error(error, None)
                del error  # its traceback holds this frame
            elif item is _ENDED:
                self._on_end()
            elif self._is_new(item):
                return

    def _is_new(self, item: object) -> bool:
        """Keep an item, unless an attempt before this one has made it."""
        self._yielded += 1
        if self._yielded <= self._count:
            return False
        try:
            what = f"item {self._count} of {self._spec.name}()"
            self._items.append(self.home._keep(item, what))
        except Exception as error:
            self._finish(capture_failure(error, self._spec))
        else:
            self._count += 1
        return True

    def _on_end(self) -> None:
        if self._yielded >= self._count:
            self._finish(None)
            return
        self._finish(
            system_failure(
                StreamingGeneratorReplayInconsistentError(
                    f"{self._spec.name} was tried again after {self._count} items, and now it "
                    f"has ended after {self._yielded}"
                )
            )
        )

    def _on_error(self, error: BaseException, failure: Failure | None) -> None:
        self._attempts += 1
        if isinstance(error, (ActorExit, AsyncioActorExit)) and (why := self.on_exit()) is not None:
            self._finish(why)
        elif is_retried(self._spec, error, self._attempts):
            self._close_steps()
            self._yielded, self._ran_s = 0, 0.0
            sleep(pause_s(self._attempts, self._spec.pace, random))
        else:
            self._finish(failure or capture_failure(error, self._spec))

    def _finish(self, failure: Failure | None) -> None:
        self._ended = True
        self._close_steps()
        if failure is not None:
            self.home._record(self.completed).outcome = failure
            self._items.append(Object(failure, (), self.home.unheard))
            self._count += 1
            self.on_failed(failure)
        self._items.append(Object(END))
        self._count += 1

    def _close_steps(self) -> None:
        steps, self._steps = self._steps, None
        if steps is None:
            return
        try:
            steps.close()
        except Exception:  # of a finally block; nobody waits for it: stderr is where it can be seen
            sys.excepthook(*sys.exc_info())


def open_stream(
    home: InlineBackend,
    calls: Calls,
    spec: TaskSpec,
    task: _ids.TaskKey,
    call: tuple[Payload, Holes | None],
    inputs: Sequence[Object],
) -> InlineSource:
    """The stream of a task; nothing of it has run yet."""
    failure = calls.unschedulable(spec)
    for record in inputs:
        failure = failure or record.inherit()
    fills: list[Any] = [record.outcome for record in inputs]  # payloads, if none has failed

    def start() -> object:
        function = calls.function(spec)
        args, kwargs = decode_call(*call, fills)
        return function(*args, **kwargs)

    context = copy_context()

    def begin(attempt: int) -> Steps:
        here = ExecutionContext(
            task_key=task,
            task_name=spec.name,
            function_name=spec.function.name,
            resources=spec.request,
            attempt=attempt,
        )
        return Steps(start, here, context)

    return InlineSource(home, spec, task, begin, lambda: calls.holding(spec), lambda: failure)


def open_actor_stream(
    home: InlineBackend,
    actors: InlineActors,
    key: int,
    spec: TaskSpec,
    task: _ids.TaskKey,
    call: tuple[Payload, Holes | None],
    inputs: Sequence[Object],
) -> InlineSource:
    """The stream of a method of the actor ``key``, which it keeps alive."""
    actor = actors.get(key)
    failure = actors.gone(key) if actor is None else None
    for record in inputs:
        failure = failure or record.inherit()
    fills: list[Any] = [record.outcome for record in inputs]
    name = spec.function.name.rpartition(".")[2]

    def start() -> object:
        assert actor is not None
        args, kwargs = decode_call(*call, fills)
        return getattr(actor.instance, name)(*args, **kwargs)

    context = copy_context()

    def begin(_attempt: int) -> Steps:
        assert actor is not None
        in_loop = None
        if actor.facts.is_async:
            in_loop = lambda call: actors.in_loop(actor, call, None)  # noqa: E731  # one line
        return Steps(start, actors.context_of(actor, spec, task), context, in_loop)

    @contextmanager
    def hold() -> Iterator[Allocation | None]:
        assert actor is not None
        with turn(actor):
            yield actor.allocation

    def obstacle() -> Failure | None:
        return failure if actor is None else failure or actor.death

    source = InlineSource(home, spec, task, begin, hold, obstacle)
    source.on_exit = lambda: None if actor is None else actors.on_exit(actor, spec)
    return source
