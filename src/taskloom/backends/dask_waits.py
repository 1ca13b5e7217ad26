"""Waits: a task that waits for others gives its thread back meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic, sleep, time
from typing import Any, Final

import distributed
from distributed import threadpoolexecutor as pool
from distributed.worker import thread_state
from distributed.worker_state_machine import SecedeEvent

from taskloom.backends.dask_handles import Promise

_ON_ITS_WAY: Final = frozenset({"newly-created", "connecting"})


@contextmanager
def lent() -> Iterator[None]:
    """Around a wait in the thread of a task: the worker runs another one meanwhile.

    In any other thread, an actor's say, nothing happens: it holds nothing that others need.
    """
    key = getattr(thread_state, "key", None)
    state = getattr(thread_state, "execution_state", None)
    if key is None or state is None:
        yield
        return
    worker = state["worker"]
    has_pool = hasattr(pool.thread_state, "executor")  # Dask's own, not ours
    if has_pool:
        try:
            pool.secede()
        except KeyError:  # it has done so already
            yield
            return
    now = time()
    event = SecedeEvent(
        key=key, compute_duration=now - thread_state.start_time, stimulus_id=f"secede-{now}"
    )
    worker.loop.add_callback(worker.handle_stimulus, event)
    try:
        yield
    finally:
        if has_pool:
            pool.rejoin()


def wait_for(promise: Promise, timeout_s: float | None) -> None:
    """Block until a call is over, or time is up."""
    future = promise.future
    if future is None:
        return  # it is over
    try:
        future.exception(timeout_s)  # the one question that waits and does not fetch the value
    except (TimeoutError, distributed.TimeoutError):
        pass


def wait_for_any(promises: Sequence[Promise], timeout_s: float | None) -> None:
    """Block until one of some calls is over, or time is up."""
    futures = [future for promise in promises if (future := promise.future) is not None]
    if len(futures) < len(promises):
        return  # one is over
    with lent():
        try:
            distributed.wait(futures, timeout=timeout_s, return_when="FIRST_COMPLETED")
        except (TimeoutError, distributed.TimeoutError):
            pass
        except distributed.client.FuturesCancelledError:
            pass  # done, too


def is_connected(client: Any, patience_s: float) -> bool:
    """Whether a client of Dask's has its connection; one that is being made is waited for.

    A worker has one client, and it is there for all its threads from the moment in which the first
    one begins to connect it.  A client that has lost its connection makes another one, too.
    """
    until = monotonic() + patience_s
    while client.status in _ON_ITS_WAY and monotonic() < until:
        sleep(0.01)  # Dask tells nobody
    return bool(client.status == "running")
