"""Ray's actors around the user's objects."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

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
    """Ray wraps each method of an actor's class for its traces, those that nobody calls from
    elsewhere, too.  So what all calls share are functions, below."""

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

    def __ray_shutdown__(self) -> None:
        self._hosted.leave()


class Entered(NamedTuple):
    """A call that has come."""

    home: ClusterBackend
    spec: TaskSpec
    job: Job
    fills: Sequence[Any]
    wants_one: bool
    """It is answered with one object."""


def _entered(host: _Base, packed: PackedCall, fills: Sequence[Any]) -> Entered:
    packed_spec, wants_one, job = unpack_call(packed)
    home = join(host._packed_facts)
    return Entered(
        home, spec_of(packed_spec), counted(job), list(map(outcome_in, fills)), wants_one
    )


def _entered_bare(host: _Base) -> Entered:
    """The same for a call that is described by Ray's name and id of it."""
    core = core_of_process()
    spec = host._hosted.spec_named(core.get_current_task_name())
    job = bare_job(core.get_current_task_id().binary())
    return Entered(join(host._packed_facts), spec, counted(job), (), wants_one=True)


def _runner(kind: Any, host: _Base, call: Entered) -> Any:
    hosted = host._hosted
    method = hosted.method(call.spec)
    return kind(call.home, call.spec, call.job, call.fills, method, hosted.here)


def _run(host: _Base, call: Entered) -> Any:
    runner = _runner(Runner, host, call)
    try:
        outcomes = runner.run()
    except EXITS:
        _exit()
    return answer((receipt_of(outcomes, runner.seconds), outcomes), in_one=call.wants_one)


async def _run_async(host: _Base, call: Entered) -> Any:
    hosted, spec = host._hosted, call.spec
    async with hosted.turn(spec):
        try:
            if hosted.is_coroutine(spec):
                runner = _runner(AsyncRunner, host, call)
                outcomes = await runner.run_async()
            else:
                runner = _runner(Runner, host, call)
                outcomes = await hosted.in_thread(runner.run)
        except EXITS:
            _exit()
    return answer((receipt_of(outcomes, runner.seconds), outcomes), in_one=call.wants_one)


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
        return _run(self, _entered(self, packed, fills))

    def bare(self) -> Any:
        """One call without arguments."""
        return _run(self, _entered_bare(self))

    def stream(self, packed: PackedCall, *fills: Any) -> Iterator[Outcome]:
        """One call of a generator method."""
        runner = _runner(StreamRunner, self, _entered(self, packed, fills))
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
        return await _run_async(self, _entered(self, packed, fills))

    async def bare(self) -> Any:
        """One call without arguments."""
        return await _run_async(self, _entered_bare(self))

    async def stream(self, packed: PackedCall, *fills: Any) -> AsyncIterator[Outcome]:
        """One call of a generator method."""
        call = _entered(self, packed, fills)
        runner = _runner(StreamRunner, self, call)
        async with self._hosted.turn(call.spec):
            try:
                if self._hosted.is_coroutine(call.spec):
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
