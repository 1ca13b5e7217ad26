"""taskloom on Ray without batches: what the translation of each call costs."""

from __future__ import annotations

import os

from benchmarks.contenders import on_ray
from benchmarks.contenders.ray_api import RayApi


def make() -> RayApi:
    """taskloom on a Ray of its own, each call a Ray task."""
    os.environ["TASKLOOM_BATCH_SHORT_CALLS"] = "0"
    return on_ray.make()
