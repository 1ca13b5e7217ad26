"""``TaskGroup``: tasks that end together, before the block in which they were submitted.

The engine does the work (``_core.scopes``): it knows which calls belong together, cancels them at
the first error, and says when no worker has any of them any more.  Here is the block: it makes
itself known to the calls inside, is interrupted when a member fails, waits to the very end,
and puts the errors together as ``asyncio.TaskGroup`` does.
"""

# What is given for a generator is a stream, on purpose.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import Token
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

from taskloom import _current
from taskloom._arrivals import waiting
from taskloom._blocking import warn_in_loop
from taskloom.exceptions import DeadlockError, RayError, RayTaskError, TaskCancelledError
from taskloom.generator import ObjectRefGenerator, call_of
from taskloom.ref import ObjectRef
from taskloom.remote_function import remote

if TYPE_CHECKING:
    from taskloom._actor_handle import ActorMethod
    from taskloom._stream_types import (
        ActorStreamMethod,
        AnyMethod,
        AnyResult,
        GeneratorFunction,
        StreamFunction,
    )
    from taskloom.backends.base import Backend, Group
    from taskloom.remote_function import ManyReturns, RemoteFunction

R = TypeVar("R")

_PASS: Final = (KeyboardInterrupt, SystemExit)
"""These end the program and are not put into a group."""


class TaskGroup:
    """Tasks that end together: the block ends when nothing of them runs any more.

    ::

        async with taskloom.TaskGroup() as tg:          # in asyncio and trio
            a = tg.remote(f)(1)
            b = g.remote(a)                             # belongs to the group, too

        with taskloom.TaskGroup() as tg:                # in a script or a ``def`` task
            refs = [f.remote(i) for i in range(10)]

    To the group belongs every call that is made inside the block from its context - also in a
    coroutine that was started inside, not in another thread - every call made with
    ``tg.remote``, and all that these tasks submit in turn.

    When a task of the block fails, or the block itself is left by an error, a cancel or a
    timeout, everything in the group is cancelled.  A body in ``async with`` is cancelled as
    well; one in ``with`` is not interrupted, but a ``get`` of a member raises.  In either case the
    block ends only when the workers have said that they are through with all of it.

    The rules for errors are those of ``asyncio.TaskGroup``: they come as one
    ``ExceptionGroup``, the error of the body among them; ``KeyboardInterrupt`` and ``SystemExit``
    of the body pass as they are; a member that was cancelled is no error.  An error that was
    passed on to dependents is there once.

    Source: no such thing in Ray.
    """

    def __init__(self) -> None:
        self._group: Group | None = None
        self._token: Token[Group | None] | None = None
        self._scope: Any = None  # of anyio: what interrupts the body

    def __repr__(self) -> str:
        state = "new" if self._group is None else "over" if self._group.closed else "open"
        return f"<TaskGroup {state}>"

    # -- inside the block ---------------------------------------------------------------------

    @overload
    def remote(self, function: ManyReturns) -> Callable[..., list[ObjectRef[Any]]]: ...
    @overload
    def remote(self, function: StreamFunction[..., R]) -> Callable[..., ObjectRefGenerator[R]]: ...
    @overload
    def remote(self, function: RemoteFunction[..., R]) -> Callable[..., ObjectRef[R]]: ...
    @overload
    def remote(self, function: ActorMethod[..., R]) -> Callable[..., ObjectRef[R]]: ...
    @overload
    def remote(
        self, function: ActorStreamMethod[..., R]
    ) -> Callable[..., ObjectRefGenerator[R]]: ...
    @overload
    def remote(self, function: AnyMethod) -> Callable[..., AnyResult]: ...
    @overload
    def remote(
        self, function: Callable[..., Coroutine[Any, Any, R]]
    ) -> Callable[..., ObjectRef[R]]: ...
    @overload
    def remote(
        self, function: GeneratorFunction[..., R]
    ) -> Callable[..., ObjectRefGenerator[R]]: ...
    @overload
    def remote(self, function: Callable[..., R]) -> Callable[..., ObjectRef[R]]: ...
    def remote(self, function: Any) -> Callable[..., Any]:
        """``tg.remote(f)(x)``: submit ``f.remote(x)`` as a member, from any thread or context.

        Args:
            function: a remote function, what its ``.options()`` returns, an actor's method, or
                a plain function, which is made remote.

        Returns:
            A function that submits one call and returns what ``.remote()`` does.

        Raises:
            RuntimeError: the block has not begun, or has ended.
        """
        self._opened()
        submit = (function if hasattr(function, "remote") else remote(function)).remote

        def call(*args: Any, **kwargs: Any) -> Any:
            token = _current.group.set(self._opened())
            try:
                return submit(*args, **kwargs)
            finally:
                _current.group.reset(token)

        return call

    def release(self, ref: ObjectRef[Any] | ObjectRefGenerator[Any]) -> None:
        """Let one task out: it survives the block, with all that it submits.

        Inside of another group it belongs to that one from now on.  Nothing happens when it is
        done, or no member.

        Raises:
            TypeError: not a ref.
            RuntimeError: the block has not begun, or has ended.
        """
        if not isinstance(ref, ObjectRef | ObjectRefGenerator):
            raise TypeError(f"release() expected an ObjectRef, got {ref!r}")
        self._opened().release(call_of(ref))

    def cancel(self) -> None:
        """Cancel all that is in the group; that alone is no error, and the block just ends.

        Raises:
            RuntimeError: the block has not begun, or has ended.
        """
        self._opened().cancel()

    def _opened(self) -> Group:
        if self._group is None:
            raise RuntimeError(f"{self!r} has not been entered: use 'with' or 'async with'")
        if self._group.closed:
            raise RuntimeError(f"{self!r}: its block has ended")
        return self._group

    # -- the block ----------------------------------------------------------------------------

    def _open(self) -> Group:
        if self._group is not None:
            raise RuntimeError(f"{self!r} has been entered already")
        self._group = group = _current.require().open_group()
        self._token = _current.group.set(group)
        return group

    def _close(self, error: BaseException | None) -> Group:
        """The body has ended."""
        group, token = self._group, self._token
        assert group is not None
        assert token is not None
        self._token = None
        try:
            _current.group.reset(token)
        except ValueError:
            pass  # left in another context than entered: there, the closed group is passed over
        if error is not None:
            group.cancel()
        group.close()
        return group

    def __enter__(self) -> TaskGroup:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        group = self._close(error)
        interrupt: BaseException | None = error if isinstance(error, _PASS) else None
        home, end = group.home, group.end
        done = home.is_done(end)
        if not done:
            warn_in_loop("a TaskGroup", "'async with TaskGroup()'")
        while not done:
            try:
                home.get((end,), None)
            except DeadlockError as circle:  # nothing moves unless the members are ended
                if error is not None:
                    raise
                error = circle
                group.cancel()
            except RayError:  # the session is over
                break
            except BaseException as stop:  # Ctrl-C; in a task, its cancellation
                if interrupt is not None:
                    raise  # the second one: whoever does not listen is left behind
                interrupt = stop
                group.cancel()
            else:
                done = True
        if interrupt is not None and interrupt is not error:
            raise interrupt
        if interrupt is None:
            _raise_errors(home, end, error)

    async def __aenter__(self) -> TaskGroup:
        # Loaded here: only a group in a loop needs scopes, and it is slow to import.
        self._scope = import_module("anyio").CancelScope()
        group = self._open()
        self._scope.__enter__()
        waiting().on_alarm_here(group, self._scope.cancel)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        group = self._close(error)
        try:
            if self._scope.__exit__(kind, error, traceback):
                error = None  # the body was interrupted because a member has failed
        except BaseException as rest:  # the same, and the body had something to add
            error = rest
        anyio = import_module("anyio")
        cancelled = anyio.get_cancelled_exc_class()
        interrupt = error if isinstance(error, (cancelled, *_PASS)) else None
        end, done = group.end, False
        if interrupt is None:
            try:
                await end.ready()
                done = True
            except cancelled as stop:
                group.cancel()
                interrupt = stop
        with anyio.CancelScope(shield=True):
            while not done:
                try:
                    await end.ready()
                    done = True
                except cancelled as stop:  # asyncio's own cancel knows no shield
                    interrupt = interrupt or stop
        if isinstance(error, _PASS):
            return
        _raise_errors(group.home, end, None if interrupt is error else error)
        if interrupt is not None and interrupt is not error:
            raise interrupt


