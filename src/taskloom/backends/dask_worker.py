"""What Dask's workers run for us: plain functions that Dask calls, around our runners."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from time import time
from typing import Any, Final

import distributed
from distributed.worker_state_machine import SecedeEvent

from taskloom._spec import TaskSpec
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom.backends.cluster import ClusterBackend
from taskloom.backends.cluster_async import AsyncRunner
from taskloom.backends.cluster_batch_run import is_plain, run_many
from taskloom.backends.cluster_driver import Here, Job, Outcome, Receipt
from taskloom.backends.cluster_replay import StreamRunner
from taskloom.backends.cluster_run import receipt_of, run_call
from taskloom.backends.cluster_worker import home_of, learn
from taskloom.backends.dask_handles import Answer, answer, bind
from taskloom.backends.dask_head import CAREFUL, LOST, ONCE, begun, ended, read
from taskloom.backends.dask_interrupts import Interruptible
from taskloom.backends.dask_streams import produce, produce_async
from taskloom.exceptions import WorkerCrashedError

_LIMIT: Final = 10_000  # specs that a worker remembers
_specs: dict[bytes, TaskSpec] = {}
homes: dict[str, ClusterBackend] = {}
_lock: Final = threading.Lock()


def join(session: str) -> ClusterBackend:
    """The session of a call; the first one that comes asks the scheduler what it is."""
    home = homes.get(session)
    if home is None:
        with _lock:
            home = homes.get(session)
            if home is None:
                packed = distributed.get_client().run_on_scheduler(read, session, "facts")
                home = homes[session] = home_of(pickle.loads(packed))
                return home
    return home_of(home.facts)


def spec_of(packed_spec: bytes) -> TaskSpec:
    """The spec of a call: one object for all equal ones."""
    spec = _specs.get(packed_spec)
    if spec is None:
        if len(_specs) > _LIMIT:
            _specs.clear()
        spec = _specs[packed_spec] = pickle.loads(packed_spec)
    return spec


def enter(
    session: str, packed_spec: bytes, packed_call: bytes, values: Sequence[Any], lost: int = 0
) -> tuple[ClusterBackend, TaskSpec, Job, list[Any]]:
    """The session and the spec of a call, and its dependencies, in the worker that runs it."""
    home = join(session)
    fields, fills = pickle.loads(packed_call)
    job = Job(*fields)
    if job.registered:
        learn(job.registered)
    if lost:
        job = job._replace(attempts=job.attempts + lost)
    arrived = iter(values)
    filled = [fill if fill is not None else Here(outcome_of(next(arrived))) for fill in fills]
    bind([*job.places.values(), *filled])
    return home, spec_of(packed_spec), job, filled


def pack_call(job: Job, fills: Sequence[Here | None]) -> bytes:
    """A call as it travels; None: a dependency that Dask brings."""
    return pickle.dumps((tuple(job), list(fills)), 5)


def outcome_of(value: Answer) -> Outcome:
    """A value as Dask brings it: of a call that has one output, or something that was put."""
    outcome: Outcome = value.output(0)
    return outcome


def begin(key: bytes, session: str) -> int:
    """A task begins; how many workers have died with it already.

    A careful one waits until the scheduler knows: see ``dask_head``.
    """
    told = _told(key)
    if CAREFUL in told:
        _tell_head(begun, key, session)
    return int(told.get(LOST, 0))


def end(key: bytes, session: str) -> None:
    """A task has ended, and its worker may die before its value has left.

    Then it is no fault of the task's, and it runs again; not one that must run once.
    """
    told = _told(key)
    if CAREFUL in told and ONCE not in told:
        _tell_head(ended, key, session)


def _tell_head(word: Callable[..., None], key: bytes, session: str) -> None:
    where = distributed.get_worker().address
    distributed.get_client().run_on_scheduler(word, session, key.decode(), where)


def _told(key: bytes) -> Mapping[str, Any]:
    """What the worker was told of a task."""
    state = distributed.get_worker().state.tasks.get(key.decode())
    return (state.annotations if state is not None else None) or {}


def crashed(name: str) -> Failure:
    """Of a call whose workers have died too often."""
    return system_failure(
        WorkerCrashedError(
            f"The worker died unexpectedly while executing {name}(), which may not be tried again."
        )
    )


# -- tasks of Dask's ------------------------------------------------------------------------------
#
# The key of a task is given as bytes: Dask replaces strings that are keys by what they stand for.


def run(
    key: bytes, session: str, packed_spec: bytes, packed_call: bytes, *values: Answer
) -> Answer:
    """One call that asks for a CPU: in the thread that Dask gives it."""
    told = run_here(*enter(session, packed_spec, packed_call, values, begin(key, session)))
    end(key, session)
    return told


def run_here(home: ClusterBackend, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> Answer:
    """One call in this thread."""
    if job.attempts > spec.max_retries >= 0:
        return failed_answer(crashed(spec.name), spec)
    try:
        with Interruptible(job.task) as guard:
            if guard.is_doomed:
                raise KeyboardInterrupt
            if spec.is_coroutine:
                return answer(_run_coroutine(home, spec, job, fills, guard))
            return answer(run_call(home, spec, job, fills))
    finally:
        forget_children(home, job)
    return cancelled_answer(home, spec, job)  # the guard has caught an interrupt


def _run_coroutine(
    home: ClusterBackend, spec: TaskSpec, job: Job, fills: Sequence[Any], guard: Interruptible
) -> tuple[Receipt, list[Outcome]]:
    """A coroutine function, in a loop of its own."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as loops:
        runner = AsyncRunner(home, spec, job, fills)
        outcomes = loops.run(_guarded(runner, guard))
    return receipt_of(outcomes, runner.seconds), outcomes


