"""The first steps of a local session, taken while its engine is still being loaded.

The process from which workers are forked takes as long to start as this one takes to load the
engine, and there is another core for it.  So it comes first (measured: 102 ms from ``python`` to
the first result, and 138 when it came after).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from taskloom._config import Config
from taskloom._engine.engine_thread import EngineThread
from taskloom._engine.green_threads import refuse_green_threads
from taskloom._engine.standard_streams import occupy_free
from taskloom._pool.zygote_process import Surroundings

if TYPE_CHECKING:
    from taskloom.backends.local import LocalBackend


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
