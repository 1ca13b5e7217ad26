"""What is said of a task whose worker died: errors that explain (P13)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from taskloom import exceptions
from taskloom._core.node import Node
from taskloom._pool.process import WorkerProcess

MAX_LINES: Final = 20
_OWN_FRAME: Final = f'  File "{os.path.dirname(os.path.abspath(exceptions.__file__))}{os.sep}'
_FIRST_FRAME: Final = '  File "<string>", line 1 in <module>'  # the zygote's command line


def crash_text(worker: WorkerProcess, node: Node, remark: str = "") -> str:
    """How the worker ended, in which attempt of what, a remark on that, and its last words."""
    budget = node.spec.max_retries
    text = (
        f"worker {worker.pid} {worker.how_it_ended()} while it ran {node.spec.name} "
        f"(attempt {node.attempt} of {'any number' if budget < 0 else budget + 1}){remark}"
    )
    lines = last_words(worker.last_error_lines())
    if lines:
        text += "; the last lines of its stderr:\n  " + "\n  ".join(lines)
    return text


def last_words(lines: Iterable[str]) -> list[str]:
    """The last lines that tell the user something: faulthandler names our frames, too."""
    told = [line for line in lines if line != _FIRST_FRAME and not line.startswith(_OWN_FRAME)]
    return told[-MAX_LINES:]
