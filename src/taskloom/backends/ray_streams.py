"""The items of a streaming generator of Ray's, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import ray

from taskloom._wire.remote_errors import Failure
from taskloom.backends.cluster_driver import Handle, Launched
from taskloom.backends.ray_cancel import ask_for_end
from taskloom.backends.ray_errors import failure_from_ray

Told = Callable[[Handle | Failure | None], None]


def refuse_through_client() -> None:
    """Ray's client has no streaming generators.

    Raises:
        NotImplementedError: this program is connected through it.
    """
    if ray.util.client.ray.is_connected():
        raise NotImplementedError(
            "Ray's client (ray://host:port) has no streams: connect to the cluster itself with "
            "taskloom.init('ray+gcs://host:6379'), from one of its machines"
        )


class RayStream:
    """See :class:`taskloom.backends.cluster_driver.Stream`.

    Waiting for an item without fetching it blocks in Ray, so an open stream has a thread, from
    the first item that somebody asks for until the end.

    Args:
        generator: Ray's.
    """

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self.launched = Launched(generator.completed(), (generator.completed(),))
        self._asked: SimpleQueue[Told | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def next(self, callback: Told) -> None:
        """Ask for the next item."""
        self._asked.put(callback)
        if self._thread is None:
            self._thread = threading.Thread(
                target=_serve,
                args=(self._generator, self._asked),
                name="taskloom-stream",
                daemon=True,
            )
            self._thread.start()

    def close(self) -> None:
        """End the generator."""
        self._asked.put(None)
        try:
            ask_for_end(self.launched.receipt, force=False, recursive=True)
        except Exception:
            pass  # it is over, or Ray is: nothing is left to end

    def __del__(self) -> None:
        self._asked.put(None)


def _serve(generator: Any, asked: SimpleQueue[Told | None]) -> None:
    while (callback := asked.get()) is not None:
        told: Any = None
        try:
            told = next(generator)
        except StopIteration:
            pass
        except BaseException as error:
            told = failure_from_ray(error)
        callback(told)
        if told is None or isinstance(told, Failure):
            return
        del callback, told
