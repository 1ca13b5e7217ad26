"""What a worker process of a Dask cluster of our own runs: see ``dask_processes``.

Dask's loop runs in a thread, and tasks in the main thread, where a signal ends a sleep, so that
``cancel`` and ``timeout=`` work as they do locally.  A task that waits for others lends its turn:
what the worker runs meanwhile runs in another thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, Final

import dask
import distributed

_IDLE_S: Final = 5.0
"""How long another thread waits for more."""
_Work = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class MainThreadPoolExecutor(Executor):
    """Runs what it is given in the main thread; in another one while that is busy.

    How much runs at once is Dask's affair.  By "ThreadPoolExecutor" in the name Dask knows that
    tasks run in threads of its process.
    """

    def __init__(self) -> None:
        self._main: SimpleQueue[_Work | None] = SimpleQueue()
        self._more: SimpleQueue[_Work] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_main_free = True
        self._free = 0  # threads that wait for more

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function soon."""
        work: _Work = (Future(), fn, args, kwargs)
        with self._lock:
            if self._is_main_free:
                self._is_main_free = False
                self._main.put(work)
            else:
                self._more.put(work)
                if self._free:
                    self._free -= 1
                else:
                    threading.Thread(target=self._serve_more, daemon=True).start()
        return work[0]

    def serve(self) -> None:
        """The main thread, until the end."""
        while True:
            try:
                work = self._main.get()
                if work is None:
                    return
                _run(work)
                del work
            except KeyboardInterrupt:
                pass  # one that came too late for the task that it was meant for
            finally:
                with self._lock:
                    self._is_main_free = self._main.empty()

    def _serve_more(self) -> None:
        while True:
            try:
                work = self._more.get(timeout=_IDLE_S)
            except Empty:
                with self._lock:
                    if self._free and self._more.empty():
                        self._free -= 1
                        return
                continue
            _run(work)
            del work
            with self._lock:
                self._free += 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the main thread go; what runs is left to the end of the process."""
        self._main.put(None)


def _run(work: _Work) -> None:
    future, function, args, kwargs = work
    try:
        future.set_result(function(*args, **kwargs))
    except BaseException as error:
        future.set_exception(error)


def main(scheduler: str, name: Any, resources: Mapping[str, float]) -> None:
    """Be a worker until the scheduler or the program that has started us is gone."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    executor = MainThreadPoolExecutor()
    threading.Thread(target=_wait_for_parent, name="taskloom-parent", daemon=True).start()

    async def work() -> None:
        with dask.config.set({"distributed.worker.profile.enabled": False}):
            async with distributed.Worker(
                scheduler,
                name=name,
                nthreads=1,
                executor=executor,
                resources=dict(resources),
                dashboard=False,
                dashboard_address=None,
            ) as worker:
                await worker.finished()

    def run() -> None:
        try:
            asyncio.run(work())
        finally:
            sys.stdout.flush()
            os._exit(0)  # whatever the main thread is doing: nobody waits for it any more

    threading.Thread(target=run, name="taskloom-dask", daemon=True).start()
    executor.serve()
    threading.Event().wait()  # the other thread ends the process


def _wait_for_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)
