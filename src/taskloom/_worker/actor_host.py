"""The process of an actor: it constructs one object and runs the calls of its methods.

The process does not know whose it will be when it starts.  The first call it gets is that of a
constructor, which says how its methods are to be run: one after another in the main thread, in
threads (``actor_threads``), or in an event loop (``actor_loop``).  How many run at once, and in
which order they begin, is the driver's business: what has arrived may begin.

Nothing here is interrupted.  A call that was cancelled while it runs is told so
(``is_canceled``), except for coroutines, which get a CancelledError.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, NoReturn

from taskloom import _current, _ids
from taskloom._spec import ActorSpec
from taskloom._wire import messages as m
from taskloom._wire.careful import repr_of
from taskloom._wire.frames import Message
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom._wire.serialization import unpack_function
from taskloom._worker.answers import failure_of
from taskloom._worker.ending import end_process
from taskloom._worker.executor import Executor
from taskloom._worker.functions import Functions, Running, Spec
from taskloom._worker.link import DriverGone, Link
from taskloom._worker.output import Output
from taskloom.backends.base import ActorExit
from taskloom.exceptions import ActorDiedError, AsyncioActorExit, RayTaskError

_EXITS: Final = (ActorExit, AsyncioActorExit)


class HostFunctions(Functions):
    """What an actor's process can run: a class first, then methods of its instance."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: ActorSpec | None = None  # of the actor that lives here
        self.request: tuple[tuple[str, int], ...] = ()
        self.key = 0  # names it
        self.instance: Any = None
        self.label = ""  # who has printed a line: the class, or what the actor's own repr says

    def get(self, spec: Spec) -> Callable[..., Any]:
        """The constructor, or a method."""
        if spec.actor is not None:
            blob = self._blobs[spec.function_key]
            return lambda *args, **kwargs: self._construct(spec, blob, args, kwargs)
        name = spec.function_name.rpartition(".")[2]
        if name in _OWN_METHODS:
            return getattr(self, f"_{name.strip('_')}")  # type: ignore[no-any-return]
        method: Callable[..., Any] = getattr(self.instance, name)
        return method

    def _construct(self, spec: Spec, blob: bytes, args: Any, kwargs: Any) -> None:
        self.instance = unpack_function(blob)(*args, **kwargs)
        kinds = type(self.instance).__mro__
        if any("__repr__" in vars(kind) and kind.__module__ != "builtins" for kind in kinds):
            text = repr_of(self.instance)
            if text != object.__repr__(self.instance):  # what stands for a repr that raises
                self.label = text

    # Methods that every actor has.

    def _ray_ready(self) -> bool:
        return True

    def _ray_call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(self.instance, *args, **kwargs)

    def _ray_terminate(self) -> NoReturn:
        raise ActorExit


_OWN_METHODS: Final = frozenset({"__ray_ready__", "__ray_call__", "__ray_terminate__"})