async def _guarded(runner: AsyncRunner, guard: Interruptible) -> list[Outcome]:
    guarded(guard)
    return await runner.run_async()


def guarded(guard: Interruptible) -> None:
    """The running coroutine is cancelled by its loop from now on, not by an interrupt."""
    task = asyncio.current_task()
    assert task is not None
    guard.cancel_by(partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel))


async def run_free(
    key: bytes, session: str, packed_spec: bytes, packed_call: bytes, *values: Answer
) -> Answer:
    """One call that asks for no CPU: it holds no slot of the worker."""
    give_slot_back(key)
    entered = await asyncio.to_thread(_begin_free, key, session, packed_spec, packed_call, values)
    if entered[1].is_coroutine:
        work = asyncio.run_coroutine_threadsafe(_run_free(*entered), loop())
    else:
        work = crew.submit(run_here, *entered)
    return await _until_end(work, key, session)


def run_stream(
    key: bytes, session: str, packed_spec: bytes, packed_call: bytes, *values: Answer
) -> Answer:
    """One call of a generator function that asks for a CPU."""
    entered = enter(session, packed_spec, packed_call, values, begin(key, session))
    told = produce_here(session, *entered)
    end(key, session)
    return told


def produce_here(
    session: str, home: ClusterBackend, spec: TaskSpec, job: Job, fills: Sequence[Any]
) -> Answer:
    """One call of a generator function, in this thread."""
    if job.attempts > spec.max_retries >= 0:
        return failed_answer(crashed(spec.name), spec)
    try:
        with Interruptible(job.task) as guard:
            if guard.is_doomed:
                raise KeyboardInterrupt
            return produce(session, StreamRunner(home, spec, job, fills))
    finally:
        forget_children(home, job)
    return cancelled_answer(home, spec, job)


async def run_free_stream(
    key: bytes, session: str, packed_spec: bytes, packed_call: bytes, *values: Answer
) -> Answer:
    """One call of a generator function that asks for no CPU."""
    give_slot_back(key)
    entered = await asyncio.to_thread(_begin_free, key, session, packed_spec, packed_call, values)
    if entered[1].is_coroutine:
        work = asyncio.run_coroutine_threadsafe(_produce_free(session, *entered), loop())
    else:
        work = crew.submit(produce_here, session, *entered)
    return await _until_end(work, key, session)


