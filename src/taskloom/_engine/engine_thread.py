"""The engine's thread: it makes the zygote before there is an engine, and then runs that.

The kernel ties the death signal of a child to the thread that made it, so one thread does both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from taskloom._pool.zygote_process import Surroundings, ZygoteProcess


class EngineThread(threading.Thread):
    """Starts the zygote at once, and runs the engine as soon as there is one.

    Args:
        surroundings: of the session.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(name="taskloom-engine", daemon=True)
        self.surroundings = surroundings
        self._zygote: ZygoteProcess | None = None
        self._error: OSError | None = None
        self._run_engine: Callable[[], None] | None = None
        self._has_begun, self._may_go_on = threading.Event(), threading.Event()

    def begin(self) -> None:
        """Have the zygote started, and return when it is, or cannot be."""
        self.start()
        self._has_begun.wait()

    def run(self) -> None:
        try:
            self._zygote = ZygoteProcess(self.surroundings)
        except OSError as error:
            self._error = error
        finally:
            self._has_begun.set()
        self._may_go_on.wait()
        run_engine, self._run_engine = self._run_engine, None  # no circle outlives the session
        if run_engine is not None:
            run_engine()

    def take_zygote(self) -> ZygoteProcess:
        """The zygote, for whoever closes it.

        Raises:
            OSError: it could not be started.
        """
        if self._error is not None:
            raise self._error
        zygote, self._zygote = self._zygote, None
        assert zygote is not None, "it is taken once"
        return zygote

    def go_on(self, run_engine: Callable[[], None]) -> None:
        """The engine is there."""
        self._run_engine = run_engine
        self._may_go_on.set()

    def give_up(self) -> None:
        """There will be no engine; nothing happens when there is one."""
        if self._may_go_on.is_set():
            return
        self._may_go_on.set()
        self._has_begun.wait()
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            zygote.close()
        self.join()