class ActorHost:
    """The main loop of an actor's process; arguments as for ``Executor``."""

    def __init__(
        self, link: Link, output: Output, note_started: Callable[[int, bool], None]
    ) -> None:
        self._link = link
        self._output = output
        self._note_started = note_started
        self._first: list[Message] = []
        self.functions = HostFunctions()
        self._current: Callable[[], Running | None] = lambda: None
        self.on_identity: Callable[[int, ActorSpec, bool], None] = lambda key, facts, again: None
        link.on_message = self._first.append

    def running(self) -> Running | None:
        """The call that the calling code belongs to."""
        return self._current()

    def run(self) -> None:
        """Serve until the driver hangs up (raises DriverGone) or the actor leaves."""
        link = self._link
        link.post((m.READY, os.getpid()))
        link.flush()
        while not any(message[0] == m.RUN for message in self._first):
            link.read()
        for message in self._first:
            if message[0] != m.RUN:
                self.functions.on_message(message)
        creation = next(message for message in self._first if message[0] == m.RUN)
        spec = self.functions.specs[creation[4]]
        facts = spec.actor
        assert facts is not None, "an actor is called before it is constructed"
        self.functions.facts, self.functions.request = facts, spec.request
        self.functions.key = creation[2] + 1
        self.functions.label = facts.class_name
        self._output.speaker = lambda: self.functions.label
        self.on_identity(self.functions.key, facts, creation[3] > 1)
        runner = self._runner(facts)
        link.on_message = runner.on_message
        for message in self._first[self._first.index(creation) :]:
            runner.on_message(message)
        runner.serve()

    def _runner(self, facts: ActorSpec) -> Any:
        # Those that need threads and asyncio are loaded by those who need them.
        if facts.is_async:
            runner = import_module("taskloom._worker.actor_loop").ActorLoop(self)
        elif not facts.is_serial:
            runner = import_module("taskloom._worker.actor_threads").ActorThreads(self)
        else:
            runner = ActorExecutor(self)
        self._current = runner.current
        return runner

    # -- what all of them do ------------------------------------------------------------------

    def failure(self, error: BaseException, spec: Spec) -> Failure:
        """The failure of a call, or of the constructor, that raised."""
        failure = failure_of(error, spec)
        if spec.actor is None:
            return failure
        task_error = failure.revive()
        assert isinstance(task_error, RayTaskError)
        key, session = self.functions.key, _current.require().session_id
        actor_id = _ids.actor_bytes(session, key).hex()
        return system_failure(ActorDiedError.from_task_error(task_error, actor_id))

    def leave(self) -> NoReturn:
        """End this process in good order; the driver knows."""
        with contextlib.suppress(DriverGone):
            self._link.flush()
        hook = getattr(self.functions.instance, "__ray_shutdown__", None)
        if hook is not None:
            try:
                if isinstance(left := hook(), types.CoroutineType):
                    left.close()  # the class was warned about: only a plain function is called
            except BaseException:  # nobody waits for it: stderr is where it can be seen
                sys.excepthook(*sys.exc_info())
        self._output.flush()
        with contextlib.suppress(DriverGone):
            self._link.flush()
        end_process(self._output)

    def reason_of_exit(self, error: BaseException, spec: Spec) -> str | None:
        """Why the actor leaves, if ``error`` says that it does."""
        if not isinstance(error, _EXITS):
            return None
        if spec.function_name.endswith("__ray_terminate__"):
            return "it was ended by __ray_terminate__"
        return f"exit_actor() was called in {spec.name}"


class ActorExecutor(Executor):
    """One call after another, in the main thread."""

    def __init__(self, host: ActorHost) -> None:
        super().__init__(host._link, host._output, host._note_started)
        self._host = host
        self._functions = host.functions
        self._stopping = False
        self._leaving = False

    def current(self) -> Running | None:
        return self.running

    def on_message(self, message: Message) -> None:
        if message[0] == m.STOP:
            self._stopping = True
        else:
            self._on_message(message)

    def _read(self) -> None:
        if self._stopping:
            self._host.leave()
        super()._read()

    def _execute(self, task: Message, spec: Spec) -> None:
        super()._execute(task, spec)
        if self._leaving:
            self._host.leave()

    def _failed(self, seq: int, spec: Spec, error: BaseException, seconds: float) -> Message:
        why = self._host.reason_of_exit(error, spec)
        if why is not None:
            self._leaving = True
            return (m.LEAVING, why)
        message = super()._failed(seq, spec, error, seconds)
        if spec.actor is not None:
            return (m.FAILED, seq, self._host.failure(error, spec), False, seconds)
        return message

    def _on_control(self, message: Message) -> None:
        op, seq = message[0], message[1]
        if op != m.INTERRUPT:
            return
        with self._lock:
            running = self.running
            if running is not None and running.seq == seq:
                running.cancelled = True
                self._cancelled.add(seq)  # if it has not begun yet, it never will
            elif seq > self._started:
                self._cancelled.add(seq)
