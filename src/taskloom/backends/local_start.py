"""The first steps of a local session, taken while its engine is still being loaded.

The process from which workers are forked takes as long to start as this one takes to load the
engine, and there is another core for it.  So it comes first (measured: 102 ms from ``python`` to
the first result, and 138 when it came after).  The thread that makes it is the one that runs the
engine afterwards: the kernel ties the death signal of a child to the thread that made it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from taskloom._config import Config
from taskloom._engine.green_threads import refuse_green_threads
from taskloom._engine.standard_streams import occupy_free
from taskloom._pool.zygote_process import Surroundings, ZygoteProcess

if TYPE_CHECKING:
    from taskloom.backends.local import LocalBackend


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
        """There will be no engine."""
        self._may_go_on.set()
        self._has_begun.wait()
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            zygote.close()
        self.join()


def start(config: Config) -> LocalBackend:
    """Start a session; returns at once, workers are started in the background.

    Raises:
        RuntimeError: gevent or eventlet has changed what a thread is.
    """
    refuse_green_threads()
    occupy_free()
    thread = EngineThread(Surroundings.of_this_process())
    try:
        thread.begin()  # not beside what follows: there it would have to wait for its turns
        local: Any = import_module("taskloom.backends.local")
        return local.LocalBackend(config, thread)  # type: ignore[no-any-return]
    except BaseException:
        if thread.ident is not None:
            thread.give_up()
        raise
