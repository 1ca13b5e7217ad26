"""The ordinary end of a worker process."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

from taskloom._worker.output import Output


def end_process(output: Output) -> NoReturn:
    """Run the exit handlers and end; threads that tasks left behind are not waited for."""
    try:
        atexit._run_exitfuncs()
    except BaseException:  # an exit handler's error has nobody to go to but stderr
        sys.excepthook(*sys.exc_info())
    output.flush()
    os._exit(0)
