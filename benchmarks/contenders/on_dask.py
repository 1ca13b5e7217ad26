"""taskloom with Dask underneath: the same lines, ``init("dask")``."""

from __future__ import annotations

import taskloom
from benchmarks.contenders.ray_api import RayApi


def make() -> RayApi:
    """taskloom on a Dask cluster of its own."""
    return RayApi(taskloom, address="dask", log_to_driver=False)