def _raise_errors(home: Backend, end: ObjectRef[Any], body: BaseException | None) -> None:
    """Raise what went wrong in the block, if anything did."""
    try:
        failures = cast("list[Any]", home.result(end))
        errors = [failure.revive() for failure in _origins(failures)]
    except RayError as error:  # the session is over
        errors = [error]
    if body is not None and not (errors and isinstance(body, TaskCancelledError)):
        errors = [error for error in errors if not _is_in(error, body)]
        errors.append(body)
    if errors:
        try:
            raise BaseExceptionGroup("unhandled errors in a TaskGroup", errors) from None
        finally:
            del errors, body  # their tracebacks hold this frame: a circle


def _origins(failures: list[Any]) -> list[Any]:
    """The failures without those that were only passed on from one that is there, too."""
    origins = [failure for failure in failures if not failure.inherited]
    blobs = {failure.blob for failure in origins}
    return origins + [f for f in failures if f.inherited and f.blob not in blobs]


def _is_in(error: BaseException, body: BaseException) -> bool:
    """True when the body raised a member's error on, alone or in a group."""
    if isinstance(body, BaseExceptionGroup):
        return any(_is_in(error, part) for part in body.exceptions)
    return _is_same(error, body)


def _is_same(error: BaseException, body: BaseException) -> bool:
    """True when both are one error: each ``get`` makes an exception of its own."""
    if type(error) is not type(body):
        return False
    if isinstance(error, RayTaskError) and isinstance(body, RayTaskError):
        mine, other = error._taskloom_report, body._taskloom_report
        return mine._replace(inherited=False) == other._replace(inherited=False)
    return isinstance(error, RayError) and error.args == body.args
