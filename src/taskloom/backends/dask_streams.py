"""Generators on Dask, which has none: their items go through one of Dask's queues.

A queue lives at the scheduler, and what is in it is kept alive there.  A small item goes as it is,
a large one stays with the worker that has made it, and its future goes.  The queue's size is how
far the generator may be ahead.  Each item has a number, so that the items that a second attempt
makes again are not told twice.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import distributed

from taskloom._spec import TaskSpec
from taskloom._wire.remote_errors import Failure
from taskloom._wire.serialization import pack_plain
from taskloom.backends.cluster_driver import SMALL_BYTES, Handle, Launched, Outcome, Receipt
from taskloom.backends.cluster_replay import StreamFailed, StreamRunner
from taskloom.backends.cluster_values import Carried, size_of
from taskloom.backends.dask_errors import failure_from_dask
from taskloom.backends.dask_handles import Answer, Kept, Output, Promise, Stored
from taskloom.backends.dask_waits import lent

if TYPE_CHECKING:
    from taskloom.backends.dask_driver import DaskDriver

Told = Callable[[Handle | Failure | None], None]
_LOOK_S: Final = 0.5
"""How often a wait for the other side looks whether that is still there."""
_END: Final = "end"


def queue_name(session: str, task: int) -> str:
    """Of the queue between a generator and its consumer."""
    return f"taskloom-{session}-{task:x}"


class DaskStream:
    """See :class:`taskloom.backends.cluster_driver.Stream`: the consumer's end.

    Waiting for an item blocks, so an open stream has a thread, from the first item that somebody
    asks for until the end.

    Args:
        driver: of this process.
        spec: of the generator.
        task: the key of the call.
        promise: of the call.
    """

    def __init__(self, driver: DaskDriver, spec: TaskSpec, task: int, promise: Promise) -> None:
        self.launched = Launched(promise, (Output(promise, 0),))
        self._driver = driver
        self._asked: SimpleQueue[Told | None] = SimpleQueue()
        self._source = _Source(driver, queue_name(driver.session, task), promise, spec)
        self._thread: threading.Thread | None = None

    def next(self, callback: Told) -> None:
        """Ask for the next item."""
        self._asked.put(callback)
        if self._thread is None:
            self._thread = threading.Thread(
                target=_serve, args=(self._source, self._asked), name="taskloom-stream", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """End the generator."""
        self._asked.put(None)
        self._driver.cancel(self.launched, force=False, recursive=True)

    def __del__(self) -> None:
        self._asked.put(None)


def _serve(source: _Source, asked: SimpleQueue[Told | None]) -> None:
    while (callback := asked.get()) is not None:
        told = source.take()
        callback(told)
        if told is None or isinstance(told, Failure):
            break
        del callback, told
    source.close()


class _Source:
    """Takes items out of a queue."""

    def __init__(self, driver: DaskDriver, name: str, promise: Promise, spec: TaskSpec) -> None:
        self._driver = driver
        self._promise = promise
        # Both ends make the queue, and its size is what the first one says.
        self._queue = distributed.Queue(name, client=driver.client, maxsize=spec.stream or 0)
        self._next = 0

    def take(self) -> Handle | Failure | None:
        """The next item; None at the end."""
        while True:
            is_over = self._promise.is_done
            try:
                found = self._queue.get(timeout=_LOOK_S)
            except (TimeoutError, distributed.TimeoutError):
                if is_over:  # and nothing came since: the generator is gone without a word
                    return self._failure()
                continue
            except BaseException as error:
                return failure_from_dask(error)
            handle: Any
            if isinstance(found, distributed.Future):
                number = int(found.key.rpartition("-")[2])
                handle = Stored(found.key, 1, 0, found)
            else:
                number, handle = pickle.loads(found)
            if number < self._next:
                continue  # an attempt before has made it, too
            if handle == _END:
                return None
            self._next += 1
            return handle if isinstance(handle, Failure | Stored) else Kept(handle)

    def _failure(self) -> Failure | None:
        told = self._driver.receipt(self._promise)
        outcome = told if isinstance(told, Failure) else told.outcomes[0]
        return outcome if isinstance(outcome, Failure) else None

    def close(self) -> None:
        """Nothing more is taken."""
        try:
            self._queue.close()
        except Exception:
            pass  # the connection is gone, and the queue with it


class Sink:
    """Puts the items of a generator into its queue, in the worker.

    Args:
        session: its name.
        runner: of the call.
    """

    def __init__(self, session: str, runner: StreamRunner) -> None:
        self._key = f"{runner.spec.name}-{session[:12]}{runner.job.task:016x}-item"
        self._attempt = runner.job.attempts
        driver: Any = runner.home.driver
        self._driver = driver
        self._queue = distributed.Queue(
            queue_name(session, runner.job.task),
            client=driver.client,
            maxsize=runner.spec.stream or 0,
        )
        self._number = 0

    def put(self, outcome: Outcome) -> None:
        """One item; blocks while the consumer is too far behind."""
        number = self._number
        self._number += 1
        is_small = size_of(outcome) <= SMALL_BYTES
        if is_small and not (isinstance(outcome, Carried) and outcome.places):
            self._offer(pickle.dumps((number, outcome), 5))
            return
        stored = self._driver.put_as(f"{self._key}-{self._attempt}-{number}", outcome)
        self._offer(stored.future)

    def end(self, failure: Failure | None) -> None:
        """The last word."""
        self._offer(pickle.dumps((self._number, failure or _END), 5))

    def _offer(self, entry: Any) -> None:
        try:
            self._queue.put(entry, timeout=_LOOK_S)
            return
        except (TimeoutError, distributed.TimeoutError):
            pass
        with lent():
            while True:
                try:
                    self._queue.put(entry, timeout=_LOOK_S)
                    return
                except (TimeoutError, distributed.TimeoutError):
                    pass


def produce(session: str, runner: StreamRunner) -> Answer:
    """Run a generator, in this thread."""
    sink = Sink(session, runner)
    try:
        for outcome in runner.items():
            sink.put(outcome)
    except StreamFailed as error:
        sink.end(error.failure)
        return Answer(Receipt((error.failure,)))
    sink.end(None)
    return Answer(Receipt((pack_plain(None),)))


async def produce_async(session: str, runner: StreamRunner, in_thread: Any) -> Answer:
    """Run an async generator, in the running loop.

    Args:
        session: its name.
        runner: of the call.
        in_thread: runs what blocks.
    """
    sink = await in_thread(Sink, session, runner)
    try:
        async for outcome in runner.items_async():
            await in_thread(sink.put, outcome)
    except StreamFailed as error:
        await in_thread(sink.end, error.failure)
        return Answer(Receipt((error.failure,)))
    await in_thread(sink.end, None)
    return Answer(Receipt((pack_plain(None),)))
