"""What Ray's workers run for us: Ray's functions and actors around our runners.

Ray pickles what :func:`make_task` gives once for each function and keeps it in every worker that
has run it; the facts of the session and of the call travel inside.
"""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any, Final

import ray

from taskloom._spec import TaskSpec
from taskloom.backends.cluster import ClusterBackend
from taskloom.backends.cluster_async import AsyncRunner
from taskloom.backends.cluster_batch_run import is_plain, run_many
from taskloom.backends.cluster_driver import Job, Outcome
from taskloom.backends.cluster_limits import notice_interrupts
from taskloom.backends.cluster_replay import StreamRunner
from taskloom.backends.cluster_run import receipt_of, run_call
from taskloom.backends.cluster_worker import home_of, learn
from taskloom.backends.ray_wire import PackedJob, answer, bare_job, outcome_in, unpack_job

_facts: dict[bytes, Any] = {}
_specs: dict[bytes, TaskSpec] = {}
_LIMIT: Final = 10_000  # specs that a worker remembers


def enter(
    packed_facts: bytes, packed_spec: bytes, packed_job: PackedJob
) -> tuple[ClusterBackend, TaskSpec, Job]:
    """The session and the spec of a call, in the worker that runs it."""
    return join(packed_facts), spec_of(packed_spec), counted(unpack_job(packed_job)[0])


def counted(job: Job) -> Job:
    """A call that has come, with the attempts that it has lost on the way."""
    if job.registered:
        learn(job.registered)
    lost = core_of_process().get_current_task_attempt_number()
    return job._replace(attempts=job.attempts + lost) if lost else job


@cache
def core_of_process() -> Any:
    """Ray's part of this process."""
    return ray.get_runtime_context().worker.core_worker


def join(packed_facts: bytes) -> ClusterBackend:
    """The session of a call."""
    facts = _facts.get(packed_facts)
    if facts is None:
        facts = _facts[packed_facts] = pickle.loads(packed_facts)
    return home_of(facts)


def spec_of(packed_spec: bytes) -> TaskSpec:
    """The spec of a call: one object for all equal ones."""
    spec = _specs.get(packed_spec)
    if spec is None:
        if len(_specs) > _LIMIT:
            _specs.clear()
        spec = _specs[packed_spec] = pickle.loads(packed_spec)
    return spec


def make_task(packed_facts: bytes, packed_spec: bytes, name: str) -> Callable[..., Any]:
    """The function that Ray runs for a function of the user's."""

    def run(packed_job: PackedJob, *fills: Any) -> Any:
        home, spec = join(packed_facts), spec_of(packed_spec)
        job, wants_one = unpack_job(packed_job)
        notice_interrupts()
        told = run_call(home, spec, counted(job), list(map(outcome_in, fills)))
        return answer(told, in_one=wants_one)

    run.__name__ = run.__qualname__ = name
    return run


def make_bare_task(packed_facts: bytes, packed_spec: bytes, name: str) -> Callable[..., Any]:
    """The same for calls without arguments; Ray is fastest with functions that can have none."""

    def run() -> Any:
        home, spec = join(packed_facts), spec_of(packed_spec)
        job = bare_job(core_of_process().get_current_task_id().binary())
        notice_interrupts()
        return answer(run_call(home, spec, counted(job), ()), in_one=True)

    run.__name__ = run.__qualname__ = name
    return run


def make_generator(packed_facts: bytes, packed_spec: bytes, name: str) -> Callable[..., Any]:
    """The same for a generator function of the user's."""

    def run(job: PackedJob, *fills: Any) -> Iterator[Outcome]:
        home, spec, one = enter(packed_facts, packed_spec, job)
        notice_interrupts()
        yield from StreamRunner(home, spec, one, list(map(outcome_in, fills))).items()

    run.__name__ = run.__qualname__ = name
    return run


def make_batch(packed_facts: bytes) -> Callable[..., Any]:
    """The function that Ray runs for many short calls."""

    def run(number: int, packed_specs: list[bytes], batch: bytes) -> Any:
        home = join(packed_facts)
        notice_interrupts()
        receipts = run_many(home, number, [spec_of(packed) for packed in packed_specs], batch)
        return pickle.dumps(receipts, 5) if all(map(is_plain, receipts)) else receipts

    run.__name__ = run.__qualname__ = "taskloom_batch"
    return run


class LoopHost:
    """Runs the coroutines of ``async def`` tasks that ask for no CPU, many in one loop."""

    async def run(
        self, packed_facts: bytes, packed_spec: bytes, job: PackedJob, *fills: Any
    ) -> Any:
        """One call."""
        home, spec, one = enter(packed_facts, packed_spec, job)
        runner = AsyncRunner(home, spec, one, list(map(outcome_in, fills)))
        outcomes = await runner.run_async()
        return answer((receipt_of(outcomes, runner.seconds), outcomes))

    async def stream(
        self, packed_facts: bytes, packed_spec: bytes, job: PackedJob, *fills: Any
    ) -> AsyncIterator[Outcome]:
        """One call of an async generator function."""
        home, spec, one = enter(packed_facts, packed_spec, job)
        runner = StreamRunner(home, spec, one, list(map(outcome_in, fills)))
        async for outcome in runner.items_async():
            yield outcome
