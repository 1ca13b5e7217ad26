"""taskloom on Dask without batches: what the translation of each call costs."""

from __future__ import annotations

import os

from benchmarks.contenders import on_dask
from benchmarks.contenders.ray_api import RayApi


def make() -> RayApi:
    """taskloom on a Dask cluster of its own, each call a task of Dask's."""
    os.environ["TASKLOOM_BATCH_SHORT_CALLS"] = "0"
    return on_dask.make()
