"""Ray's actors around the user's objects."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn

import ray

from taskloom._spec import TaskSpec
from taskloom._wire.remote_errors import Failure
from taskloom.backends import cluster_context
from taskloom.backends.cluster_async import AsyncRunner
from taskloom.backends.cluster_driver import Outcome
from taskloom.backends.cluster_host import Hosted
from taskloom.backends.cluster_replay import StreamRunner
from taskloom.backends.cluster_run import EXITS, Runner, receipt_of
from taskloom.backends.ray_wire import PackedJob, outcome_in
from taskloom.backends.ray_worker import answer, enter


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

    def _runner(
        self, kind: Any, packed_spec: bytes, job: PackedJob, fills: Any
    ) -> tuple[Any, TaskSpec]:
        home, spec, one = enter(self._packed_facts, packed_spec, job)
        hosted = self._hosted
        filled = list(map(outcome_in, fills))
        return kind(home, spec, one, filled, hosted.method(spec), hosted.here), spec

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

    def call(self, packed_spec: bytes, job: PackedJob, *fills: Any) -> Any:
        """One call."""
        runner, _ = self._runner(Runner, packed_spec, job, fills)
        try:
            outcomes = runner.run()
        except EXITS:
            _exit()
        return answer((receipt_of(outcomes, runner.seconds), outcomes))

    def stream(self, packed_spec: bytes, job: PackedJob, *fills: Any) -> Iterator[Outcome]:
        """One call of a generator method."""
        runner, _ = self._runner(StreamRunner, packed_spec, job, fills)
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

    async def call(self, packed_spec: bytes, job: PackedJob, *fills: Any) -> Any:
        """One call."""
        hosted = self._hosted
        _, spec, _one = enter(self._packed_facts, packed_spec, job)
        async with hosted.turn(spec):
            try:
                if hosted.is_coroutine(spec):
                    runner, _ = self._runner(AsyncRunner, packed_spec, job, fills)
                    outcomes = await runner.run_async()
                else:
                    runner, _ = self._runner(Runner, packed_spec, job, fills)
                    outcomes = await hosted.in_thread(runner.run)
            except EXITS:
                _exit()
        return answer((receipt_of(outcomes, runner.seconds), outcomes))

    async def stream(
        self, packed_spec: bytes, job: PackedJob, *fills: Any
    ) -> AsyncIterator[Outcome]:
        """One call of a generator method."""
        runner, spec = self._runner(StreamRunner, packed_spec, job, fills)
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
