"""What a session keeps, as tests of streams ask for it."""

from __future__ import annotations

import gc
from types import ModuleType


def kept_ids(tl: ModuleType) -> list[str]:
    """The ids of all objects that are done, without those that only wait for the collector."""
    gc.collect()
    return [info.object_id for info in tl.memory().objects if info.where != "pending"]


def nothing_is_kept(tl: ModuleType) -> bool:
    """No object is left, done or not."""
    gc.collect()
    return not tl.memory().objects
