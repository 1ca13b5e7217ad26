"""A task that waits for others gives its thread back meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import time

from distributed import threadpoolexecutor as pool
from distributed.worker import thread_state
from distributed.worker_state_machine import SecedeEvent


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