async def _produce_free(
    session: str, home: ClusterBackend, spec: TaskSpec, job: Job, fills: Sequence[Any]
) -> Answer:
    """An async generator function, in the loop that all of this process share."""
    if job.attempts > spec.max_retries >= 0:
        return failed_answer(crashed(spec.name), spec)
    with Interruptible(job.task) as guard:
        if guard.is_doomed:
            raise KeyboardInterrupt
        guarded(guard)
        runner = StreamRunner(home, spec, job, fills)
        return await produce_async(session, runner, in_crew)
    return cancelled_answer(home, spec, job)


def _begin_free(
    key: bytes, session: str, packed_spec: bytes, packed_call: bytes, values: Sequence[Answer]
) -> tuple[ClusterBackend, TaskSpec, Job, list[Any]]:
    return enter(session, packed_spec, packed_call, values, begin(key, session))


async def _until_end(work: Future[Answer], key: bytes, session: str) -> Answer:
    told = await asyncio.wrap_future(work)
    if CAREFUL in _told(key):
        await asyncio.to_thread(end, key, session)
    return told


async def _run_free(home: ClusterBackend, spec: TaskSpec, job: Job, fills: Sequence[Any]) -> Answer:
    """A coroutine function, in the loop that all of this process share."""
    if job.attempts > spec.max_retries >= 0:
        return failed_answer(crashed(spec.name), spec)
    try:
        with Interruptible(job.task) as guard:
            if guard.is_doomed:
                raise KeyboardInterrupt
            runner = AsyncRunner(home, spec, job, fills)
            outcomes = await _guarded(runner, guard)
            return answer((receipt_of(outcomes, runner.seconds), outcomes))
    finally:
        forget_children(home, job)
    return cancelled_answer(home, spec, job)


def give_slot_back(key: bytes) -> None:
    """The task goes on without a slot, and the next one begins."""
    worker = distributed.get_worker()
    event = SecedeEvent(
        key=key.decode(), compute_duration=0.001, stimulus_id=f"taskloom-free-{time()}"
    )
    worker.loop.add_callback(worker.handle_stimulus, event)


_MOST_THREADS: Final = 1000
crew: Final = ThreadPoolExecutor(_MOST_THREADS, "taskloom-free")
"""Runs plain functions that ask for no CPU."""


def in_crew(work: Callable[..., Any], *args: Any) -> Awaitable[Any]:
    """Run what blocks, for the running loop."""
    return asyncio.get_running_loop().run_in_executor(crew, partial(work, *args))


_loops: Final[list[asyncio.AbstractEventLoop]] = []


def loop() -> asyncio.AbstractEventLoop:
    """The loop in which coroutines run that ask for no CPU."""
    with _lock:
        if not _loops:
            _loops.append(asyncio.new_event_loop())
            threading.Thread(
                target=_loops[0].run_forever, name="taskloom-coroutines", daemon=True
            ).start()
        return _loops[0]


def forget_children(home: ClusterBackend, job: Job) -> None:
    """A call is over, and what it has submitted goes on without it."""
    driver: Any = home.driver
    driver.canceller.forget_children(job.task)


def cancelled_answer(home: ClusterBackend, spec: TaskSpec, job: Job) -> Answer:
    """Of a call that was cancelled."""
    return failed_answer(home.calls.cancelled(job), spec)


def failed_answer(failure: Failure, spec: TaskSpec) -> Answer:
    """Of a call that has failed."""
    return Answer(Receipt((failure,) * spec.num_returns))


def run_batch(
    key: bytes, session: str, number: int, packed_specs: list[bytes], batch: bytes
) -> Any:
    """Many short calls; when their worker has died, whoever has sent them sends each alone."""
    if begin(key, session):
        return crashed("taskloom_batch")
    home = join(session)
    receipts = run_many(home, number, [spec_of(packed) for packed in packed_specs], batch)
    return pickle.dumps(receipts, 5) if all(map(is_plain, receipts)) else receipts


def pick(value: Answer, index: int) -> Answer:
    """One output of a call that has several."""
    return Answer(Receipt((None,)), (value.output(index),))


def tell(value: Answer) -> Answer:
    """The receipt of a call, without its large outputs."""
    return Answer(value.receipt)
