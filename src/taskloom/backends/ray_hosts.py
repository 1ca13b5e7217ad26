"""Ray's actors around the user's objects."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NoReturn

import ray

from taskloom._spec import TaskSpec
from taskloom._wire.remote_errors import Failure
from taskloom.backends import cluster_context
from taskloom.backends.cluster import ClusterBackend
from taskloom.backends.cluster_async import AsyncRunner
from taskloom.backends.cluster_driver import Job, Outcome
from taskloom.backends.cluster_host import Hosted
from taskloom.backends.cluster_replay import StreamRunner
from taskloom.backends.cluster_run import EXITS, Runner, receipt_of
from taskloom.backends.ray_wire import (
    PackedCall,
    PackedJob,
    answer,
    bare_job,
    outcome_in,
    unpack_call,
)
from taskloom.backends.ray_worker import core_of_process, counted, enter, join, spec_of


class ConstructorFailed(Exception):
    """Raised where Ray constructs: its text is that of the user's error."""


class _Base:
    _hosted: Hosted
    _packed_facts: bytes

    def _host(self, packed_facts: bytes, packed_spec: bytes, job: PackedJob, fills: Any) -> None:
        self._packed_facts = packed_facts
        cluster_context.ask_cluster = _was_cancelled
        home, spec, one = enter(packed_facts, packed_spec, job)
        with warnings.catch_warnings():  # Ray's own use of what it has deprecated
            warnings.simplefilter("ignore")
            restarted = ray.get_runtime_context().was_current_actor_reconstructed
        filled = list(map(outcome_in, fills))
        self._hosted = Hosted(home, spec, one, filled, restarted=restarted)

    def _construct(self) -> None:
        failure = self._hosted.construct()
        if failure is not None:
            raise ConstructorFailed(_text_of(failure)) from None

    def _entered(self, packed: PackedCall) -> tuple[ClusterBackend, TaskSpec, Job, bool]:
        """The session, the spec and the call; whether it is answered with one object."""
        packed_spec, wants_one, job = unpack_call(packed)
        return join(self._packed_facts), spec_of(packed_spec), counted(job), wants_one

    def _entered_bare(self) -> tuple[ClusterBackend, TaskSpec, Job]:
        """The same for a call that is described by Ray's name and id of it."""
        core = core_of_process()
        spec = self._hosted.spec_named(core.get_current_task_name())
        job = bare_job(core.get_current_task_id().binary())
        return join(self._packed_facts), spec, counted(job)

    def _runner(
        self, kind: Any, home: ClusterBackend, spec: TaskSpec, job: Job, fills: Sequence[Any]
    ) -> Any:
        hosted = self._hosted
        filled = list(map(outcome_in, fills))
        return kind(home, spec, job, filled, hosted.method(spec), hosted.here)

    def __ray_shutdown__(self) -> None:
        self._hosted.leave()


def _text_of(failure: Failure) -> str:
    return str(failure.revive())


def _was_cancelled() -> bool:
    try:
        return bool(ray.get_runtime_context().is_canceled())
    except (AttributeError, RuntimeError):
        return False  # a Ray that is too old to tell, or a coroutine, which gets a CancelledError


def _exit() -> NoReturn:
    ray.actor.exit_actor()
    raise AssertionError("it does not return")


class Host(_Base):
    """An actor whose methods run in one thread, or in as many as were asked for."""

    def __init__(
        self, packed_facts: bytes, packed_spec: bytes, job: PackedJob, *fills: Any
    ) -> None:
        self._host(packed_facts, packed_spec, job, fills)
        self._construct()

    def call(self, packed: PackedCall, *fills: Any) -> Any:
        """One call."""
        home, spec, job, wants_one = self._entered(packed)
        return self._run(home, spec, job, fills, wants_one=wants_one)

    def bare(self) -> Any:
        """One call without arguments."""
        return self._run(*self._entered_bare(), (), wants_one=True)

    def _run(
        self, home: ClusterBackend, spec: TaskSpec, job: Job, fills: Any, *, wants_one: bool
    ) -> Any:
        runner = self._runner(Runner, home, spec, job, fills)
        try:
            outcomes = runner.run()
        except EXITS:
            _exit()
        return answer((receipt_of(outcomes, runner.seconds), outcomes), in_one=wants_one)

    def stream(self, packed: PackedCall, *fills: Any) -> Iterator[Outcome]:
        """One call of a generator method."""
        home, spec, job, _ = self._entered(packed)
        runner = self._runner(StreamRunner, home, spec, job, fills)
        try:
            yield from runner.items()
        except EXITS:
            _exit()


class AsyncHost(_Base):
    """An actor with coroutines, in one loop."""

    def counts_groups_itself(self) -> None:
        """Tells callers that Ray knows nothing of its concurrency groups."""

    def __init__(
        self, packed_facts: bytes, packed_spec: bytes, job: PackedJob, *fills: Any
    ) -> None:
        self._host(packed_facts, packed_spec, job, fills)
        self._construct()

    async def call(self, packed: PackedCall, *fills: Any) -> Any:
        """One call."""
        home, spec, job, wants_one = self._entered(packed)
        return await self._run(home, spec, job, fills, wants_one=wants_one)

    async def bare(self) -> Any:
        """One call without arguments."""
        return await self._run(*self._entered_bare(), (), wants_one=True)

    async def _run(
        self, home: ClusterBackend, spec: TaskSpec, job: Job, fills: Any, *, wants_one: bool
    ) -> Any:
        hosted = self._hosted
        async with hosted.turn(spec):
            try:
                if hosted.is_coroutine(spec):
                    runner = self._runner(AsyncRunner, home, spec, job, fills)
                    outcomes = await runner.run_async()
                else:
                    runner = self._runner(Runner, home, spec, job, fills)
                    outcomes = await hosted.in_thread(runner.run)
            except EXITS:
                _exit()
        return answer((receipt_of(outcomes, runner.seconds), outcomes), in_one=wants_one)

    async def stream(self, packed: PackedCall, *fills: Any) -> AsyncIterator[Outcome]:
        """One call of a generator method."""
        home, spec, job, _ = self._entered(packed)
        runner = self._runner(StreamRunner, home, spec, job, fills)
        async with self._hosted.turn(spec):
            try:
                if self._hosted.is_coroutine(spec):
                    async for outcome in runner.items_async():
                        yield outcome
                    return
                items = runner.items()
                while (
                    outcome := await self._hosted.in_thread(lambda: next(items, None))
                ) is not None:
                    yield outcome
            except EXITS:
                _exit()


def host_class(name: str, *, is_async: bool) -> type:
    """What Ray makes an actor of: called as the user's class, in Ray's logs and texts."""
    return type(name, (AsyncHost if is_async else Host,), {"__module__": "__main__"})
