"""Actors in the calling process, for ``init(local_mode=True)``.

An actor is an object that stays here.  Its constructor runs inside ``Class.remote()``, its methods
run inside ``.remote()``, one at a time, and are over when it returns.  Coroutine methods run in an
event loop that belongs to the actor.  Arguments and results are snapshots, as for tasks.

What is different by nature: calls never overlap, so ``max_concurrency`` and concurrency groups
mean nothing; a method that calls its own actor runs that call at once, in the middle of itself (a
coroutine then in a loop of its own, as the actor's stands still meanwhile); nothing crashes, so
only ``kill(no_restart=False)`` restarts.  ``__ray_shutdown__`` runs at the first use of the
session after the last handle has gone, or at its end.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from time import monotonic
from typing import Any, Final
from weakref import WeakValueDictionary

from taskloom import _ids
from taskloom._core.resources import Allocation, Ledger, describe
from taskloom._spec import ActorSpec, TaskSpec
from taskloom._wire import serialization
from taskloom._wire.calls import Holes, decode_call
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom._wire.serialization import Payload
from taskloom.backends.base import ActorExit, ExecutionContext
from taskloom.backends.inline_calls import (
    Calls,
    capture_failure,
    enter,
    failure_or_pause,
    is_late,
    limit_of,
)
from taskloom.backends.inline_loop import items_of, outside_of_loops
from taskloom.backends.inline_object import Object
from taskloom.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    AsyncioActorExit,
    RayError,
    RayTaskError,
)


class InlineActor:
    """One actor: its object, and why it is dead if it is."""

    __slots__ = (
        "__weakref__", "_ended", "allocation", "death", "has_loop", "instance", "key", "lock",
        "plan", "restarts", "spec",
    )  # fmt: skip

    def __init__(self, key: int, spec: TaskSpec, ended: deque[tuple[Any, int, Any]]) -> None:
        self.key = key
        self.spec = spec
        self.instance: Any = None
        self.death: Failure | None = None
        self.allocation: Allocation | None = None
        self.plan: tuple[Payload, Holes | None, list[Any]] | None = None
        self.restarts = 0
        self.has_loop = False
        self.lock = threading.Lock()
        self._ended = ended

    @property
    def facts(self) -> ActorSpec:
        facts = self.spec.actor
        assert facts is not None
        return facts

    def __del__(self) -> None:
        # No user code here, where anybody's code may be running: only leave a note.
        if self.instance is not None or self.has_loop or self.allocation is not None:
            self._ended.append((self.instance, self.key, self.allocation))


class InlineActors:
    """All actors of a session.

    Args:
        session_id: of the session.
        ledger: what actors hold while they live.
        calls: runs their methods.
        unheard: where failures are left that nobody asks for.
    """

    def __init__(
        self, session_id: bytes, ledger: Ledger, calls: Calls, unheard: deque[Failure]
    ) -> None:
        self._session_id = session_id
        self._ledger = ledger
        self._ledger_lock = calls.lock
        self._calls = calls
        self._unheard = unheard
        self._by_key: WeakValueDictionary[int, InlineActor] = WeakValueDictionary()
        self._names: dict[tuple[str, str], int] = {}
        self._detached: dict[int, InlineActor] = {}
        self._ended: deque[tuple[Any, int, Any]] = deque()
        # Not in the actors: a loop that is garbage together with its actor closes itself, at once
        # and without a word to its tasks.
        self._runners: dict[int, asyncio.Runner] = {}

    # -- creating -----------------------------------------------------------------------------

    def find(self, namespace: str, name: str) -> InlineActor | None:
        """The living actor of that name."""
        actor = self._by_key.get(self._names.get((namespace, name), 0))
        return actor if actor is not None and actor.death is None else None

    def create(
        self, key: int, spec: TaskSpec, payload: Payload, holes: Holes | None, inputs: list[Any]
    ) -> InlineActor:
        """Run a constructor; ``inputs`` are the outcomes of the refs among its arguments."""
        actor = InlineActor(key, spec, self._ended)
        self._by_key[key] = actor
        facts = actor.facts
        failed = next((item for item in inputs if isinstance(item, Failure)), None)
        if failed is not None:
            actor.death = failed.inherit()
            return actor
        wanted = spec.request or facts.placement
        if not self._ledger.can_ever_fit(wanted):
            actor.death = system_failure(
                ActorUnschedulableError(
                    f"the actor {self._name(actor)} asks for {describe(wanted)}, but this session "
                    f"has only {self._ledger.describe_total()}: it can never be created"
                )
            )
            return actor
        with self._ledger_lock:
            fits = self._ledger.fits(spec.request)
            actor.allocation = self._ledger.acquire(spec.request if fits else ())
        actor.plan = (payload, holes, inputs)
        if facts.name:
            self._names[facts.namespace, facts.name] = key
        self._construct(actor)
        if facts.detached and actor.death is None:
            self._detached[key] = actor
        return actor

    def _construct(self, actor: InlineActor) -> None:
        assert actor.plan is not None
        payload, holes, inputs = actor.plan

        def construct() -> None:
            enter(self.context_of(actor, actor.spec, actor.key - 1), actor.allocation)
            cls = serialization.unpack_function(actor.spec.function.blob)
            args, kwargs = decode_call(payload, holes, inputs)
            if actor.facts.is_async:
                actor.instance = self.in_loop(actor, lambda: cls(*args, **kwargs), None)
            else:
                actor.instance = cls(*args, **kwargs)

        try:
            copy_context().run(construct)
        except KeyboardInterrupt:
            raise
        except (ActorExit, AsyncioActorExit):
            self.die(actor, "exit_actor() was called in its constructor")
        except BaseException as error:
            task_error = capture_failure(error, actor.spec).revive()
            assert isinstance(task_error, RayTaskError)
            self._end(actor, ActorDiedError.from_task_error(task_error, self._id(actor.key)))

    # -- calling ------------------------------------------------------------------------------

    def get(self, key: int) -> InlineActor | None:
        return self._by_key.get(key)

    def call(
        self,
        key: int,
        spec: TaskSpec,
        task: int,
        payload: Payload,
        holes: Holes | None,
        inputs: Sequence[Object],
    ) -> Sequence[Object]:
        """All attempts of a call; the records of what it returns."""
        actor = self._by_key.get(key)
        failure = self.gone(key) if actor is None else actor.death
        for record in inputs:
            failure = failure or record.inherit()
        attempt = 0
        early: list[Object] = []
        while failure is None:
            assert actor is not None
            here, method = self.context_of(actor, spec, task), self.method(actor, spec)
            began = monotonic()
            made: Sequence[Object] = ()
            error: BaseException | None = None
            try:
                with turn(actor):
                    made = self._calls.attempt(
                        spec, here, actor.allocation, payload, holes, inputs, early, method
                    )
            except KeyboardInterrupt:
                raise  # Ctrl-C ends the program, of which the actor is a part here
            except (ActorExit, AsyncioActorExit):
                failure = self.on_exit(actor, spec)
                break
            except BaseException as raised:
                error = raised
            attempt += 1
            took_s = monotonic() - began
            if error is None and not is_late(spec, took_s):
                return made
            failure = failure_or_pause(spec, error, attempt, took_s)
            del error  # its traceback holds this frame
        rest = range(spec.num_returns - len(early))
        return [*early, *(Object(failure, (), self._unheard) for _ in rest)]

    def method(self, actor: InlineActor, spec: TaskSpec) -> Callable[..., Any]:
        """What a call runs."""
        name = spec.function.name.rpartition(".")[2]
        if name == "__ray_ready__":
            return lambda: True
        if name == "__ray_terminate__":
            return _leave
        limit_s = limit_of(spec)

        def run(*args: Any, **kwargs: Any) -> Any:
            def call() -> Any:
                if name == "__ray_call__":
                    return args[0](actor.instance, *args[1:], **kwargs)
                return getattr(actor.instance, name)(*args, **kwargs)

            if not actor.facts.is_async:
                return call()
            if spec.is_coroutine:
                return self.in_loop(actor, call, limit_s)
            value = outside_of_loops(call)
            if isinstance(value, types.AsyncGeneratorType) and spec.num_returns > 1:
                most = spec.num_returns + 1
                return self.in_loop(actor, lambda: items_of(value, most), limit_s)
            if not isinstance(value, types.CoroutineType):
                return value
            return self.in_loop(actor, lambda: value, limit_s)

        return run

    def on_exit(self, actor: InlineActor, spec: TaskSpec) -> Failure:
        """A call has ended the actor; the outcome of that call."""
        by_request = spec.function.name.endswith("__ray_terminate__")
        why = "it was ended by __ray_terminate__"
        self.die(actor, why if by_request else f"exit_actor() was called in {spec.name}")
        assert actor.death is not None
        return actor.death

    def context_of(self, actor: InlineActor, spec: TaskSpec, task: int) -> ExecutionContext:
        """Where code of an actor runs."""
        return ExecutionContext(
            task_key=task,
            task_name=spec.name,
            function_name=spec.function.name,
            resources=actor.spec.request,
            actor_key=actor.key,
            actor_spec=actor.facts,
            actor_restarted=actor.restarts > 0,
        )

    def in_loop(self, actor: InlineActor, call: Callable[[], Any], limit_s: float | None) -> Any:
        """What ``call`` returns, and has when awaited, inside the actor's loop."""

        async def main() -> Any:
            value = call()
            if not isinstance(value, types.CoroutineType):
                return value
            async with asyncio.timeout(limit_s):
                return await value

        def run() -> Any:
            runner = self._runners.get(actor.key)
            if runner is None:
                runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
                self._runners[actor.key] = runner
                actor.has_loop = True
            elif runner.get_loop().is_running():  # a call in the middle of another one
                with asyncio.Runner(loop_factory=asyncio.new_event_loop) as other:
                    return other.run(main())
            return runner.run(main(), context=copy_context())

        return outside_of_loops(run)

    def _close_loop(self, key: int) -> None:
        runner = self._runners.get(key)
        if runner is not None and not runner.get_loop().is_running():
            del self._runners[key]
            outside_of_loops(runner.close)

    # -- ending -------------------------------------------------------------------------------

    def kill(self, actor: InlineActor, *, no_restart: bool) -> None:
        """``kill()``; with ``no_restart=False`` the constructor runs again if it may."""
        if actor.death is not None:
            return
        most = actor.facts.max_restarts
        if no_restart or 0 <= most <= actor.restarts:
            self.die(actor, "it was killed by kill()", gracefully=False)
            return
        actor.restarts += 1
        actor.instance = None
        self._close_loop(actor.key)
        self._construct(actor)

    def die(self, actor: InlineActor, why: str, *, gracefully: bool = True) -> None:
        """The actor ends."""
        instance = actor.instance
        error = ActorDiedError(
            f"The actor {self._name(actor)} is dead: {why}.", actor_id=self._id(actor.key)
        )
        self._end(actor, error)
        if gracefully and instance is not None:
            _call_shutdown_hook(instance)

    def _end(self, actor: InlineActor, error: RayError) -> None:
        actor.death = system_failure(error)
        actor.instance = None
        facts = actor.facts
        if self._names.get((facts.namespace, facts.name)) == actor.key:
            del self._names[facts.namespace, facts.name]
        allocation, actor.allocation = actor.allocation, None
        if allocation is not None:
            with self._ledger_lock:
                self._ledger.release(allocation)
        self._detached.pop(actor.key, None)

    def sweep(self) -> None:
        """End in good order what nobody has a handle of any more."""
        while self._ended:
            instance, key, allocation = self._ended.popleft()
            if instance is not None:
                _call_shutdown_hook(instance)
            self._close_loop(key)
            if allocation is not None:
                with self._ledger_lock:
                    self._ledger.release(allocation)

    def close(self) -> None:
        """The session ends."""
        self._detached.clear()
        self.sweep()
        for actor in list(self._by_key.values()):
            if actor.death is None:
                self.die(actor, "the session was shut down")
        for key in list(self._runners):
            self._close_loop(key)

    # -- answers ------------------------------------------------------------------------------

    def answer(self, name: str, content: Any) -> Any:
        """As ``_engine/actor_desk`` does."""
        if name == "find":
            actor = self.find(*content)
            return () if actor is None else (actor.key, actor.facts.manifest)
        if name == "list":
            living = [pair for pair in self._names if self.find(*pair) is not None]
            return [pair for pair in living if content in ("", pair[0])]
        if name == "is_known":
            return content in self._by_key
        return 0 if name == "pending" else False

    def gone(self, key: int) -> Failure:
        """The outcome of a call to an actor that is not there any more."""
        return system_failure(
            ActorDiedError(
                f"The actor {self._id(key)} is dead: all handles that keep it alive were gone.",
                actor_id=self._id(key),
            )
        )

    def _name(self, actor: InlineActor) -> str:
        named = f" named {actor.facts.name!r}" if actor.facts.name else ""
        return f"{actor.facts.class_name}{named} ({self._id(actor.key)})"

    def _id(self, key: int) -> str:
        return _ids.actor_bytes(self._session_id, key).hex()


_inside: Final[ContextVar[frozenset[int]]] = ContextVar(
    "taskloom-inline-inside", default=frozenset()
)
"""The actors in whose calls the running code is, by key."""


@contextmanager
def turn(actor: InlineActor) -> Iterator[None]:
    """Until no other call of the actor runs, except those from whose middle this one is made.

    That is no matter of threads: a coroutine may run in another one than who waits for it.
    """
    inside = _inside.get()
    if actor.key in inside:
        yield
        return
    with actor.lock:
        token = _inside.set(inside | {actor.key})
        try:
            yield
        finally:
            _inside.reset(token)


def _leave() -> None:
    raise ActorExit


def _call_shutdown_hook(instance: Any) -> None:
    hook = getattr(instance, "__ray_shutdown__", None)
    if hook is None:
        return
    try:
        if isinstance(left := hook(), types.CoroutineType):
            left.close()  # the class was warned about: only a plain function is called
    except Exception:  # nobody waits for it: stderr is where it can be seen
        sys.excepthook(*sys.exc_info())
