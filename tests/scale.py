"""How much a test does of what it does many times: all on one Python, a part on the others.

What an interpreter may do differently shows in the kinds of things that are done; how many of each
matters for the loom, which is the same everywhere.
"""

from __future__ import annotations

import os
from typing import Final

SCALE: Final = float(os.environ.get("TASKLOOM_TEST_SCALE", "1"))


def scaled(count: int) -> int:
    """``count``, or the part of it that this run does; at least 1."""
    return max(1, int(count * SCALE))
