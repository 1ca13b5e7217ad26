"""Groups of tasks in the calling process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from taskloom._wire.remote_errors import Failure
    from taskloom.backends.base import Backend
    from taskloom.backends.inline_streams import InlineSource
    from taskloom.ref import ObjectRef


class InlineGroup:
    """See :class:`taskloom.backends.base.Group`.

    A call is over when ``.remote()`` returns, and all that it has submitted with it.  So there is
    nothing to wait for and nothing to end: after the first failure further calls do not run.
    """

    def __init__(self, home: Backend, outer: InlineGroup | None) -> None:
        self.home = home
        self.outer = outer
        self.closed = False
        self.cancelled: bool = outer is not None and outer.cancelled
        self.on_close: Callable[[InlineGroup], None] = lambda group: None
        self.streams: list[InlineSource] = []
        self._failures: list[Failure] = []
        self._inner: list[InlineGroup] = []
        self._alarm: tuple[Callable[[int], None], AbstractEventLoop | None] | None = None
        if outer is not None:
            outer._inner.append(self)

    def on_failed(self, failure: Failure) -> None:
        """A member has failed."""
        if not any(failure is known for known in self._failures):
            self._failures.append(failure)
        self.cancel()

    @property
    def end(self) -> ObjectRef[Any]:
        for stream in self.streams:
            stream.run_to_end()
        self.streams.clear()
        return self.home.put(self._failures)

    def on_alarm(self, callback: Callable[[int], None], loop: AbstractEventLoop | None) -> None:
        self._alarm = callback, loop
        if self.cancelled:
            self.cancel()

    def close(self) -> None:
        self.closed = True
        self._alarm = None
        if self.outer is not None:
            self.outer._inner.remove(self)
        self.on_close(self)

    def cancel(self) -> None:
        self.cancelled = True
        for group in self._inner:
            group.cancel()
        for stream in self.streams:
            stream.cancel()
        alarm, self._alarm = self._alarm, None
        if alarm is None:
            return
        callback, loop = alarm
        if loop is None:
            callback(0)
            return
        try:
            loop.call_soon_threadsafe(callback, 0)
        except RuntimeError:
            pass  # the loop is closed: nobody is left to tell

    def release(self, ref: ObjectRef[Any]) -> None:
        """Nothing to do: whatever has a ref is done."""
