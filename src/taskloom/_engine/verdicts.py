"""The errors that the engine itself makes for tasks: what was asked, what happened, what helps."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from taskloom._core.memory_victims import MemoryRetries
from taskloom._core.node import Node, ObjectRecord
from taskloom._core.resources import describe
from taskloom._engine.crash_reports import crash_text
from taskloom._engine.memory_monitor import Cause
from taskloom._pool.process import WorkerProcess
from taskloom._wire.remote_errors import Failure, system_failure
from taskloom.exceptions import (
    NestedDepthError,
    ObjectLostError,
    OutOfMemoryError,
    StreamingGeneratorReplayInconsistentError,
    TaskTimeoutError,
    TaskUnschedulableError,
    WorkerCrashedError,
    WorkerStartupError,
)


def unschedulable(node: Node, total: Mapping[str, float]) -> Failure:
    """It asks for more than there will ever be."""
    return system_failure(
        TaskUnschedulableError(
            f"the task {node.spec.name} asks for {describe(node.spec.request)}, but this "
            f"session has only {total}: it can never run"
        )
    )


def timed_out(node: Node) -> Failure:
    """Its attempt ran longer than its ``timeout=``."""
    pace = node.spec.pace
    assert pace is not None
    assert pace.timeout_s is not None
    return system_failure(TaskTimeoutError.of(node.spec.name, pace.timeout_s, node.attempt))


def contradicted(node: Node) -> Failure:
    """It is a generator, and yielded less than in an attempt before."""
    stream = node.stream
    assert stream is not None
    return system_failure(
        StreamingGeneratorReplayInconsistentError(
            f"{node.spec.name} was tried again after {stream.count} items, and now it has ended "
            f"after {stream.yielded_by(node)}: a generator that may be retried must yield the same "
            "in each attempt"
        )
    )


def too_deep(node: Node, max_extra_workers: int, shortage: str) -> Failure:
    """It finds every process taken by tasks that wait; ``shortage``: why there are no more."""
    if shortage:
        return system_failure(
            WorkerStartupError(
                f"the task {node.spec.name} cannot start: no worker process will be free, as those "
                "there are belong to tasks that wait in get() for others, and no further one can "
                f"be had: {shortage}"
            )
        )
    return system_failure(
        NestedDepthError(
            f"the task {node.spec.name} cannot start: all worker processes, {max_extra_workers} "
            "more than there are CPUs, belong to tasks that wait in get() for others; raise "
            "init(max_extra_workers=...) or return refs instead of waiting for them"
        )
    )


def crashed(worker: WorkerProcess, node: Node, cause: Cause, retries: MemoryRetries) -> Failure:
    """Its worker died while it ran, and there is no attempt left."""
    if cause.is_memory:
        return system_failure(OutOfMemoryError(_out_of_memory_text(node, cause.text, retries)))
    return system_failure(WorkerCrashedError(crash_text(worker, node, cause.text)))


def _out_of_memory_text(node: Node, cause: str, retries: MemoryRetries) -> str:
    ended = retries.ended(node) + 1
    times = "once" if ended == 1 else f"{ended} times"
    why = f"task_oom_retries={retries.limit}"
    if node.spec.max_retries == 0:
        why = "max_retries=0: it may not be tried again"
    return f"the task {node.spec.name} was ended for memory {times} ({why}); {cause}"


def lost(key: int) -> ObjectRecord:
    """Stands for an object that is gone although somebody asks for it."""
    record = ObjectRecord(key)
    record.outcome = system_failure(ObjectLostError(f"the object {key:#x} is no longer kept"))
    record.failed = record.seen = True
    return record


def no_engine(error: BaseException) -> str:
    """Why the engine could not start."""
    if not isinstance(error, OSError):
        return f"the engine could not start: {error!r}"
    # The repr of an OSError leaves out which file it is about.
    text = f"the engine could not start: {type(error).__name__}: {error}"
    if error.errno == errno.EMFILE:
        text += "; this process may not have more descriptors (RLIMIT_NOFILE, 'ulimit -n')"
    return text


def unseen(failure: Failure) -> str:
    """What is said of an error that nobody has looked at."""
    return (
        f"Unhandled error (suppress with 'TASKLOOM_IGNORE_UNHANDLED_ERRORS=1'): {failure.revive()}"
    )
