"""What blocking calls have in common: how long they may wait, and a word where a loop runs."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Final

from taskloom._config import env_flag
from taskloom.exceptions import BlockingGetWarning

if TYPE_CHECKING:
    from types import FrameType

_COROUTINE: Final = 0x80 | 0x100 | 0x200  # code flags: all that a loop runs
FOREVER_S: Final = 10**9  # a timeout beyond 30 years is none; locks cannot take much more
_HOSTS: Final = ("IPython", "asyncio.__main__", "code", "marimo")
"""Who runs statements that somebody types, with a loop running underneath."""

_warned_lines: set[tuple[str, int]] = set()


def seconds(timeout: object) -> float:
    """A number of seconds, of whatever numeric type.

    Raises:
        TypeError: it is no number.
    """
    if isinstance(timeout, int | float):
        return timeout
    if isinstance(timeout, str | bytes) or not hasattr(timeout, "__float__"):
        raise TypeError(f"timeout must be None or a number of seconds, got {timeout!r}")
    return float(timeout)


def warn_in_loop(name: str, instead: str) -> None:
    """Say once per line that a coroutine blocks its loop.  The engine goes on all the same.

    To be called by the function that the user has called.
    """
    asyncio = sys.modules.get("asyncio")  # where it is not imported, no loop is running
    running = getattr(asyncio, "_get_running_loop", None)
    if running is None or running() is None:
        return
    if not env_flag("WARN_BLOCKING_GET_INSIDE_ASYNC", default=True):
        return
    caller = sys._getframe(2)
    line = (caller.f_code.co_filename, caller.f_lineno)
    if line in _warned_lines or _is_typed(caller):
        return
    _warned_lines.add(line)
    warnings.warn(
        f"Using blocking {name} inside a coroutine: the event loop stands still at "
        f"{line[0]}:{line[1]} until it returns. Use {instead} instead",
        BlockingGetWarning,
        stacklevel=3,
    )


def forget_warnings() -> None:
    """The next session warns again."""
    _warned_lines.clear()


def _is_typed(frame: FrameType | None) -> bool:
    """True in a plain statement of a notebook's cell or a prompt.

    It holds up the loop of its host, as any statement there does, and nothing of the user's.
    """
    while frame is not None:
        if frame.f_code.co_flags & _COROUTINE:
            return False
        if frame.f_code.co_name == "<module>":
            return frame.f_back is not None and _module_of(frame.f_back).startswith(_HOSTS)
        frame = frame.f_back
    return False


def _module_of(frame: FrameType) -> str:
    spec = frame.f_globals.get("__spec__")  # with ``python -m`` its name is not "__main__"
    name = frame.f_globals.get("__name__") if spec is None else spec.name
    return name if isinstance(name, str) else ""
