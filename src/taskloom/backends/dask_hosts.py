"""Actors in Dask's workers: the user's object, and the threads or the loop that its calls run in.

An actor is one of Dask's own, so Dask keeps it where it is, and as long as somebody has a future
of it.  Dask's way to call one tells nobody but the caller of the result; so each call is a task of
Dask's as well, without a slot, which hands the call to the actor and waits.  It runs in the
actor's worker if that can be had, and goes over the wire else.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple

import distributed

from taskloom import _ids
from taskloom._spec import TaskSpec
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom.backends.cluster_async import AsyncRunner
from taskloom.backends.cluster_driver import Job, Receipt
from taskloom.backends.cluster_host import Hosted
from taskloom.backends.cluster_replay import StreamRunner
from taskloom.backends.cluster_run import EXITS, Runner, receipt_of
from taskloom.backends.dask_handles import Answer, answer
from taskloom.backends.dask_interrupts import Interruptible, end_call
from taskloom.backends.dask_streams import produce, produce_async
from taskloom.backends.dask_worker import (
    begin,
    cancelled_answer,
    crashed,
    crew,
    enter,
    give_slot_back,
    guarded,
    in_crew,
    loop,
)
from taskloom.exceptions import ActorDiedError

_KILLED: Final = "it was killed"
_LEFT: Final = "it has left by itself"


class Turn(NamedTuple):
    """The place of a call among those of its caller: where calls must run in order."""

    caller: str
    number: int


class _Order:
    """Lets the calls of one caller through one after another.

    Some never come, because what they depend on has failed, or because they were cancelled.  The
    caller says so.
    """

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._skipped: set[int] = set()

    async def come(self, number: int) -> None:
        """Wait for one's turn."""
        if number > self._next:
            self._waiting[number] = asyncio.get_running_loop().create_future()
            await self._waiting[number]

    def go_on(self, number: int) -> None:
        """The call of this number is queued, or never comes."""
        if number > self._next:
            self._skipped.add(number)
            return
        if number < self._next:
            return
        self._next += 1
        waiting = self._waiting.pop(self._next, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        elif self._next in self._skipped:
            self._skipped.discard(self._next)
            self.go_on(self._next)


class ActorHost:
    """One actor; made by Dask in a thread, and called on the worker's loop.

    Args:
        key: of the task that makes it.
        session: its name.
        packed_spec, packed_call: of the constructor.
        values: its dependencies.
    """

    def __init__(
        self,
        key: bytes,
        session: str,
        packed_spec: bytes,
        packed_call: bytes,
        *values: Answer,
    ) -> None:
        give_slot_back(key)
        self._session = session
        entered = enter(session, packed_spec, packed_call, values)
        self._hosted = Hosted(*entered, restarted=False)
        self._why_dead = ""
        self._is_broken = False
        self._orders: dict[str, _Order] = {}
        self._crews: dict[str, ThreadPoolExecutor] = {}
        self._at_work: dict[int, Future[Answer]] = {}
        self._lock = threading.RLock()  # a call may be over before it is noted
        failure = self._hosted.construct()
        if failure is not None:
            self._is_broken = True
            self._why_dead = str(failure.revive())

    # -- on the worker's loop -----------------------------------------------------------------

    async def take(
        self,
        packed_spec: bytes,
        packed_call: bytes,
        turn: Turn | None,
        *values: Answer,
    ) -> Answer:
        """One call; its answer."""
        _, spec, job, fills = await in_crew(enter, self._session, packed_spec, packed_call, values)
        order = None
        if turn is not None:
            turn = Turn(*turn)
            order = self._orders.setdefault(turn.caller, _Order())
            await order.come(turn.number)
        try:
            with self._lock:
                if self._why_dead:
                    return self._dead_answer(spec)
                told = self._at_work[job.task] = Future()
                self._begin(told, spec, job, fills)
        finally:
            if order is not None and turn is not None:
                order.go_on(turn.number)
        try:
            return await asyncio.wrap_future(told)
        finally:
            self._at_work.pop(job.task, None)

    async def skip(self, turn: Turn) -> None:
        """A call that never comes."""
        turn = Turn(*turn)
        self._orders.setdefault(turn.caller, _Order()).go_on(turn.number)

    async def kill(self) -> None:
        """The end: what runs is interrupted, and nobody waits for it."""
        self._end(_KILLED)

    def _end(self, why: str) -> None:
        with self._lock:
            if self._why_dead:
                return
            self._why_dead = why
            at_work = dict(self._at_work)
        for task, told in at_work.items():
            end_call(task)
            if not told.done():
                try:
                    told.set_exception(_Gone())
                except Exception:
                    pass  # it has just ended

    # -- running ------------------------------------------------------------------------------

    def _begin(self, told: Future[Answer], spec: TaskSpec, job: Job, fills: Sequence[Any]) -> None:
        if self._hosted.facts.is_async:
            work = self._run_async(spec, job, fills)
            running: Any = asyncio.run_coroutine_threadsafe(work, loop())
        else:
            running = self._crew(spec.group).submit(self._run, spec, job, fills)
        running.add_done_callback(partial(_pass_on, told, partial(self._failed, spec, job.task)))

    def _failed(self, spec: TaskSpec, task: int, error: BaseException) -> Answer:
        """What a call gives that has raised: only the exits of an actor do."""
        self._at_work.pop(task, None)
        if isinstance(error, EXITS):
            self._end(_LEFT)
            crew.submit(self._hosted.leave)
        return self._dead_answer(spec)

    def _crew(self, group: str) -> ThreadPoolExecutor:
        """The threads of a concurrency group."""
        found = self._crews.get(group)
        if found is None:
            most = dict(self._hosted.facts.groups).get(group, 1)
            found = self._crews[group] = ThreadPoolExecutor(most, "taskloom-actor")
        return found

    def _run(self, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> Answer:
        """One call, in a thread of the actor's."""
        hosted = self._hosted
        kind: Any = Runner if spec.stream is None else StreamRunner
        runner = kind(hosted.home, spec, job, fills, hosted.method(spec), hosted.here)
        with Interruptible(job.task) as guard:
            if guard.is_doomed or self._why_dead:
                raise KeyboardInterrupt
            if spec.stream is not None:
                return produce(self._session, runner)
            # As on Ray: plain code of an actor may ask whether it was cancelled, and goes on.
            guard.cancel_by(_let_it_go_on)
            outcomes = runner.run()
            if not guard.was_cancelled:
                return answer((receipt_of(outcomes, runner.seconds), outcomes))
        return cancelled_answer(hosted.home, spec, job)

    async def _run_async(self, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> Answer:
        """One call of an async actor, in the loop that all of this process share."""
        hosted = self._hosted
        async with hosted.turn(spec):
            if not hosted.is_coroutine(spec):
                found: Answer = await hosted.in_thread(partial(self._run, spec, job, fills))
                return found
            kind: Any = AsyncRunner if spec.stream is None else StreamRunner
            runner = kind(hosted.home, spec, job, fills, hosted.method(spec), hosted.here)
            with Interruptible(job.task) as guard:
                if guard.is_doomed:
                    raise KeyboardInterrupt
                if spec.stream is not None:
                    guarded(guard)
                    return await produce_async(self._session, runner, in_crew)
                guarded(guard)
                outcomes = await runner.run_async()
                return answer((receipt_of(outcomes, runner.seconds), outcomes))
        return cancelled_answer(hosted.home, spec, job)

    def _dead_answer(self, spec: TaskSpec) -> Answer:
        actor_id = _ids.actor_bytes(self._hosted.home.session_id, self._hosted.key).hex()
        failure = died(actor_id, self._why_dead, at_birth=self._is_broken)
        return Answer(Receipt((failure,) * spec.num_returns))

    def __del__(self) -> None:
        # Dask has let go of it: nobody has a handle any more.
        crews = getattr(self, "_crews", {})
        for one in crews.values():
            one.shutdown(wait=False)
        if getattr(self, "_why_dead", "no") == "":
            crew.submit(self._hosted.leave)


def _let_it_go_on() -> None:
    pass


class _Gone(Exception):
    """Raised to those who wait for an actor that was killed."""


def _pass_on(
    told: Future[Answer], failed: Callable[[BaseException], Answer], done: Future[Answer]
) -> None:
    if told.done():
        return
    error = done.exception() if not done.cancelled() else _Gone()
    try:
        told.set_result(done.result() if error is None else failed(error))
    except Exception:
        pass  # the actor was killed meanwhile, and said so


def died(actor_id: str, why: str, *, at_birth: bool = False) -> Failure:
    """The failure of a call of an actor that is dead."""
    text = f"The actor {actor_id} is dead: {why}"
    return system_failure(ActorDiedError(text, actor_id=actor_id, actor_init_failed=at_birth))


async def call_actor(
    key: bytes,
    session: str,
    packed_spec: bytes,
    packed_call: bytes,
    actor: Any,
    turn: Turn | None,
    actor_id: str,
    returns: int,
    *values: Answer,
) -> Answer:
    """A task of Dask's: one call of an actor."""
    give_slot_back(key)
    host: Any = distributed.get_worker().state.actors.get(actor.key) or actor
    try:
        if begin(key, session):
            # The actor lives, and may have got the call from the worker that is dead.
            if turn is not None:
                await host.skip(turn)
            return Answer(Receipt((crashed("a call of an actor"),) * returns))
        found: Answer = await host.take(packed_spec, packed_call, turn, *values)
        return found
    except _Gone:
        why = _KILLED
    except (OSError, ValueError, distributed.CommClosedError) as error:
        why = f"its worker is gone ({error})"
    return Answer(Receipt((died(actor_id, why),) * returns))


async def tell_actor(_key: bytes, actor: Any, word: str, *args: Any) -> None:
    """A task of Dask's: anything else that an actor is told."""
    host = distributed.get_worker().state.actors.get(actor.key)
    await getattr(actor if host is None else host, word)(*args)
