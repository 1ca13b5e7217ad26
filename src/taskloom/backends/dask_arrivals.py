"""The ends of our calls, as Dask tells of them: fetched together, told one by one.

Dask calls back for each future in a thread of its own.  What has come by the time that the thread
here looks is fetched in one request, which is many times faster than one by one, and the callbacks
are called here, so that they may wait for Dask's loop.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import distributed

from taskloom._wire.remote_errors import Failure
from taskloom.backends.cluster_driver import Receipt
from taskloom.backends.dask_errors import failure_from_dask, failure_of_future
from taskloom.backends.dask_handles import Answer, LargeAnswer, Promise, bind
from taskloom.backends.dask_worker import tell

if TYPE_CHECKING:
    from taskloom.backends.dask_driver import DaskDriver

Told = Callable[[Any], None]
_NOT_THERE: Final = ("pending", "lost")
"""What Dask says of a value that it makes again."""
_MOST: Final = 2000
"""So many are fetched together."""


class Arrivals:
    """The thread that fetches receipts, for one process.

    Args:
        driver: of the process.
    """

    def __init__(self, driver: DaskDriver) -> None:
        self._driver = driver
        self._come: SimpleQueue[tuple[Promise, Told] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def watch(self, promise: Promise, callback: Told) -> None:
        """Have ``callback`` called with the receipt of a call, or a Failure."""
        if self._thread is None:
            self._start()
        future = promise.future
        if promise.told is not None or future is None:
            self._come.put((promise, callback))
        else:
            future.add_done_callback(lambda _: self._come.put((promise, callback)))

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name="taskloom-receipts", daemon=True
                )
                self._thread.start()

    def _serve(self) -> None:
        while (first := self._come.get()) is not None:
            come = [first]
            try:
                while len(come) < _MOST:
                    more = self._come.get_nowait()
                    if more is None:
                        self._come.put(None)
                        break
                    come.append(more)
            except Empty:
                pass
            told = self._fetch([promise for promise, _ in come])
            for promise, callback in come:
                if promise in told:
                    callback(told[promise])
                else:
                    self.watch(promise, callback)  # its worker is gone, and it runs again
            del first, come, told

    def collect(self, promises: Sequence[Promise]) -> dict[Promise, Receipt | Failure]:
        """The receipts of calls that are done, and their failures; not of those that run again."""
        return self._fetch(promises) if promises else {}

    def receipt(self, promise: Promise) -> Receipt | Failure:
        """The receipt of a call that is done, or its failure."""
        while (told := self._fetch([promise]).get(promise)) is None:
            distributed.wait(promise.future)
        return told  # type: ignore[no-any-return]

    def _fetch(self, promises: Sequence[Promise]) -> dict[Promise, Any]:
        """The receipts of calls that are done, and their failures."""
        told: dict[Promise, Any] = {}
        wanted: dict[str, Any] = {}
        for promise in promises:
            future = promise.future
            if promise.told is not None or future is None:
                told[promise] = promise.told
            elif future.status in _NOT_THERE:
                pass
            elif future.status != "finished":
                told[promise] = failure_of_future(future)
            elif future.type is LargeAnswer:
                told[promise] = self._large(promise)
            else:
                wanted[promise.key] = future
        found: dict[str, Any] = {}
        if wanted:
            try:
                found = self._driver.client.gather(wanted, errors="skip")
            except KeyboardInterrupt:
                raise  # Ctrl-C, or the end of the task that waits
            except BaseException as error:
                failure = failure_from_dask(error)
                found = dict.fromkeys(wanted, failure)
        for promise in promises:
            # None: it was cancelled after it had finished, while this was on its way.
            if found.get(promise.key) is not None:
                told[promise] = self._opened(found[promise.key])
            elif promise.key in wanted and wanted[promise.key].status not in (
                *_NOT_THERE,
                "finished",
            ):
                told[promise] = failure_of_future(wanted[promise.key])
            if promise in told:
                promise.settle(told[promise])
        return told

    def _large(self, promise: Promise) -> Receipt | Failure:
        if promise.outputs == 1:
            return Receipt((None,))
        future = self._driver.client.submit(tell, promise.future, key=f"{promise.key}-receipt")
        try:
            return self._opened(future.result())  # type: ignore[no-any-return]
        except BaseException as error:
            return failure_from_dask(error)

    def _opened(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return pickle.loads(value)  # what a batch gives
        bind(value)
        return value.receipt if isinstance(value, Answer) else value

    def close(self) -> None:
        """Nothing is told any more."""
        self._come.put(None)
