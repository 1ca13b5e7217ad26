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
from functools import partial
from queue import Empty, SimpleQueue
from time import sleep
from typing import Any, Final

import dask
import distributed
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.worker_state_machine import UnpauseEvent

FREE: Final = "taskloom"
"""The resource that calls without a CPU ask for: only our own workers have it."""
_PLENTY: Final = 1e9
_IDLE_S: Final = 5.0
"""How long another thread waits for more."""
_PATIENCE_S: Final = 2.0
"""How long a worker has to end in good order."""
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
                _run(work, self._free_main)
                del work
            except KeyboardInterrupt:
                self._free_main()  # it came too late for the task that it was meant for

    def _free_main(self) -> None:
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


class Doorman(WorkerPlugin):  # type: ignore[misc]  # distributed is untyped
    """Lets calls begin that ask for no CPU, however long the one with the CPU takes.

    To Dask a task is a task, and a worker with one thread runs one.  Such calls are the first in
    the worker's queue (their priority says so), and give their slot back as soon as they have
    begun; here the worker gets one more slot for the moment in which it takes one up.
    """

    name = "taskloom-doorman"

    def setup(self, worker: Any) -> None:
        """Dask tells us where we are."""
        self._worker = worker

    def transition(self, key: str, start: str, finish: str, **_more: Any) -> None:
        """A task changes its state."""
        if finish == "constrained":
            self._worker.loop.add_callback(self._let_in, key)

    def _let_in(self, key: str) -> None:
        state = self._worker.state
        task = state.tasks.get(key)
        if task is None or task.state != "constrained" or FREE not in task.resource_restrictions:
            return
        if not state.running:
            return  # the worker is short of memory
        slots, state.nthreads = state.nthreads, len(state.executing) + 1
        try:
            # Makes the worker look at its queue, and nothing else.
            self._worker.handle_stimulus(UnpauseEvent(stimulus_id=f"taskloom-let-in-{key}"))
        finally:
            state.nthreads = slots


def _run(work: _Work, before_telling: Callable[[], None] = lambda: None) -> None:
    """Run a function; who waits for it may have the next one as soon as it is told."""
    future, function, args, kwargs = work
    try:
        result = function(*args, **kwargs)
    except BaseException as error:
        before_telling()
        future.set_exception(error)
    else:
        before_telling()
        future.set_result(result)


def main(scheduler: str, resources: Mapping[str, float]) -> None:
    """Be a worker until the scheduler or the program that has started us is gone."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    executor = MainThreadPoolExecutor()
    workers: list[Any] = []

    async def work() -> None:
        async with distributed.Worker(
            scheduler,
            nthreads=1,
            executor=executor,
            resources={FREE: _PLENTY, **resources},
            plugins=[Doorman()],
            dashboard=False,
            dashboard_address="127.0.0.1:0",
        ) as worker:
            workers.append(worker)
            await worker.finished()

    def run() -> None:
        try:
            with dask.config.set({"distributed.worker.profile.enabled": False}):
                asyncio.run(work())
        finally:
            sys.stdout.flush()
            os._exit(0)  # whatever the main thread is doing: nobody waits for it any more

    threading.Thread(target=run, name="taskloom-dask", daemon=True).start()
    threading.Thread(
        target=_wait_for_parent, args=(workers,), name="taskloom-parent", daemon=True
    ).start()
    executor.serve()
    threading.Event().wait()  # another thread ends the process


def _wait_for_parent(workers: list[Any]) -> None:
    while os.read(0, 1024):
        pass
    for worker in workers:
        worker.loop.add_callback(partial(worker.close, executor_wait=False, nanny=False))
    sleep(_PATIENCE_S)
    os._exit(0)
