"""The object of an actor, in the process that a cluster gives it."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, NoReturn

from taskloom import _ids
from taskloom._actor_facts import described
from taskloom._spec import TaskSpec
from taskloom._wire.remote_errors import Failure
from taskloom.backends.base import ActorExit
from taskloom.backends.cluster import ClusterBackend
from taskloom.backends.cluster_driver import Job
from taskloom.backends.cluster_run import Runner, failure_of, function_of, inherited

_COROUTINE = 0x80 | 0x100 | 0x200  # code flags: async def, a coroutine of types, async generators


class Hosted:
    """One actor.

    Args:
        home: the session, in this process.
        spec: of the constructor.
        job: the call of it.
        fills: its dependencies.
        restarted: the actor had a process before this one.
    """

    def __init__(
        self, home: ClusterBackend, spec: TaskSpec, job: Job, fills: Any, *, restarted: bool
    ) -> None:
        assert spec.actor is not None
        self.home = home
        self.spec = spec
        self.facts = spec.actor
        self.key = _ids.object_of(_ids.TaskKey(job.task), 0)
        self.instance: Any = None
        self.here = {
            "actor_key": self.key,
            "actor_spec": self.facts,
            "actor_restarted": restarted,
            "resources": spec.request,
        }
        self._described: dict[str, TaskSpec] = {}
        self._first = Runner(home, spec, job, fills, here=self.here)
        self._semaphores: dict[str, asyncio.Semaphore] = {}
        self._crew: ThreadPoolExecutor | None = None

    def construct(self) -> Failure | None:
        """Run the constructor; what it has raised."""
        first = self._first
        failure = inherited(first.fills)
        if failure is not None:
            return failure
        try:
            context = first.context(0)
            context.run(self._build, first)
        except BaseException as error:
            return failure_of(error, self.spec)
        return None

    def _build(self, first: Runner) -> None:
        cls = function_of(self.spec)
        args, kwargs = first.arguments()
        self.instance = cls(*args, **kwargs)

    # -- methods ------------------------------------------------------------------------------

    def method(self, spec: TaskSpec) -> Callable[..., Any]:
        """What a call runs."""
        name = spec.function.name.rpartition(".")[2]
        own: dict[str, Callable[..., Any]] = {
            "__ray_ready__": _ready,
            "__ray_call__": self._call,
            "__ray_terminate__": _terminate,
        }
        found = own.get(name)
        if found is not None:
            return found
        method: Callable[..., Any] = getattr(self.instance, name)
        return method

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(self.instance, *args, **kwargs)

    def spec_named(self, name: str) -> TaskSpec:
        """The spec of calls of that name that have no options of their own."""
        spec = self._described.get(name)
        if spec is None:
            spec = self._described[name] = described(name, self.facts.manifest)
        return spec

    def is_coroutine(self, spec: TaskSpec) -> bool:
        """Whether a call runs in the loop of an async actor, not in a thread of it."""
        function = self.method(spec)
        function = getattr(function, "__func__", function)
        function = getattr(function, "__wrapped__", function)  # a decorator that passes it on
        code = getattr(function, "__code__", None)
        marked = getattr(function, "_is_coroutine_marker", None)
        return marked is not None or (code is not None and bool(code.co_flags & _COROUTINE))

    def turn(self, spec: TaskSpec) -> asyncio.Semaphore:
        """How many calls of a concurrency group run at once, in a loop."""
        semaphore = self._semaphores.get(spec.group)
        if semaphore is None:
            semaphore = asyncio.Semaphore(dict(self.facts.groups).get(spec.group, 1))
            self._semaphores[spec.group] = semaphore
        return semaphore

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """Run plain code of an async actor: one at a time, so that it never holds up the loop."""
        if self._crew is None:
            self._crew = ThreadPoolExecutor(1, "taskloom-actor")
        context = copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._crew, context.run, work)

    def leave(self) -> None:
        """The actor ends in good order."""
        hook = getattr(self.instance, "__ray_shutdown__", None)
        if hook is None:
            return
        try:
            if isinstance(left := hook(), types.CoroutineType):
                left.close()  # the class was warned about: only a plain function is called
        except BaseException:  # nobody waits for it: stderr is where it can be seen
            sys.excepthook(*sys.exc_info())


def _ready() -> bool:
    return True


def _terminate() -> NoReturn:
    raise ActorExit
