"""Where the user's code has called us: for warnings that name his line."""

from __future__ import annotations

import sys
from types import FrameType


def level_of_caller() -> int:
    """The ``stacklevel`` at which a warning of the caller names the line outside of taskloom."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame):
        level, frame = level + 1, frame.f_back
    return level


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "taskloom"
