"""taskloom itself."""

from __future__ import annotations

import taskloom
from benchmarks.contenders.ray_api import RayApi


def make() -> RayApi:
    return RayApi(taskloom)
